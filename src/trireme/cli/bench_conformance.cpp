#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "trireme/base/error.h"
#include "trireme/base/suggest.h"
#include "trireme/cli/bench.h"
#include "trireme/device/conformance/device_conformance.h"
#include "trireme/device/device.h"
#include "trireme/kernels/conformance/conformance.h"
#include "trireme/kernels/library.h"
#include "trireme/train/device_trial.h"

namespace trireme::cli {

namespace {

struct ConformanceArguments {
  std::vector<std::string> ops;
  std::vector<std::string> kernels;
  std::vector<std::string> libraries;
  std::vector<std::string> behaviours;
  bool training = false;
  DeviceArguments device;
};

/// The outcomes of one kernel of one op.
struct Verdict {
  std::string op;
  std::string kernel;
  std::vector<kernels::conformance::Outcome> outcomes;
  int64_t failed() const {
    return std::count_if(outcomes.begin(), outcomes.end(),
                         [](const auto& outcome) { return !outcome.problem.empty(); });
  }
  double worst() const {
    double worst = 0.0;
    for (const auto& outcome : outcomes) worst = std::max(worst, outcome.worst);
    return worst;
  }
};

OrderedJson to_json(const Verdict& verdict) {
  OrderedJson problems = OrderedJson::array();
  for (const auto& outcome : verdict.outcomes) {
    if (!outcome.problem.empty())
      problems.push_back({{"trial", outcome.trial}, {"problem", outcome.problem}});
  }
  return {
      {"op", verdict.op},           {"kernel", verdict.kernel}, {"trials", verdict.outcomes.size()},
      {"failed", verdict.failed()}, {"worst", verdict.worst()}, {"problems", problems}};
}

void print_verdict(const Verdict& verdict) {
  fmt::print("{:<35} {:<16} {:>6} {:>6} {:>9.3g}\n", verdict.op, verdict.kernel,
             verdict.outcomes.size(), verdict.failed(), verdict.worst());
  int64_t shown = 0;
  for (const auto& outcome : verdict.outcomes) {
    if (outcome.problem.empty() || ++shown > 5) continue;
    fmt::print("  {}: {}\n", outcome.trial, outcome.problem);
  }
  if (shown > 5) fmt::print("  and {} more\n", shown - 5);
}

/// What all parts of the suite add up to, and the document of --json.
struct Summary {
  int64_t trials = 0;
  int64_t failed = 0;
  OrderedJson ops = OrderedJson::array();
  OrderedJson behaviours = OrderedJson::array();
  OrderedJson training = OrderedJson::array();
};

void print_row(const std::string& name, const std::string& by, int64_t trials, int64_t failed,
               double worst) {
  fmt::print("{:<35} {:<16} {:>6} {:>6} {:>9.3g}\n", name, by, trials, failed, worst);
}

/// Another device of the same type, if there is one.
device::Device* peer_of(const device::Device& device) {
  const int other = device.torch_device().index() == 0 ? 1 : 0;
  try {
    return device.torch_device().is_cpu()
               ? nullptr
               : &device::get_device(fmt::format("{}:{}", device.type(), other));
  } catch (const Error&) {
    return nullptr;
  }
}

void add_behaviours(const ConformanceArguments& arguments, device::Device& device,
                    const GlobalOptions& options, Summary& summary) {
  namespace conformance = device::conformance;
  device::Device* peer = peer_of(device);
  std::vector<conformance::Behaviour> behaviours;
  if (arguments.behaviours.empty()) behaviours = conformance::check_behaviours(device, peer);
  for (const std::string& name : arguments.behaviours)
    behaviours.push_back(conformance::check_behaviour(name, device, peer));
  for (const conformance::Behaviour& behaviour : behaviours) {
    const auto failed = static_cast<int64_t>(behaviour.problems.size());
    summary.trials += behaviour.trials;
    summary.failed += failed;
    summary.behaviours.push_back({{"behaviour", behaviour.name},
                                  {"trials", behaviour.trials},
                                  {"failed", failed},
                                  {"skipped", behaviour.skipped},
                                  {"problems", behaviour.problems}});
    if (options.json) continue;
    if (behaviour.skipped.empty()) {
      print_row(behaviour.name, device.type(), behaviour.trials, failed, 0.0);
    } else {
      fmt::print("{:<35} {:<16} not tried: {}\n", behaviour.name, device.type(), behaviour.skipped);
    }
    for (size_t i = 0; i < std::min<size_t>(5, behaviour.problems.size()); ++i)
      fmt::print("  {}\n", behaviour.problems[i]);
    if (failed > 5) fmt::print("  and {} more\n", failed - 5);
  }
}

void add_training(device::Device& device, const GlobalOptions& options, Summary& summary) {
  for (const train::TrialComparison& run : train::compare_training(device)) {
    const int64_t failed = run.problem.empty() ? 0 : 1;
    ++summary.trials;
    summary.failed += failed;
    OrderedJson losses = OrderedJson::array();
    for (size_t i = 0; i < run.got.size(); ++i)
      losses.push_back({{"loss", run.got[i].loss}, {"cpu", run.want[i].loss}});
    summary.training.push_back({{"run", run.name},
                                {"same_bits", run.same_bits},
                                {"worst", run.worst},
                                {"steps", losses},
                                {"problem", run.problem}});
    if (options.json) continue;
    print_row("training, " + run.name, run.same_bits ? "bits of the CPU" : "in the bound", 1,
              failed, run.worst);
    if (failed > 0) fmt::print("  {}\n", run.problem);
  }
}

void run_conformance(const ConformanceArguments& arguments, const GlobalOptions& options) {
  device::Device& under_test = open_device(arguments.device);
  const c10::DeviceType device = under_test.torch_device().type();
  kernels::load_and_choose(arguments.libraries, {});
  // Who names something asks about that; else everything is tried.
  const bool of_kernels = !arguments.ops.empty() || !arguments.kernels.empty();
  const bool of_behaviours = !arguments.behaviours.empty();
  const bool everything = !of_kernels && !of_behaviours && !arguments.training;
  std::vector<std::string> ops = arguments.ops;
  if (ops.empty() && (everything || of_kernels)) ops = kernels::conformance::ops_with_trials();
  Summary summary;
  OrderedJson& results = summary.ops;
  int64_t& trials = summary.trials;
  int64_t& failed = summary.failed;
  if (!options.json) {
    fmt::print("{:<35} {:<16} {:>6} {:>6} {:>9}\n", "op or behaviour", "kernel or device", "trials",
               "failed", "of bound");
  }
  for (const std::string& op : ops) {
    std::vector<std::string> names = kernels::registry().kernels_of(op, device);
    // Of all ops those that have the kernel; an op that is named must have it.
    if (!arguments.kernels.empty() && arguments.ops.empty()) {
      std::erase_if(names, [&](const std::string& name) {
        return std::find(arguments.kernels.begin(), arguments.kernels.end(), name) ==
               arguments.kernels.end();
      });
    } else if (!arguments.kernels.empty()) {
      names = arguments.kernels;
    }
    for (const std::string& name : names) {
      const Verdict verdict{op, name, kernels::conformance::check(op, name, device)};
      trials += static_cast<int64_t>(verdict.outcomes.size());
      failed += verdict.failed();
      results.push_back(to_json(verdict));
      if (!options.json) print_verdict(verdict);
    }
  }
  if (everything || of_behaviours) add_behaviours(arguments, under_test, options, summary);
  if (arguments.training || (everything && !under_test.torch_device().is_cpu()))
    add_training(under_test, options, summary);
  if (options.json) {
    print_json({{"ok", failed == 0},
                {"device", under_test.torch_device().str()},
                {"results", results},
                {"behaviours", summary.behaviours},
                {"training", summary.training}});
  } else if (everything) {
    fmt::print("{}: {} trials, {} failed\n", under_test.torch_device().str(), trials, failed);
  }
  TRIREME_USER_CHECK(trials > 0, kConfig, "`trireme doctor --kernels` lists them",
                     "no op has a kernel '{}'", fmt::join(arguments.kernels, ", "));
  TRIREME_USER_CHECK(failed == 0, kDevice,
                     "the contract is in trireme/kernels/ops.h, moe_ops.h and device/device.h, the "
                     "bounds in kernels/conformance/conformance.h and train/device_trial.h",
                     "{} of {} trials break the contract", failed, trials);
}

}  // namespace

void add_bench_conformance(CLI::App& bench, GlobalOptions& options) {
  CLI::App* command = bench.add_subcommand(
      "conformance", "whether a device and its kernels keep their contracts; status 4 if not");
  auto arguments = std::make_shared<ConformanceArguments>();
  command->add_option("--op", arguments->ops, "ops; all by default");
  command->add_option("--kernel", arguments->kernels, "kernels; all of an op by default");
  command->add_option("--behaviour", arguments->behaviours,
                      "of the device, as the table names them (queue-order); all by default");
  command->add_flag("--training", arguments->training, "only the training runs beside the CPU");
  command->add_option("--load", arguments->libraries, "a library of kernels");
  add_device_options(*command, arguments->device);
  add_global_options(*command, options,
                     "trireme bench conformance --op rms_norm --load ./my_rms_norm.so");
  command->callback([arguments, &options] { run_conformance(*arguments, options); });
}

}  // namespace trireme::cli
