// Matrix products by the wheel's library.
#pragma once

#include <ATen/core/Tensor.h>

namespace trireme::kernels::gpu {

/// out = a b, or out += a b, rounded once. a [m, k], b [k, n] of one dtype, transposed or strided; out [m, n] of that dtype or
/// float32.
void product(const at::Tensor& a, const at::Tensor& b, at::Tensor out, bool accumulate);

}  // namespace trireme::kernels::gpu
