#include "trireme/train/step_benchmark.h"

#include <sys/resource.h>

#include "trireme/base/hash.h"
#include "trireme/device/device.h"
#include "trireme/execute/executor.h"
#include "trireme/nn/model.h"
#include "trireme/optim/optimizer.h"

namespace trireme::train {

int64_t minor_page_faults() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_minflt;
}

int64_t peak_resident_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss * int64_t{1024};
}

data::Batch random_batch(const model::ModelSpec& spec, const plan::Strategy& strategy,
                         uint64_t number) {
  data::Batch batch;
  batch.rows = strategy.micro;
  batch.seq_len = strategy.seq_len;
  const auto vocab = static_cast<uint64_t>(spec.vocab_size);
  for (int64_t row = 0; row < batch.rows; ++row) {
    const auto token = [&](int64_t t) {
      return static_cast<int32_t>(
          mix(number, static_cast<uint64_t>(row), static_cast<uint64_t>(t)) % vocab);
    };
    for (int64_t t = 0; t < batch.seq_len; ++t) {
      batch.tokens.push_back(token(t));
      batch.targets.push_back(token(t + 1));
      batch.positions.push_back(static_cast<int32_t>(t));
    }
    batch.segments.push_back({0});
  }
  batch.num_targets = batch.rows * batch.seq_len;
  return batch;
}

StepBenchmarkResult run_step_benchmark(const StepBenchmark& benchmark) {
  device::Device& device = device::get_device(benchmark.device);
  const plan::Program program = plan::build_program(benchmark.spec, benchmark.strategy);
  const at::ScalarType compute =
      benchmark.strategy.precision == plan::Precision::kBf16 ? at::kBFloat16 : at::kFloat;
  nn::ParameterStore store(benchmark.spec, compute, at::kFloat, device.torch_device());
  store.initialize(1);
  nn::Model model(store);
  const auto optimizer = optim::make_optimizer({}, benchmark.spec, store.device());
  execute::Executor executor(model, store, *optimizer);

  execute::StepInput input;
  for (int64_t m = 0; m < benchmark.strategy.micro_batches(); ++m) {
    input.micro_batches.push_back(
        random_batch(benchmark.spec, benchmark.strategy, static_cast<uint64_t>(m)));
  }
  input.learning_rate = 1e-4;
  input.clip_norm = 1.0;

  StepBenchmarkResult all;
  for (int64_t step = 0; step < benchmark.warmup + benchmark.steps; ++step) {
    input.step = step;
    const int64_t faults = minor_page_faults();
    const execute::StepResult result = executor.run_step(program, input);
    if (step < benchmark.warmup) continue;
    all.steps.push_back({result.seconds, result.tokens, minor_page_faults() - faults,
                         peak_resident_bytes(), result.peak_allocated_bytes,
                         device.memory().reserved_bytes, result.loss});
  }
  if (benchmark.kernel_times) {
    ++input.step;
    all.kernels = kernel_times(device, [&] { executor.run_step(program, input); });
  }
  return all;
}

}  // namespace trireme::train
