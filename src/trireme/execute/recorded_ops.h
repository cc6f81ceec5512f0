// What recorded work may call.
#pragma once

#include <string>
#include <vector>

namespace trireme::execute {

/// Ops (kernels/ops.h) that the parts of plan::recorded_work() call: whoever records wants kernels of them that can be.
const std::vector<std::string>& recorded_ops();

}  // namespace trireme::execute
