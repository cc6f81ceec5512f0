// What this machine's kernels hold while they run, for the planner's prediction of memory.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "trireme/plan/kernel_workspace.h"

namespace trireme::execute {

/// Threads and ways of multiplying bfloat16 as they are now. Of PrivateUse1, taken as sim's: none, for its kernels' workspace
/// is the host's.
plan::KernelWorkspace kernel_workspace(at::Device device = at::kCPU);

/// How this machine and this torch multiply, in words: runs with another answer may differ in their last bits.
std::string arithmetic_name();

}  // namespace trireme::execute
