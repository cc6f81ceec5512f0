// What software that is not Trireme holds: bytes by part. Internal to this room.
#pragma once

#include <vector>

#include "trireme/plan/prediction.h"

namespace trireme::plan {

/// Of one part and one micro-batch on a rank, in bytes.
struct KeptBytes {
  double output = 0.0;    ///< the hidden state that the next part begins with
  double saved = 0.0;     ///< beside it
  double gradient = 0.0;  ///< of the output
  double working = 0.0;   ///< more while the backward of the part runs
};

std::vector<KeptBytes> stack_kept_bytes(const PlannedRun& run);  ///< by part
/// Of a part's output between forward and backward, where recomputation may do without it.
double stack_hidden_bytes(const PlannedRun& run, const std::vector<KeptBytes>& kept, int part);
/// Held all the time by a rank with so many parameters, `largest` of them in one part.
MemoryByKind stack_held_bytes(const PlannedRun& run, const RankParameters& own, double largest);

}  // namespace trireme::plan
