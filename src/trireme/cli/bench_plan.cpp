#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "trireme/calibrate/comparison.h"
#include "trireme/cli/bench.h"
#include "trireme/cli/links.h"
#include "trireme/cli/plan_predict.h"
#include "trireme/cli/stage_line.h"
#include "trireme/device/machine.h"
#include "trireme/kernels/library.h"

namespace trireme::cli {

namespace {

struct BenchPlanArguments {
  DeviceArguments device;
  LinkArguments links;
  std::vector<std::string> profiles;
  std::string cluster;
  int ranks = 2;
  int threads = 0;
  int rounds = 7;
};

double middle(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

void run_bench_plan(const BenchPlanArguments& arguments, const GlobalOptions& options) {
  const plan::ClusterSpec machine = load_profiles(arguments.profiles).cluster(arguments.cluster);
  device::get_device("cpu");  // before the first tensor: memory is held and counted
  const bool in_order = !open_device(arguments.device).capabilities().asynchronous;
  kernels::load_and_choose({}, {});
  calibrate::MachineUse use;
  use.device = arguments.device.name;
  use.links = local_options(arguments.links, arguments.device.name);
  use.threads = arguments.threads;
  std::vector<calibrate::ComparedStep> all;
  {
    StageLine line(options.quiet);
    all = calibrate::compare_steps(calibrate::comparison_cases(arguments.ranks), use, machine,
                                   arguments.rounds,
                                   [&](const std::string& text) { line.show(text); });
  }
  OrderedJson results = OrderedJson::array();
  std::vector<double> errors;
  std::vector<double> spreads;
  for (const calibrate::ComparedStep& one : all) {
    OrderedJson result = bench_result("plan." + one.name, one.measured_s, "s");
    result["ranks"] = one.ranks;
    result["predicted"] = one.predicted_s;
    result["error"] = one.error();
    result["spread"] = one.spread();
    // Of several ranks or threads, and of other devices, the process's processors say nothing of a step.
    if (one.ranks == 1 && arguments.threads == 1 && in_order)
      result["processor_median"] = middle(one.processor_s);
    result["predicted_undisturbed"] = one.undisturbed_s;
    result["measured_share"] = one.measured_share;
    results.push_back(std::move(result));
    errors.push_back(std::abs(one.error()));
    spreads.push_back(one.spread());
  }
  const auto within = std::ranges::count_if(errors, [](double error) { return error <= 0.02; });
  if (options.json) {
    print_json({{"machine", device::to_json(device::read_machine())},
                {"results", results},
                {"median_error", middle(errors)},
                {"worst_error", std::ranges::max(errors)},
                {"median_spread", middle(spreads)},
                {"within_2_percent", within}});
    return;
  }
  fmt::print("{:<34} {:>5} {:>10} {:>10} {:>22} {:>8} {:>8}\n", "step", "ranks", "predicted",
             "median", "[min .. max] ms", "error", "spread");
  for (const calibrate::ComparedStep& one : all) {
    fmt::print("{:<34} {:>5} {:>8.2f}ms {:>8.2f}ms [{:>8.2f} .. {:>8.2f}] {:>7.1f}% {:>7.1f}%\n",
               one.name, one.ranks, one.predicted_s * 1e3, one.median_s() * 1e3,
               std::ranges::min(one.measured_s) * 1e3, std::ranges::max(one.measured_s) * 1e3,
               100.0 * one.error(), 100.0 * one.spread());
  }
  fmt::print(
      "{} strategies: error {:.1f} % in the median, {:.1f} % at worst, {} within 2 %; the machine "
      "repeats itself to {:.1f} %\n",
      all.size(), 100.0 * middle(errors), 100.0 * std::ranges::max(errors), within,
      100.0 * middle(spreads));
}

}  // namespace

void add_bench_plan(CLI::App& bench, GlobalOptions& options) {
  CLI::App* command =
      bench.add_subcommand("plan", "predicted steps of many strategies beside measured ones");
  auto arguments = std::make_shared<BenchPlanArguments>();
  add_device_options(*command, arguments->device);
  add_link_options(*command, arguments->links);
  command->add_option("--profiles", arguments->profiles, "what `plan calibrate` wrote")->required();
  command->add_option("--cluster", arguments->cluster, "its name there")->default_val("local-cpu");
  command->add_option("--ranks", arguments->ranks, "for data parallel steps and pipelines")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  command->add_option("--threads", arguments->threads, "of a rank, as it was calibrated")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--rounds", arguments->rounds, "over all strategies")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  add_global_options(*command, options, "trireme bench plan --profiles machine.toml");
  command->callback([arguments, &options] { run_bench_plan(*arguments, options); });
}

}  // namespace trireme::cli
