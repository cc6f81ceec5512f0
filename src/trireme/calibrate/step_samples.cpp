#include "trireme/calibrate/step_samples.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <ctime>
#include <memory>

#include "trireme/device/device.h"
#include "trireme/execute/executor.h"
#include "trireme/execute/rank_shares.h"
#include "trireme/nn/model.h"
#include "trireme/optim/optimizer.h"
#include "trireme/train/step_benchmark.h"

namespace trireme::calibrate {

namespace {

/// Of one rank: by step, how long it took and what its instructions did.
struct RankSamples {
  plan::Program program;
  std::vector<double> seconds;
  std::vector<double> processor_s;
  std::vector<std::vector<double>> durations_s;
};

double processor_seconds() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

RankSamples sample_rank(const StepCase& one, const std::string& device_name, comm::World* world,
                        int warmup, int steps) {
  RankSamples samples;
  device::Device& device = device::get_device(device_name);
  samples.program =
      plan::build_program(one.spec, one.strategy, world == nullptr ? 0 : world->rank());
  const plan::Program& program = samples.program;
  const bool bf16 = one.strategy.precision == plan::Precision::kBf16;
  nn::ParameterStore store(one.spec, bf16 ? at::kBFloat16 : at::kFloat, at::kFloat,
                           device.torch_device(), execute::master_shares(one.spec, program),
                           program.has_part);
  store.initialize(1);
  nn::Model model(store);
  const auto optimizer = optim::make_optimizer(
      {}, one.spec, store.device(),
      one.strategy.offload_optimizer ? optim::StatePlace::kHost : optim::StatePlace::kDevice,
      execute::state_shares(one.spec, program));
  execute::Executor executor(model, store, *optimizer, world);
  execute::StepInput input;
  for (const int64_t index : program.micro_batches())
    input.micro_batches.push_back(
        train::random_batch(one.spec, one.strategy, static_cast<uint64_t>(index)));
  input.learning_rate = 1e-4;
  input.clip_norm = 1.0;
  std::vector<std::unique_ptr<device::Event>> begins;
  for (int step = 0; step <= warmup + steps; ++step) {
    begins.push_back(device.compute_queue().record());
    if (step == warmup + steps) break;
    input.step = step;
    const double before = processor_seconds();
    const execute::StepResult result = executor.run_step(program, input);
    if (step < warmup) continue;
    samples.processor_s.push_back(processor_seconds() - before);
    std::vector<double>& durations = samples.durations_s.emplace_back();
    for (const plan::Measurement& measured : result.measurements)
      durations.push_back(measured.duration_s);
  }
  executor.settle();
  device.synchronize();
  for (int step = warmup; step < warmup + steps; ++step) {
    const auto at = static_cast<size_t>(step);
    samples.seconds.push_back(begins[at + 1]->seconds() - begins[at]->seconds());
  }
  return samples;
}

/// ATen's threads of the calling thread, until the end of the scope.
class Threads {
 public:
  explicit Threads(int count) : before_(at::get_num_threads()) {
    if (count > 0) at::set_num_threads(count);
  }
  ~Threads() { at::set_num_threads(before_); }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

 private:
  int before_;
};

}  // namespace

std::string device_of_rank(const std::string& device, int rank, int ranks) {
  if (ranks == 1 || device == "cpu" || device.find(':') != std::string::npos) return device;
  return fmt::format("{}:{}", device, rank);
}

StepSamples sample_steps(const StepCase& one, const MachineUse& use, int warmup, int steps) {
  const auto ranks = static_cast<int>(one.strategy.parallel.world());
  std::vector<RankSamples> all(static_cast<size_t>(ranks));
  if (ranks == 1) {
    const Threads threads(use.threads);
    all[0] = sample_rank(one, use.device, nullptr, warmup, steps);
  } else {
    comm::run_ranks(
        ranks,
        [&](comm::World& world) {
          const Threads threads(use.threads);
          all[static_cast<size_t>(world.rank())] = sample_rank(
              one, device_of_rank(use.device, world.rank(), ranks), &world, warmup, steps);
        },
        use.links);
  }
  StepSamples samples;
  samples.steps.resize(static_cast<size_t>(steps));
  for (RankSamples& rank : all) {
    samples.programs.push_back(std::move(rank.program));
    for (size_t step = 0; step < samples.steps.size(); ++step) {
      SampledStep& sampled = samples.steps[step];
      sampled.seconds = std::max(sampled.seconds, rank.seconds[step]);
      sampled.processor_s = std::max(sampled.processor_s, rank.processor_s[step]);
      sampled.durations_s.push_back(std::move(rank.durations_s[step]));
    }
  }
  return samples;
}

}  // namespace trireme::calibrate
