// A predicted world as traces: what `plan simulate --cluster` shows of its timeline. Pure.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "trireme/plan/prediction.h"
#include "trireme/plan/trace.h"

namespace trireme::plan {

/// One trace for every simulated rank, in their order.
std::vector<Trace> world_traces(const PlannedRun& run, const PredictedWorld& world);

/// "rank 3", or "stage 1, 512 ranks alike" where one rank stands for all of its stage.
std::vector<std::string> rank_names(const PlannedRun& run, const PredictedWorld& world);

/// Seconds of the critical path, by the kind of the instruction that it goes through.
std::map<std::string, double> critical_seconds(const PredictedWorld& world);

}  // namespace trireme::plan
