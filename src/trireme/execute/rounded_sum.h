// The addition of two nodes of the tree of lanes where its sums are bf16 (Strategy::gradient_sums, docs/reduction.md).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace trireme::execute {

/// left = bf16(bf16(left) + bf16(right)), each rounded to the nearest, ties to even; the sum inside is float32. Both float32 or both
/// bfloat16, contiguous, as many elements. Thread-safety: the step thread only.
void add_rounded(at::Tensor& left, const at::Tensor& right);

}  // namespace trireme::execute
