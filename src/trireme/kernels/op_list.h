// Every op of ops.h and moe_ops.h, once: X(op, dtypes). `dtypes` names what its contract computes in, and what a kernel
// is chosen by: kCompute for float32 and bfloat16, else that one alone.
#pragma once

#define TRIREME_KERNEL_OPS(X)                     \
  X(linear, kCompute)                             \
  X(linear_backward_input, kCompute)              \
  X(linear_backward_weight, kCompute)             \
  X(bias_gradient, kCompute)                      \
  X(gram, kBFloat16)                              \
  X(rms_norm, kCompute)                           \
  X(rms_norm_backward, kCompute)                  \
  X(layer_norm, kCompute)                         \
  X(layer_norm_backward, kCompute)                \
  X(activation, kCompute)                         \
  X(activation_backward, kCompute)                \
  X(gated_activation, kCompute)                   \
  X(gated_activation_backward, kCompute)          \
  X(rotary_, kCompute)                            \
  X(join_shared_key, kCompute)                    \
  X(join_shared_key_backward, kCompute)           \
  X(embedding, kCompute)                          \
  X(embedding_backward, kCompute)                 \
  X(attention, kCompute)                          \
  X(attention_backward, kCompute)                 \
  X(linear_cross_entropy, kCompute)               \
  X(adamw_, kFloat)                               \
  X(sum_of_squares, kFloat)                       \
  X(squares_by_block, kFloat)                     \
  X(add_, kFloat)                                 \
  X(scaled_sum, kFloat)                           \
  X(convert, kFloat)                              \
  X(route, kFloat)                                \
  X(route_backward, kFloat)                       \
  X(balance, kFloat)                              \
  X(sort_by_expert, kFloat)                       \
  X(gather_rows, kCompute)                        \
  X(sum_rows, kCompute)                           \
  X(weights_of_rows, kFloat)                      \
  X(weights_of_choices, kFloat)                   \
  X(weighted_gated_activation, kCompute)          \
  X(weighted_gated_activation_backward, kCompute) \
  X(grouped_linear, kCompute)                     \
  X(grouped_linear_backward_input, kCompute)      \
  X(grouped_linear_backward_weight, kCompute)     \
  X(grouped_bias, kCompute)                       \
  X(grouped_bias_backward, kCompute)
