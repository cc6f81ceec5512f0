#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "trireme/base/error.h"
#include "trireme/base/suggest.h"
#include "trireme/cli/bench.h"
#include "trireme/device/device.h"
#include "trireme/kernels/conformance/conformance.h"
#include "trireme/kernels/library.h"

namespace trireme::cli {

namespace {

struct ConformanceArguments {
  std::vector<std::string> ops;
  std::vector<std::string> kernels;
  std::vector<std::string> libraries;
  std::string device = "cpu";
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

void run_conformance(const ConformanceArguments& arguments, const GlobalOptions& options) {
  const c10::DeviceType device = device::get_device(arguments.device).torch_device().type();
  kernels::load_and_choose(arguments.libraries, {});
  const auto ops = arguments.ops.empty() ? kernels::conformance::ops_with_trials() : arguments.ops;
  OrderedJson results = OrderedJson::array();
  int64_t trials = 0;
  int64_t failed = 0;
  if (!options.json) {
    fmt::print("{:<35} {:<16} {:>6} {:>6} {:>9}\n", "op", "kernel", "trials", "failed", "of bound");
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
  if (options.json) print_json({{"ok", failed == 0}, {"results", results}});
  TRIREME_USER_CHECK(trials > 0, kConfig, "`trireme doctor --kernels` lists them",
                     "no op has a kernel '{}'", fmt::join(arguments.kernels, ", "));
  TRIREME_USER_CHECK(failed == 0, kDevice,
                     "the contract is in trireme/kernels/ops.h and moe_ops.h, the bound in "
                     "conformance/conformance.h",
                     "{} of {} trials break the contract", failed, trials);
}

}  // namespace

void add_bench_conformance(CLI::App& bench, GlobalOptions& options) {
  CLI::App* command = bench.add_subcommand(
      "conformance", "whether kernels keep the contracts of their ops; status 4 if not");
  auto arguments = std::make_shared<ConformanceArguments>();
  command->add_option("--op", arguments->ops, "ops; all by default");
  command->add_option("--kernel", arguments->kernels, "kernels; all of an op by default");
  command->add_option("--load", arguments->libraries, "a library of kernels");
  command->add_option("--device", arguments->device, "where the kernels run: cpu or sim")
      ->capture_default_str();
  add_global_options(*command, options,
                     "trireme bench conformance --op rms_norm --load ./my_rms_norm.so");
  command->callback([arguments, &options] { run_conformance(*arguments, options); });
}

}  // namespace trireme::cli
