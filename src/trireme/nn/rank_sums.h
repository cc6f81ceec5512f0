// Sums of what tensor parallel ranks computed, in a fixed order.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "trireme/model/model_spec.h"

namespace trireme::nn {

/// pieces[0] + pieces[1] + ... + bias + residual, in this order and in float32, rounded once. pieces [ranks, n, d] of the compute
/// dtype (float32 or bfloat16), contiguous; bias [d] and residual [n, d] of the same, or undefined. A new [n, d]. Workspace: in
/// bfloat16 a float32 [n, d].
at::Tensor sum_in_order(const at::Tensor& pieces, const at::Tensor& bias = {},
                        const at::Tensor& residual = {});

/// By rank: elements of its rows of [tokens, width].
std::vector<int64_t> token_counts(const model::TensorShare& share, int64_t tokens, int64_t width);

}  // namespace trireme::nn
