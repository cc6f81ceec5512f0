#include "trireme/calibrate/calibration.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

#include "trireme/base/clock.h"
#include "trireme/base/error.h"
#include "trireme/calibrate/kernel_rates.h"
#include "trireme/calibrate/link_rates.h"
#include "trireme/device/machine.h"

namespace trireme::calibrate {

namespace {

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

/// All rounds' steps of one case.
struct Sampled {
  const StepCase* of = nullptr;
  StepSamples samples;
};

/// By step and instruction, of a rank.
std::vector<std::vector<double>> durations_of(const StepSamples& samples, size_t rank) {
  std::vector<std::vector<double>> durations;
  for (const SampledStep& step : samples.steps) durations.push_back(step.durations_s[rank]);
  return durations;
}

std::vector<double> step_seconds(const StepSamples& samples) {
  std::vector<double> seconds;
  for (const SampledStep& step : samples.steps) seconds.push_back(step.seconds);
  return seconds;
}

void append(StepSamples&& more, StepSamples& samples) {
  if (samples.programs.empty()) samples.programs = std::move(more.programs);
  for (SampledStep& step : more.steps) samples.steps.push_back(std::move(step));
}

class Calibrator {
 public:
  explicit Calibrator(const CalibrationOptions& options) : options_(options) {}

  Calibration run() {
    const double begin = steady_clock().now_s();
    device::Device& device =
        device::get_device(device_of_rank(options_.machine.device, 0, std::max(options_.ranks, 1)));
    plan::DeviceProfile& profile = result_.machine.device;
    profile.name = options_.name;
    profile.asynchronous = device.capabilities().asynchronous;
    // Shapes stand for themselves: no tiles, no waves.
    profile.tile_m = profile.tile_n = profile.units = 1.0;
    profile.half_k = 0.0;
    kernels(device);
    links();
    instructions();
    if (options_.ranks > 1) slowdown();
    result_.seconds = steady_clock().now_s() - begin;
    return std::move(result_);
  }

 private:
  void say(const std::string& line) const {
    if (options_.progress) options_.progress(line);
  }

  void kernels(device::Device& device) {
    KernelRatesOptions kernels;
    kernels.types.clear();
    for (const plan::Precision precision : options_.precisions) {
      kernels.types.push_back(precision == plan::Precision::kFp32 ? plan::ComputeType::kFp32
                                                                  : plan::ComputeType::kBf16);
    }
    kernels.rounds = options_.rounds;
    kernels.largest = options_.largest_product;
    kernels.progress = options_.progress;
    const int threads = at::get_num_threads();
    if (options_.machine.threads > 0) at::set_num_threads(options_.machine.threads);
    measure_kernels(device, kernels, result_.machine.device);
    at::set_num_threads(threads);
  }

  void links() {
    plan::ClusterSpec& machine = result_.machine;
    machine.name = machine.node.name = machine.network.name = options_.name;
    machine.node.accelerators = std::max(options_.ranks, 1);
    plan::LinkProfile link;
    if (options_.ranks > 1) {
      say(fmt::format("links between {} ranks", options_.ranks));
      link = measure_links(options_.ranks, options_.machine, options_.rounds);
    } else {
      // Of one rank there is no link; a copy in memory is the best that there could be.
      link.bytes_per_s = machine.device.memory_bytes_per_s / 2.0;
    }
    machine.node.links = {link};
    machine.network.link = link;
  }

  int64_t scale() const {
    const double rate = result_.machine.device.peak_flops.begin()->second;
    const double size = std::cbrt(std::max(1.0, rate / 2e11));
    return int64_t{1} << static_cast<int>(std::clamp(std::floor(std::log2(size)), 0.0, 3.0));
  }

  std::vector<Sampled> sample(const std::vector<StepCase>& cases, const char* what) {
    std::vector<Sampled> all(cases.size());
    constexpr int kWarmup = 1;
    for (int round = 0; round < options_.rounds; ++round) {
      for (size_t i = 0; i < cases.size(); ++i) {
        say(fmt::format("{}, round {} of {}: {}", what, round + 1, options_.rounds, cases[i].name));
        all[i].of = &cases[i];
        append(sample_steps(cases[i], options_.machine, kWarmup, options_.steps), all[i].samples);
        result_.steps += options_.steps;
      }
    }
    return all;
  }

