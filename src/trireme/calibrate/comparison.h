// Predictions of steps beside what they take: models and strategies that calibration has not seen.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "trireme/calibrate/step_samples.h"
#include "trireme/plan/profile.h"

namespace trireme::calibrate {

/// At least 20 strategies: micro-batches, lanes, recomputation, copies to the host, ZeRO, pipelines over up to `ranks` ranks (2 at
/// least, or 1: none of those), precisions, sequence lengths; dense models and ones with experts.
std::vector<StepCase> comparison_cases(int ranks);

struct ComparedStep {
  std::string name;
  int ranks = 1;
  double predicted_s = 0.0;
  double undisturbed_s = 0.0;      ///< predicted without what others did to the calibration's steps
  std::vector<double> measured_s;  ///< by step, in the order of the rounds
  std::vector<double> processor_s;  ///< of the same steps: SampledStep::processor_s
  double measured_share =
      0.0;  ///< of the computed time, that is of kinds of instructions that were measured
  double median_s() const;
  /// How well the machine repeats itself: half the distance of the quartiles, as a share of the median.
  double spread() const;
  /// Of the median: predicted / measured - 1.
  double error() const { return predicted_s / median_s() - 1.0; }
};

/// Measures every case `rounds` times, interleaved, a warm-up step and two that count each time. Blocks for minutes.
std::vector<ComparedStep> compare_steps(const std::vector<StepCase>& cases, const MachineUse& use,
                                        const plan::ClusterSpec& machine, int rounds,
                                        const std::function<void(const std::string&)>& progress);

}  // namespace trireme::calibrate
