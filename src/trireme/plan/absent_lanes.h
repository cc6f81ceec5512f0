// Where lanes are not a multiple of the ranks, a rank that has a lane less than others takes part in their transfers as if it had
// as many: under ZeRO 3 it serves their gathers, and where parts of several micro-batches take turns, or in a pipeline, its parts' sums
// go in the order of theirs. Internal to this room.
#pragma once

#include <cstdint>
#include <vector>

#include "trireme/plan/program.h"

namespace trireme::plan {

/// lanes_of(), and under ZeRO 3, in a pipeline, or of tensor parallel ranks whose micro-batches take turns and whose gradients are
/// sent lane by lane, as many as any rank has: one that there is not is numbered from Strategy::lanes on.
std::vector<int64_t> lanes_with_absent(const Strategy& strategy, int64_t index, int64_t ranks);

/// Of a program that was written for absent lanes too: takes out what computes, loads or sends for them. What remains of them are
/// the transfers that other ranks take part in, in the order in which those issue them; where a use was the last one of gathered
/// weights there is a release (kReleaseParameters). Program::lanes has those that there are, afterwards.
void remove_absent_lanes(Program& program);

}  // namespace trireme::plan
