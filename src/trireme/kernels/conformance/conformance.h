// Whether a kernel keeps its op's contract: the kernel and the reference in float64, side by side over a grid of shapes
// (odd, small, large, empty), options, dtypes, layouts and values.
//
// The bound of an element's error comes from theory. With u the unit roundoff of float32, 2^-24, v that of the result's
// dtype (2^-24, 2^-8 for bfloat16) and y the float64 result of the same inputs (exact in the kernel's dtype),
//
//   |got - y| <= v |y| + (gamma(n) + l v_c) m + n w,      gamma(n) = n u / (1 - n u)
//
// where m is the sum of the magnitudes of the terms that y is the sum of (so that m / |y| is the condition of the sum), n
// the number of float32 operations in the longest chain behind it (Higham 2002, 3.1: any order of a sum of n terms stays
// inside gamma(n - 1) m), l the number of results on the way that a kernel may round to its compute dtype (v_c), and w the
// smallest normal float32: what underflows may become zero. Each trial says its n, l and m.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <string>
#include <vector>

namespace trireme::kernels::conformance {

/// One call of a kernel.
struct Outcome {
  std::string op;
  std::string kernel;
  std::string trial;    ///< "[7, 33] offset 1, bfloat16, strided rows"
  double worst = 0.0;   ///< largest error as a share of its bound; 0 if exact
  std::string problem;  ///< "" if the kernel keeps the contract here
};

/// Ops that trials exist for, in the order of the ops.
std::vector<std::string> ops_with_trials();

/// Runs every trial of the op on the kernel of this name (registry()), and holds it to the workspace that it states. Blocks for up to some seconds. An exception of the
/// kernel is a problem of its trial. Error{kConfig} for an unknown op, kernel, one of another type of device, or an op without trials.
std::vector<Outcome> check(const std::string& op, const std::string& kernel,
                           c10::DeviceType device = c10::kCPU);

/// Calls of random sizes with the device's memory watched: the kernel holds no more than it states (KernelInfo::workspace), and
/// at least four fifths of it, but for what an allocator rounds up. Experts' rows are spread evenly and all on one of them. Empty
/// where nothing is stated, and where the device's allocator counts nothing. Part of check(). On the CPU,
/// device::install_cpu_allocator() comes first.
std::vector<Outcome> check_workspace(const std::string& op, const std::string& kernel,
                                     c10::DeviceType device = c10::kCPU);

/// Whether check_workspace() knows how to call the op.
bool tries_workspace(const std::string& op);

}  // namespace trireme::kernels::conformance
