// What a step takes, and a rank holds, at least: without building or running its programs. Pure.
//
// Bounds of the search (search.h); docs/planner.md says why each is never above what predict() gives. All of them are relaxations
// of the event-time simulation: the same durations, fewer things to wait for.
#pragma once

#include <cstdint>
#include <vector>

#include "trireme/plan/part_transfers.h"
#include "trireme/plan/schedule.h"
#include "trireme/plan/stages.h"

namespace trireme::plan {

/// Parts of a model in classes of those that do the same work with as many parameters.
struct PartClasses {
  std::vector<int> of_part;
  std::vector<int> first;              ///< by class: a part of it
  std::vector<char> has_parameters;    ///< by part
  std::vector<PartElements> elements;  ///< by part
  explicit PartClasses(const PlannedRun& run);
};

/// Seconds of a rank's compute instructions, by class.
struct PartSeconds {
  std::vector<double> forward;
  std::vector<double> recompute;
  std::vector<double> backward_input;
  std::vector<double> backward_weight;
  std::vector<double> loss;
  PartSeconds(const PlannedRun& run, const PartClasses& classes, CostModel& cost);
};

/// Seconds of what replicas exchange, and of the optimizer, by class.
struct OnceSeconds {
  std::vector<double> reduce;
  std::vector<double> gather_gradients;
  std::vector<double> gather;
  std::vector<double> optimizer;
  double send = 0.0;
  double tell = 0.0;
  OnceSeconds(const PlannedRun& run, const PartClasses& classes, CostModel& cost);
};

/// One candidate; borrows all of it.
struct FloorTask {
  const PlannedRun& run;
  const PartClasses& classes;
  const PartSeconds& parts;
  const OnceSeconds& once;
  const Stages& stages;
  int64_t micro_batches;  ///< of a rank
};

/// Seconds of one stage and micro-batch on its rank.
struct StageSeconds {
  double forward = 0.0;
  double backward_input = 0.0;  ///< with recomputation and loss
  double backward_weight = 0.0;
  double after_send =
      0.0;  ///< of a whole backward, what comes when the input's gradient is on its way
  double optimizer = 0.0;  ///< of a step
  double gathers = 0.0;    ///< ZeRO 3: of a micro-batch's forward and backward
  double both() const { return forward + backward_input + backward_weight; }
};
/// Depends on the schedule only in the number of stages.
std::vector<StageSeconds> stage_seconds(const FloorTask& task);

/// Work of the busiest rank, with what must come before and after it. Any schedule; `stages` are stage_seconds().
double busy_floor_s(const FloorTask& task, const std::vector<StageSeconds>& stages);

/// The schedule's actions in event time: queues of computation and of replicas' transfers, waits between stages; no waits for
/// room in a queue or for what was sent. `schedule` is of the task's micro-batches.
double timeline_floor_s(const FloorTask& task, const PipelineSchedule& schedule);

/// Which of a rank's stages keep how many micro-batches at once when a backward begins: those that no other one covers.
struct InFlight {
  int stage = 0;  ///< whose backward begins
  std::vector<int64_t>
      kept;  ///< by place among the rank's stages, ascending; without the one that begins
  std::vector<char> summed;  ///< by the same: gradients of its parameters have been begun
};
struct RankInFlight {
  std::vector<int> stages;  ///< of the rank, ascending
  std::vector<InFlight> moments;
};
std::vector<RankInFlight> in_flight(const PipelineSchedule& schedule);

/// Bytes of one stage on its rank.
struct StageBytes {
  double held = 0.0;      ///< of a micro-batch between forward and backward
  double backward = 0.0;  ///< most at once of one whose backward runs
  double gradients =
      0.0;  ///< of its parameters, where programs make and free them (PlannedRun::own_memory)
  double always = 0.0;  ///< the same: weights and optimizer states
  RankParameters parameters;
  double largest = 0.0;  ///< parameters of a part
};
/// Depends on the schedule only in the number of stages.
std::vector<StageBytes> stage_bytes(const PlannedRun& run, const PartClasses& classes,
                                    const Stages& stages);

/// Bytes of the fullest rank, at moments when a backward begins; activations of a stage that are certainly kept. `stages` are
/// stage_bytes(), `ranks` in_flight() of memory_micro_batches().
double memory_floor_bytes(const PlannedRun& run, const std::vector<StageBytes>& stages,
                          const std::vector<RankInFlight>& ranks);

/// Whether the part's forward runs again in its backward.
bool runs_again(const PlannedRun& run, int part);
/// The cut that programs of this run have.
Stages stages_of(const PlannedRun& run);
/// Micro-batches whose memory tells that of any larger number, as predict() takes it.
int64_t memory_micro_batches(const Strategy& strategy);

/// All at once, for one run: the higher bound of time.
double step_floor_s(const PlannedRun& run);

}  // namespace trireme::plan
