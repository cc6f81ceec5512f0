#include <algorithm>
#include <memory>

#include "trireme/base/error.h"
#include "trireme/cli/command.h"
#include "trireme/device/device.h"
#include "trireme/device/machine.h"
#include "trireme/execute/kernel_workspace.h"
#include "trireme/kernels/library.h"
#include "trireme/model/flops.h"
#include "trireme/model/model_spec.h"
#include "trireme/plan/simulate.h"
#include "trireme/train/step_benchmark.h"

namespace trireme::cli {

namespace {

struct BenchTrainArguments {
  std::string preset = "llama-11m";
  std::string precision = "fp32";
  std::string recompute = "none";
  std::string device = "cpu";
  int64_t layers = 0;
  int64_t micro = 8;
  int64_t micro_batches = 1;
  int64_t lanes = 1;
  int64_t seq_len = 256;
  int64_t warmup = 2;
  int64_t steps = 3;
  bool graphs = false;
  bool kernels = false;
  bool print_config = false;
  bool print_flops = false;
  bool print_memory = false;
};

plan::Recompute parse_recompute(const std::string& name) {
  if (name == "none") return plan::Recompute::kNone;
  if (name == "selective") return plan::Recompute::kSelective;
  return plan::Recompute::kFull;
}

/// The preset, or its first layers.
model::ModelSpec spec_of(const BenchTrainArguments& arguments) {
  model::ModelSpec spec = model::spec_from_preset(arguments.preset);
  if (arguments.layers == 0) return spec;
  const std::string origin = "preset " + arguments.preset;
  Json config = parse_json(spec.config_json, origin, ErrorCode::kInternal);
  config[config.contains("n_layer") ? "n_layer" : "num_hidden_layers"] = arguments.layers;
  return model::spec_from_config(config.dump(), origin);
}

/// Of the simulation; how long instructions take does not matter to memory.
int64_t predicted_peak_bytes(const train::StepBenchmark& benchmark) {
  const plan::Program program = plan::build_program(benchmark.spec, benchmark.strategy);
  return plan::simulate(program, std::vector<double>(program.instructions.size(), 1e-3)).peak_bytes;
}

void run_bench_train(const BenchTrainArguments& arguments, const GlobalOptions& options) {
  train::StepBenchmark benchmark;
  benchmark.spec = spec_of(arguments);
  if (arguments.print_config) {
    fmt::print("{}\n", benchmark.spec.config_json);
    return;
  }
  const double flops = model::flops_per_token(benchmark.spec, arguments.seq_len).model();
  if (arguments.print_flops) {
    if (options.json) {
      print_json({{"flops_per_token", flops}});
    } else {
      fmt::print("{}\n", model::flops_formula(benchmark.spec, arguments.seq_len));
    }
    return;
  }
  plan::Strategy& strategy = benchmark.strategy;
  strategy.micro = arguments.micro;
  strategy.sequences = arguments.micro * arguments.micro_batches;
  strategy.lanes = arguments.lanes;
  strategy.seq_len = arguments.seq_len;
  strategy.precision =
      arguments.precision == "bf16" ? plan::Precision::kBf16 : plan::Precision::kFp32;
  strategy.recompute.assign(benchmark.spec.parts.size(), parse_recompute(arguments.recompute));
  strategy.record = arguments.graphs;
  device::get_device("cpu");  // before the first tensor: memory is held and counted
  device::get_device(arguments.device);
  kernels::load_and_choose({}, {});
  strategy.kernels =
      execute::kernel_workspace_of(arguments.device, strategy.precision, strategy.record);
  if (arguments.print_memory) {
    const int64_t bytes = predicted_peak_bytes(benchmark);
    if (options.json) {
      print_json({{"predicted_peak_bytes", bytes}});
    } else {
      fmt::print("{:.0f} MiB at the peak of a step\n", static_cast<double>(bytes) / 0x1p20);
    }
    return;
  }
  benchmark.warmup = arguments.warmup;
  benchmark.steps = arguments.steps;
  benchmark.device = arguments.device;
  benchmark.kernel_times = arguments.kernels;
  const auto result = train::run_step_benchmark(benchmark);

  std::vector<double> rates;
  OrderedJson steps = OrderedJson::array();
  for (const train::StepMeasurement& step : result.steps) {
    rates.push_back(static_cast<double>(step.tokens) / step.step_s);
    steps.push_back({{"step_s", step.step_s},
                     {"tokens", step.tokens},
                     {"page_faults", step.page_faults},
                     {"peak_rss_bytes", step.peak_rss_bytes},
                     {"peak_bytes", step.peak_bytes},
                     {"reserved_bytes", step.reserved_bytes},
                     {"loss", step.loss}});
  }
  std::sort(rates.begin(), rates.end());
  const std::string name = fmt::format("train.{}.{}", arguments.preset, arguments.precision);
  OrderedJson kernels = OrderedJson::array();
  for (const train::KernelTime& kernel : result.kernels)
    kernels.push_back(
        {{"name", kernel.name}, {"calls", kernel.calls}, {"seconds", kernel.seconds}});
  const double median = rates[rates.size() / 2];
  if (options.json) {
    print_json({{"machine", device::to_json(device::read_machine())},
                {"results",
                 {{{"name", name},
                   {"median", median},
                   {"min", rates.front()},
                   {"max", rates.back()},
                   {"unit", "tokens/s"}}}},
                {"flops_per_token", flops},
                {"predicted_peak_bytes", predicted_peak_bytes(benchmark)},
                {"steps", steps},
                {"kernels", kernels}});
    return;
  }
  const train::StepMeasurement& last = result.steps.back();
  fmt::print(
      "{}: {:.0f} tokens/s [{:.0f} .. {:.0f}], {:.1f} GFLOP/s of the model, {:.0f} MiB of tensors, "
      "{:.0f} MiB resident, {} page faults a step\n",
      name, median, rates.front(), rates.back(), median * flops / 1e9,
      static_cast<double>(last.peak_bytes) / 0x1p20,
      static_cast<double>(last.peak_rss_bytes) / 0x1p20, last.page_faults);
}

}  // namespace

/// `trireme bench train`; called by add_bench.
void add_bench_train(CLI::App& bench, GlobalOptions& options) {
  CLI::App* command = bench.add_subcommand("train", "training steps of a preset on random tokens");
  auto arguments = std::make_shared<BenchTrainArguments>();
  command->add_option("--preset", arguments->preset, "the model")->capture_default_str();
  command->add_option("--precision", arguments->precision)
      ->check(CLI::IsMember({"fp32", "bf16"}))
      ->capture_default_str();
  command->add_option("--recompute", arguments->recompute)
      ->check(CLI::IsMember({"none", "selective", "full"}))
      ->capture_default_str();
  command->add_option("--device", arguments->device, "as in the run file")->capture_default_str();
  command->add_option("--layers", arguments->layers, "of the preset; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--micro", arguments->micro, "sequences in a forward pass")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--micro-batches", arguments->micro_batches, "a step")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--lanes", arguments->lanes)
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--seq-len", arguments->seq_len)
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--warmup", arguments->warmup, "steps left out")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--steps", arguments->steps, "steps measured")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_flag("--graphs", arguments->graphs, "as device.graphs of a run file");
  command->add_flag("--kernels", arguments->kernels,
                    "with --json: also the time of each kernel in one more step");
  command->add_flag("--print-config", arguments->print_config,
                    "only print the preset's config.json");
  command->add_flag("--print-flops", arguments->print_flops, "only print the operations per token");
  command->add_flag("--print-memory", arguments->print_memory,
                    "only print the predicted peak of a step");
  add_global_options(
      *command, options,
      "trireme bench train --preset llama-110m --micro 2 --seq-len 1024 --precision bf16");
  command->callback([arguments, &options] { run_bench_train(*arguments, options); });
}

}  // namespace trireme::cli
