// Which instructions of a step a device can record and run again: those of attentions and dense MLPs, whose shapes are the same in
// every micro-batch and which read nothing back. Pure.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "trireme/plan/program.h"

namespace trireme::plan {

/// Consecutive instructions of one micro-batch. What it needs from before it, and what others need of it, has a place that stays.
struct RecordedRun {
  int first = 0;  ///< instruction ids, [first, end)
  int end = 0;
  int64_t micro_batch = 0;
  std::vector<int> takes;  ///< kHidden and kHiddenGradient buffers that others made
  std::vector<int> gives;  ///< those of its own that others use
};

struct RecordedWork {
  std::vector<RecordedRun> runs;  ///< in issue order
  /// By micro-batch: equal where the same recorded work does for both.
  std::map<int64_t, std::string> alike;
  /// By buffer: of a kParameterGradient its place among the accumulators of its part, which stay where they are from step to
  /// step; else -1. As few places as there are accumulators at once.
  std::vector<int> places;
  std::vector<int> num_places;  ///< by part
};

/// Of a finished program.
RecordedWork recorded_work(const model::ModelSpec& spec, const Program& program);

/// Why a strategy's steps cannot be recorded; empty if they can.
std::vector<std::string> validate_recording(const model::ModelSpec& spec, const Strategy& strategy);

/// What recorded work holds all the time becomes resident: accumulators, what its instructions make for each other, their
/// workspace, and what it takes and gives. Of those buffers nothing is held any more. For Strategy::record.
void hold_recorded_work(const model::ModelSpec& spec, Program& program);

}  // namespace trireme::plan
