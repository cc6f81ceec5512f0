// Measures a machine as the planner needs it: kernels by shape, instructions of Trireme's own steps, links, what the host does beside.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "trireme/calibrate/step_samples.h"
#include "trireme/plan/measured_spans.h"
#include "trireme/plan/profile.h"

namespace trireme::calibrate {

struct CalibrationOptions {
  MachineUse machine;
  std::string name;  ///< of the cluster, and of device, node and network
  int ranks = 2;     ///< for links and for how ranks slow each other down; 1: neither is measured
  int rounds = 5;    ///< over everything, interleaved
  int steps = 4;     ///< of a case in a round, after one that does not count
  int64_t largest_product = 2048;  ///< KernelRatesOptions::largest
  std::vector<plan::Precision> precisions = {plan::Precision::kFp32, plan::Precision::kBf16};
  /// Further models whose instructions are measured: a run file's own.
  std::vector<StepCase> more;
  std::function<void(const std::string&)> progress = {};  ///< a line of what is measured now
};

struct Calibration {
  plan::ClusterSpec machine;
  int64_t spans = 0;  ///< of instructions
  int64_t steps = 0;
  double seconds = 0.0;  ///< that it took
};

/// Models and layouts whose steps tell what instructions take: dense ones and ones with experts, of several widths, sequence and
/// micro-batch sizes, with and without recomputation and copies to the host. `scale` times as wide as for a processor.
std::vector<StepCase> calibration_cases(plan::Precision precision, int64_t scale);

/// A run of a case on a machine, as plan::predict() wants it.
plan::PlannedRun planned_run(const StepCase& one, const plan::ClusterSpec& machine);

/// Blocks for minutes. Throws what the device throws.
Calibration calibrate(const CalibrationOptions& options);

/// Host, processor, system and versions in one line, for a profile's `source`.
std::string source_line(const MachineUse& use, const std::string& program_version,
                        const std::string& date);

}  // namespace trireme::calibrate
