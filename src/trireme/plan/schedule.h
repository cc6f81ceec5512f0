// Pipeline schedules: in which order a rank works on its stages' micro-batches. Pure.
//
// A schedule knows neither layers nor bytes nor seconds. plan/program.h makes instructions of it, so a new one needs nothing
// but a function here. Papers: GPipe (arXiv 1811.06965), 1F1B (PipeDream-Flush, 2006.09503), interleaved (2104.04473), ZB-H1
// (2401.10241), ZB-V and V-Half (2405.15362), DualPipeV (DeepSeek-V3, 2412.19437, cut in half).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trireme/plan/parallel.h"

namespace trireme::plan {

enum class Work {
  kForward,
  kBackwardInput,   ///< gradient of the stage's input
  kBackwardWeight,  ///< gradients of its parameters
  kBackward         ///< both at once
};

/// What a rank does next.
struct Action {
  Work work = Work::kForward;
  int stage = 0;
  int64_t micro_batch = 0;
  /// This forward and the next action, a backward, may be done part by part in turn: the communication of one behind the
  /// other's computation.
  bool with_next = false;
  bool operator==(const Action&) const = default;
};
/// "3F0", "3I0", "3W0", "3B0": stage, work, micro-batch.
std::string describe(const Action& action);

struct PipelineSchedule {
  int64_t micro_batches = 0;
  std::vector<int> rank_of_stage;  ///< stages in the order of the model's layers
  std::vector<std::vector<Action>> ranks;
  int num_ranks() const { return static_cast<int>(ranks.size()); }
  int num_stages() const { return static_cast<int>(rank_of_stage.size()); }
  bool operator==(const PipelineSchedule&) const = default;
};

/// Stages a rank has in a schedule that gives no choice: 2 of a V, 1 of the others; 0: chosen by `parallel.chunks` (at least
/// 2), or by the file.
int fixed_chunks(ScheduleKind kind);

/// Any numbers of at least 1; `chunks` as fixed_chunks() says. Every stage does forwards, backward-inputs and
/// backward-weights each in the order of micro-batches, so that gradients are summed in one order whatever the schedule is.
/// Not of kText: parse_schedule().
PipelineSchedule make_schedule(ScheduleKind kind, int ranks, int64_t micro_batches, int chunks);

/// One rank: every forward but the first goes together with the backward of the micro-batch before it.
PipelineSchedule interleaved_pairs(int64_t micro_batches);

/// What is wrong with a schedule: stages that are no rank's, work that is missing or done twice or out of order, ranks that
/// wait for one another for ever. Empty: it runs.
struct ScheduleProblem {
  int rank = -1;  ///< whose list shows it; -1: none
  std::string text;
};
std::vector<ScheduleProblem> schedule_problems(const PipelineSchedule& schedule);

/// Time of each kind of work of one stage and micro-batch.
struct StageCost {
  double forward = 1.0;
  double backward_input = 1.0;
  double backward_weight = 1.0;
  double of(Work work) const;
};

struct ScheduleTimeline {
  /// By rank and place in its list.
  std::vector<std::vector<double>> start;
  std::vector<std::vector<double>> end;
  double makespan = 0.0;
  std::vector<double> busy;     ///< by rank
  double bubble_share() const;  ///< idle share of all ranks' time until the last one is done
};
/// Every rank does its list in order, as early as what it needs is there; what is done together begins and ends together. Transfers take `transfer` between ranks. `costs` is
/// by stage, or one entry for all. Error{kInternal} if schedule_problems() has any.
ScheduleTimeline run_schedule(const PipelineSchedule& schedule, const std::vector<StageCost>& costs,
                              double transfer = 0.0);

/// Most forwards of a rank's stages whose activations are kept at once: until their backward-input, or until their
/// backward-weight too.
enum class KeptUntil { kBackwardInput, kBackwardWeight };
std::vector<int64_t> peak_in_flight(const PipelineSchedule& schedule, KeptUntil until);

}  // namespace trireme::plan
