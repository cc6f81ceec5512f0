// Instructions that were measured, by kind and size, and the rates that follow from them. Pure.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "trireme/plan/own_prediction.h"
#include "trireme/plan/trace.h"

namespace trireme::plan {

/// What the host does beside instructions, in seconds.
struct HostTimes {
  double gap_s = 0.0;   ///< of an instruction
  double step_s = 0.0;  ///< of a step
  /// So many times longer whole steps take, in the median, than their instructions usually do and what is between them: skewed times
  /// do not add up to usual ones, and others want the processors too.
  double slowdown = 1.0;
};

class MeasuredSpans {
 public:
  /// Steps of one rank that are all alike: `durations_s` by step and instruction; of each instruction what is usual
  /// counts (usual_durations()). `steps_s`:
  /// how long each step took; empty if that is not to count for the host's times: of a rank that waited for others, or of a device
  /// whose queues overlap.
  void add(const PlannedRun& run, const Program& program,
           const std::vector<std::vector<double>>& durations_s, const std::vector<double>& steps_s);

  /// One rate a kind of instruction, in the order of their names. Kinds that took no time, as most things do on a clock that only
  /// counts kernels, have a rate of zero.
  std::vector<InstructionRate> rates() const;
  /// What steps took beyond their instructions: least squares over all of them, none of the two negative; of steps with equally many
  /// instructions all of it is theirs.
  HostTimes host_times() const;
  int64_t num_spans() const { return spans_; }

 private:
  struct Step {
    double instructions = 0.0;
    double beyond_s = 0.0;
    double usual_s = 0.0;   ///< of its instructions
    double median_s = 0.0;  ///< of the whole
  };
  HostTimes beside_instructions() const;
  std::map<InstructionClass, std::vector<MeasuredInstruction>> measured_;
  std::map<InstructionClass, int64_t> without_time_;
  std::vector<Step> steps_;
  int64_t spans_ = 0;
};

/// Where most of the values are: the half-sample mode (Bickel & Fruehwirth 2006), the middle of the shortest half of the shortest half
/// and so on. What others do on a machine makes some measurements longer and none shorter; where it makes half of them longer, their
/// median is off, and this is not. Error{kInternal} for no value.
double most_common(std::vector<double> values);

/// most_common() by instruction, of steps that are alike.
std::vector<double> usual_durations(const std::vector<std::vector<double>>& durations_s);

}  // namespace trireme::plan
