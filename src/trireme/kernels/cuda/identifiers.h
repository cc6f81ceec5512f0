// Numbers of rows of a table, checked.
#pragma once

#include <ATen/core/Tensor.h>

#include "trireme/kernels/cuda/launch.h"

namespace trireme::kernels::gpu {

/// Waits for the stream. Error{kData} naming the first of `ids` (int64, contiguous) that is outside 0 .. limit - 1 and not
/// `ignored`.
void check_ids(const at::Tensor& ids, int64_t limit, int64_t ignored, const char* what,
               Stream stream);

}  // namespace trireme::kernels::gpu
