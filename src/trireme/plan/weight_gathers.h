// ZeRO 3: weights of parts that come for their uses and go. Internal to this room.
#pragma once

#include <vector>

#include "trireme/plan/program.h"

namespace trireme::plan {

/// Puts a gather (kGatherParameters with a buffer of its own) before the uses of every part that gathers_for_use(), over ranks of
/// its group (`groups`, by part): Strategy::weights_ahead layers ahead of them, as soon as the part before those has been computed with. Whole layers,
/// as a layer's parts differ in what they compute and bring: over all of them it comes out even. The buffer lives until the last
/// use; uses that follow one another within that distance share it. So no more than the parts of those layers and one more, and
/// what they share with others, are whole at a time. Nothing of a program that has no such parts.
/// A layer counts as many parts as the largest one of the model has.
void insert_weight_gathers(const model::ModelSpec& spec, Program& program,
                           const std::vector<int>& groups);

}  // namespace trireme::plan
