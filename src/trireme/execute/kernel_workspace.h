// What this machine's kernels hold while they run, for the planner's prediction of memory.
#pragma once

#include "trireme/plan/kernel_workspace.h"

namespace trireme::execute {

/// Threads and ways of multiplying bfloat16 as they are now.
plan::KernelWorkspace kernel_workspace();

}  // namespace trireme::execute
