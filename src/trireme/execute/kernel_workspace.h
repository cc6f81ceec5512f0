// What this machine's kernels hold while they run, for the planner's prediction of memory.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "trireme/plan/kernel_workspace.h"

namespace trireme::execute {

/// Of the kernels that the registry would choose now: the processor's by the plan's formulas, with threads and ways of
/// multiplying as they are; sim's hold nothing; others what they state.
plan::KernelWorkspace kernel_workspace(at::Device device = at::kCPU,
                                       plan::Precision precision = plan::Precision::kFp32);

/// Of the run file's device ("cpu", "cuda:1"), which need not be there: of a device that is not, sim's hold nothing, and the
/// processor's are an estimate of others.
/// `records`: Strategy::record.
plan::KernelWorkspace kernel_workspace_of(const std::string& name, plan::Precision precision,
                                          bool records);

/// How this machine and this torch multiply, in words: runs with another answer may differ in their last bits.
std::string arithmetic_name();

}  // namespace trireme::execute
