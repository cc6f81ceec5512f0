// Steps of training on this machine, timed instruction by instruction: the executor's own, on random tokens.
#pragma once

#include <string>
#include <vector>

#include "trireme/comm/local/local_world.h"
#include "trireme/model/model_spec.h"
#include "trireme/plan/program.h"

namespace trireme::calibrate {

/// What is run: a model and how it is laid out.
struct StepCase {
  std::string name;
  model::ModelSpec spec;
  plan::Strategy strategy;
};

/// On what it is run. Ranks are threads of this process.
struct MachineUse {
  std::string device =
      "cpu";  ///< as in a run file; of several ranks each has the device of its number, but for the CPU
  int threads = 0;  ///< of a rank, for the processor's work; 0: as ATen has them
  comm::LocalOptions links;
};

/// The device of a rank. Errors as device::get_device().
std::string device_of_rank(const std::string& device, int rank, int ranks);

struct SampledStep {
  double seconds =
      0.0;  ///< from its begin to the next one's, on the device's clock, of the slowest rank
  /// Of the process's processors, all together: what a step of one rank and one thread takes where nobody else wants them.
  double processor_s = 0.0;
  std::vector<std::vector<double>> durations_s;  ///< by rank and instruction
};

struct StepSamples {
  std::vector<plan::Program> programs;  ///< by rank
  std::vector<SampledStep> steps;
};

/// Makes the model and takes `warmup` steps that do not count, then `steps`. Blocks. Throws what the executor throws.
StepSamples sample_steps(const StepCase& one, const MachineUse& use, int warmup, int steps);

}  // namespace trireme::calibrate
