// Access to rows of strided tensors, and the fixed-block reduction over rows that all parameter
// gradients share.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace trireme::kernels::cpu {

/// The rows of a [N, d] or [N, heads, d] tensor whose last dimension is contiguous.
template <class T>
struct Rows {
  T* base = nullptr;
  int64_t count = 0;
  int64_t heads = 1;
  int64_t outer_stride = 0;
  int64_t head_stride = 0;
  T* row(int64_t r) const {
    return heads == 1 ? base + r * outer_stride
                      : base + (r / heads) * outer_stride + (r % heads) * head_stride;
  }
};

/// Checks the layout; `what` names the tensor in the message.
template <class T>
Rows<T> rows_of(const at::Tensor& tensor, const char* what);

extern template Rows<float> rows_of<float>(const at::Tensor&, const char*);
extern template Rows<at::BFloat16> rows_of<at::BFloat16>(const at::Tensor&, const char*);

/// Blocks that a reduction over `rows` rows is cut into: a function of `rows` alone, so sums do not
/// depend on threads.
int64_t reduction_blocks(int64_t rows);

/// out[c] (= or +=) sum of partials[b][c] over blocks by a fixed binary tree; destroys partials
/// [blocks, width].
void combine_blocks(float* partials, int64_t blocks, int64_t width, float* out, bool accumulate);

}  // namespace trireme::kernels::cpu
