// What a rank holds of weights and optimizer states: plan's slices in the words of nn/ and optim/.
#pragma once

#include <vector>

#include "trireme/model/element_range.h"
#include "trireme/plan/program.h"

namespace trireme::execute {

/// For ParameterStore: the masters of each part on the program's rank; empty where it holds all. Under ZeRO its slice, where
/// products read a compute copy or weights that come for their use; all of a part with a selection bias, which is read in float32.
std::vector<model::ElementRange> master_shares(const model::ModelSpec& spec,
                                               const plan::Program& program);

/// For ParameterStore: parts whose weights are there only while they are used (ZeRO 3); empty: none.
std::vector<char> gathered_parts(const model::ModelSpec& spec, const plan::Program& program);

/// For make_optimizer(): the elements that the program's rank updates, none of parts that other stages have; empty where it updates
/// all.
std::vector<model::ElementRange> state_shares(const model::ModelSpec& spec,
                                              const plan::Program& program);

}  // namespace trireme::execute
