// Ops on the device: kernels of this folder (launch.h) and products, attention and sorts of the wheel, with the names and
// contracts of kernels/ops.h and moe_ops.h. What is not here has only its reference there ("aten").
//
// Beside the contract: everything is issued to the current stream of the tensors' device; the call returns before it is done
// unless it returns values. embedding and linear_cross_entropy wait, for ids outside the table are an error. Products are
// those of the wheel's library: a row's bits may depend on how many rows there are.
#pragma once

#include <string_view>

#include "trireme/kernels/plugin.h"

/// Every op that has a kernel here.
#define TRIREME_GPU_OPS(X)              \
  X(linear)                             \
  X(linear_backward_input)              \
  X(linear_backward_weight)             \
  X(bias_gradient)                      \
  X(gram)                               \
  X(rms_norm)                           \
  X(rms_norm_backward)                  \
  X(layer_norm)                         \
  X(layer_norm_backward)                \
  X(activation)                         \
  X(activation_backward)                \
  X(gated_activation)                   \
  X(gated_activation_backward)          \
  X(rotary_)                            \
  X(embedding)                          \
  X(embedding_backward)                 \
  X(attention)                          \
  X(attention_backward)                 \
  X(linear_cross_entropy)               \
  X(adamw_)                             \
  X(sum_of_squares)                     \
  X(squares_by_block)                   \
  X(scaled_sum)                         \
  X(gather_rows)                        \
  X(sum_rows)                           \
  X(weights_of_rows)                    \
  X(weights_of_choices)                 \
  X(weighted_gated_activation)          \
  X(weighted_gated_activation_backward) \
  X(grouped_linear)                     \
  X(grouped_linear_backward_input)      \
  X(grouped_linear_backward_weight)     \
  X(grouped_bias)                       \
  X(grouped_bias_backward)

namespace trireme::kernels::gpu {

namespace ops {
#define X(op) decltype(kernels::op) op;
TRIREME_GPU_OPS(X)
#undef X
}  // namespace ops

/// What the op's kernel of this folder states as its workspace. With those of the wheel that it
/// calls: of the FlashAttention of torch 2.11 (aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp).
WorkspaceBytes workspace_of(std::string_view op);

/// Offers them all under this name, device, priority and needs.
void register_kernels(Registrar& registrar, const KernelInfo& info);

/// Whether the device has the wheel's product of groups (`_grouped_mm`); without it, each group is a product. Set it before
/// the first op.
void set_grouped_products(bool available);
bool grouped_products();

/// Rows that grouped_linear_backward_input adds up at once where several weights lie side by side.
inline constexpr int64_t kRowsOfSum = 4096;

/// Scores that the reference of attention may hold at once, in bytes of float32: above it takes a row of the batch, and above
/// that a key head at a time. 1 GiB at first. Set it before the first op.
void set_attention_score_bytes(int64_t bytes);
int64_t attention_score_bytes();

}  // namespace trireme::kernels::gpu