  void instructions() {
    std::vector<StepCase> cases;
    for (const plan::Precision precision : options_.precisions) {
      std::vector<StepCase> more = calibration_cases(precision, scale());
      std::ranges::move(more, std::back_inserter(cases));
    }
    cases.insert(cases.end(), options_.more.begin(), options_.more.end());
    plan::MeasuredSpans spans;
    for (const Sampled& one : sample(cases, "instructions")) {
      const plan::PlannedRun run = planned_run(*one.of, result_.machine);
      const bool in_order = !result_.machine.device.asynchronous;
      spans.add(run, one.samples.programs.front(), durations_of(one.samples, 0),
                in_order ? step_seconds(one.samples) : std::vector<double>());
    }
    plan::DeviceProfile& device = result_.machine.device;
    const plan::HostTimes host = spans.host_times();
    device.instruction_gap_s = host.gap_s;
    device.step_overhead_s = host.step_s;
    device.step_slowdown = host.slowdown;
    device.instructions = spans.rates();
    result_.spans = spans.num_spans();
  }

  // Of ranks that compute at the same time: what their steps take beyond those that would not disturb each other.
  void slowdown() {
    std::vector<StepCase> cases = calibration_cases(options_.precisions.front(), scale());
    cases.resize(std::min<size_t>(cases.size(), 4));
    for (StepCase& one : cases) {
      one.strategy.parallel.dp = options_.ranks;
      one.strategy.sequences *= options_.ranks;
      one.strategy.lanes = 1;
      while (one.strategy.lanes < options_.ranks) one.strategy.lanes *= 2;
    }
    std::erase_if(
        cases, [](const StepCase& one) { return !plan::validate(one.spec, one.strategy).empty(); });
    const std::vector<Sampled> all = sample(cases, "ranks beside each other");
    if (all.empty()) return;
    what_ranks_do(all);
    std::vector<double> ratios;
    for (const Sampled& one : all) {
      const double alone = plan::predict(planned_run(*one.of, result_.machine)).step_s;
      ratios.push_back(median(step_seconds(one.samples)) / alone);
    }
    const double busy = std::max(1.0, median(std::move(ratios)));
    // What was measured of them beside each other is taken to be as much slower.
    for (size_t i = alone_; i < result_.machine.device.instructions.size(); ++i)
      slow_down(result_.machine.device.instructions[i], 1.0 / busy);
    result_.machine.node.busy_slowdown = busy;
  }

  static void slow_down(plan::InstructionRate& rate, double factor) {
    for (double* number : {&rate.fixed_s, &rate.products, &rate.attention, &rate.memory})
      *number *= factor;
    for (plan::MeasuredInstruction& one : rate.measured) one.seconds *= factor;
  }

  // What ranks do for each other's gradients is in no program of one rank.
  void what_ranks_do(const std::vector<Sampled>& all) {
    plan::MeasuredSpans spans;
    for (const Sampled& one : all)
      spans.add(planned_run(*one.of, result_.machine), one.samples.programs.front(),
                durations_of(one.samples, 0), {});
    std::vector<plan::InstructionRate>& known = result_.machine.device.instructions;
    alone_ = known.size();
    for (plan::InstructionRate& rate : spans.rates()) {
      const bool is_new =
          std::none_of(known.begin(), known.begin() + static_cast<std::ptrdiff_t>(alone_),
                       [&](const plan::InstructionRate& other) { return other.of == rate.of; });
      if (is_new) known.push_back(std::move(rate));
    }
    result_.spans += spans.num_spans();
  }

  const CalibrationOptions& options_;
  size_t alone_ = 0;  ///< so many rates are of one rank's instructions
  Calibration result_;
};

}  // namespace

plan::PlannedRun planned_run(const StepCase& one, const plan::ClusterSpec& machine) {
  plan::PlannedRun run;
  run.spec = one.spec;
  run.strategy = one.strategy;
  run.cluster = machine;
  run.stack = plan::shipped_profiles().stack("trireme");
  run.tables = machine.device.measured;
  run.sharding.sequence_parallel = one.strategy.parallel.tp > 1;
  return run;
}

Calibration calibrate(const CalibrationOptions& options) {
  TRIREME_CHECK(!options.precisions.empty() && options.rounds > 0, "nothing to calibrate");
  return Calibrator(options).run();
}

std::string source_line(const MachineUse& use, const std::string& program_version,
                        const std::string& date) {
  const device::Machine machine = device::read_machine();
  const int threads = use.threads > 0 ? use.threads : machine.torch_threads;
  return fmt::format("measured {} on {} ({}, {} CPUs, {} threads a rank, {}): trireme {}, torch {}",
                     date, machine.host, machine.processor, machine.cpus, threads, use.device,
                     program_version, machine.torch_version);
}

}  // namespace trireme::calibrate
