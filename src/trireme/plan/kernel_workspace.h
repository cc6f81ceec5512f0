// Workspace of the kernels on the CPU, as kernels/ declares it; torch-free so that a plan needs no
// device.
//
// A test in execute/ compares every function here with the kernels room's own answer.
#pragma once

#include <cstdint>

#include "trireme/plan/program.h"

namespace trireme::plan {

/// A product of [rows, inner] by [inner, cols].
int64_t product_workspace_bytes(int64_t rows, int64_t cols, int64_t inner, Precision precision);

/// Attention forward or backward of a micro-batch.
int64_t attention_workspace_bytes(int64_t batch, int64_t seq_len, int64_t heads, int64_t kv_heads,
                                  int64_t head_dim, Precision precision, bool backward);

/// Fused linear cross-entropy with `chunk_rows` rows of logits at once.
int64_t cross_entropy_workspace_bytes(int64_t chunk_rows, int64_t vocab_size, int64_t hidden,
                                      Precision precision);

/// Partial sums of a norm's weight gradients.
int64_t norm_backward_workspace_bytes(int64_t hidden, model::NormKind kind);

}  // namespace trireme::plan
