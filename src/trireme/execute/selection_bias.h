// The bias that keeps experts' loads even (arXiv 2408.15664).
#pragma once

#include <cstdint>
#include <vector>

#include "trireme/nn/parameter_store.h"

namespace trireme::execute {

/// Once a step: experts that took more than the mean of `load`, tokens of every expert in the global batch, become less
/// attractive, the others more. `part`: a router; nothing where it has no such bias. Whole masters. Waits for the device.
void move_selection_bias(nn::ParameterStore& store, int part, const std::vector<int64_t>& load);

}  // namespace trireme::execute
