// Times training steps of a model on random tokens: what `trireme bench train` and the comparison
// with peers measure. The same program, executor and optimizer as a run; no data files, no
// checkpoints.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trireme/data/batch.h"
#include "trireme/model/model_spec.h"
#include "trireme/plan/program.h"
#include "trireme/train/kernel_times.h"

namespace trireme::train {

struct StepBenchmark {
  model::ModelSpec spec;
  plan::Strategy strategy;
  int64_t warmup = 2;  ///< steps left out
  int64_t steps = 3;
  std::string device = "cpu";
  bool kernel_times = false;  ///< of one more step, which is not measured otherwise
};

/// One measured step.
struct StepMeasurement {
  double step_s = 0.0;
  int64_t tokens = 0;
  int64_t page_faults = 0;     ///< minor faults of the process during the step
  int64_t peak_rss_bytes = 0;  ///< of the process so far
  int64_t peak_bytes = 0;      ///< allocated by tensors, this step
  int64_t reserved_bytes = 0;  ///< held by the allocator
  double loss = 0.0;
};

/// A micro-batch of random tokens: the same for the same number.
data::Batch random_batch(const model::ModelSpec& spec, const plan::Strategy& strategy,
                         uint64_t number);

struct StepBenchmarkResult {
  std::vector<StepMeasurement> steps;
  std::vector<KernelTime> kernels;  ///< where they were asked for
};

/// Runs it. Blocks.
StepBenchmarkResult run_step_benchmark(const StepBenchmark& benchmark);

/// Minor page faults and peak resident bytes of this process.
int64_t minor_page_faults();
int64_t peak_resident_bytes();

}  // namespace trireme::train
