// What the memory models of the parts share. Internal to this room.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

#include "trireme/plan/memory.h"

namespace trireme::plan {

/// Follows an instruction through its allocations: the workspace is how far the highest point lies
/// above what the instruction makes.
class HighWater {
 public:
  void hold(int64_t bytes) {
    live_ += bytes;
    highest_ = std::max(highest_, live_);
  }
  void drop(int64_t bytes) { live_ -= bytes; }
  /// Held and dropped at once.
  void pass(int64_t bytes) { highest_ = std::max(highest_, live_ + bytes); }
  int64_t above(int64_t made) const { return std::max<int64_t>(highest_ - made, 0); }

 private:
  int64_t live_ = 0;
  int64_t highest_ = 0;
};

inline int64_t norm_statistics(const model::NormSpec& norm, int64_t tokens) {
  return tensor_bytes(4 * tokens) * (norm.kind == model::NormKind::kLayerNorm ? 2 : 1);
}

inline int64_t norm_gradients(const model::NormSpec& norm, int64_t size) {
  return tensor_bytes(4 * size) * (norm.bias ? 2 : 1);
}

inline int64_t norm_statistics(const std::optional<model::NormSpec>& norm, int64_t tokens) {
  return norm ? norm_statistics(*norm, tokens) : 0;
}

inline int64_t norm_gradients(const std::optional<model::NormSpec>& norm, int64_t size) {
  return norm ? norm_gradients(*norm, size) : 0;
}

/// Sizes that all kinds of parts share.
struct Sizes {
  Sizes(const model::ModelSpec& spec, const Strategy& strategy)
      : kernels(strategy.kernels),
        precision(strategy.precision),
        tokens(strategy.tokens()),
        width(spec.hidden),
        hidden(activations(width)) {}

  int64_t matrix(int64_t rows, int64_t columns) const {
    return tensor_bytes(rows * columns * element_bytes(precision));
  }
  int64_t activations(int64_t columns) const { return matrix(tokens, columns); }
  int64_t product(int64_t cols, int64_t inner, bool bias_and_residual = false) const {
    return kernels.product(tokens, cols, inner, precision, bias_and_residual);
  }
  int64_t weight_product(int64_t out, int64_t in, bool bias) const {
    return std::max(kernels.weight_product(tokens, out, in, precision),
                    bias ? kernels.bias_gradient(tokens, out) : 0);
  }

  const KernelWorkspace& kernels;
  Precision precision;
  int64_t tokens;
  int64_t width;
  int64_t hidden;
};

/// Of grouped attention, on one rank or on one of those that share its sequences. Borrows what it is made from.
struct AttentionSizes : Sizes {
  AttentionSizes(const model::ModelSpec& spec, const Strategy& strategy, int layer)
      : Sizes(spec, strategy),
        strategy(strategy),
        where(spec.layers[static_cast<size_t>(layer)]),
        attention(where.attention) {}

  const Strategy& strategy;
  const model::LayerSpec& where;
  const model::AttentionSpec& attention;
  int64_t normed = where.attention_norm ? hidden : 0;
  int64_t projected = where.attention_post_norm ? hidden : 0;
  int64_t query_width = attention.num_heads * attention.head_dim;
  int64_t kv_width = attention.num_kv_heads * attention.head_dim;
  int64_t qkv_width = query_width + 2 * kv_width;
  int64_t qkv = activations(qkv_width);
  int64_t attended = activations(query_width);
  int64_t logsumexp = tensor_bytes(4 * tokens * attention.num_heads);
  int64_t statistics = norm_statistics(where.attention_norm, tokens);
  int64_t after_statistics = norm_statistics(where.attention_post_norm, tokens);
  int64_t after_gradients = norm_gradients(where.attention_post_norm, width);
  // With a norm on every head, or on all together, queries and keys are normed and rotated beside qkv.
  bool has_qk_norm = attention.qk_norm != model::QkNorm::kNone;
  bool all_heads = attention.qk_norm == model::QkNorm::kAllHeads;
  int64_t qk = has_qk_norm ? activations(query_width + kv_width) : 0;
  int64_t q_rows = all_heads ? 1 : attention.num_heads;
  int64_t k_rows = all_heads ? 1 : attention.num_kv_heads;
  int64_t qk_statistics =
      has_qk_norm ? tensor_bytes(4 * tokens * q_rows) + tensor_bytes(4 * tokens * k_rows) : 0;
  int64_t q_norm_width = all_heads ? query_width : attention.head_dim;
  int64_t k_norm_width = all_heads ? kv_width : attention.head_dim;
  int64_t qk_norm_gradients =
      has_qk_norm ? tensor_bytes(4 * q_norm_width) + tensor_bytes(4 * k_norm_width) : 0;
  int64_t sinks = attention.sinks ? tensor_bytes(4 * attention.num_heads) : 0;
};

/// Of an attention part whose AttentionSpec has `latent`; as part_bytes().
PartBytes latent_attention_bytes(const model::ModelSpec& spec, const Strategy& strategy, int layer,
                                 Recompute mode);
/// Of a router, dispatch, experts or combine part (moe_memory.cpp).
PartBytes moe_part_bytes(const model::ModelSpec& spec, const Strategy& strategy, int part,
                         Recompute mode);
/// Rows of all experts of a MoE layer's part for one micro-batch; the most where some may be dropped.
int64_t expert_rows(const model::ModelSpec& spec, const Strategy& strategy, int part);

}  // namespace trireme::plan
