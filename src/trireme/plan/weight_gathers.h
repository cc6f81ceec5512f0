// ZeRO 3: weights of parts that come for their uses and go. Internal to this room.
#pragma once

#include "trireme/plan/program.h"

namespace trireme::plan {

/// Puts a gather (kGatherParameters with a buffer of its own) before the uses of every part that gathers_for_use(), over ranks of
/// `group`: Strategy::weights_ahead parts ahead of them, as soon as the part before those has been computed with. The buffer
/// lives until the last use; uses that follow one another within that distance share it. So no more than weights_ahead + 1 parts,
/// and what they share with others, are whole at a time. Nothing of a program that has no such parts.
void insert_weight_gathers(const model::ModelSpec& spec, Program& program, int group);

}  // namespace trireme::plan
