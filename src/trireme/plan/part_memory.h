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

/// Of an attention part whose AttentionSpec has `latent`; as part_bytes().
PartBytes latent_attention_bytes(const model::ModelSpec& spec, const Strategy& strategy, int layer,
                                 Recompute mode);
/// Of a router, dispatch, experts or combine part (moe_memory.cpp).
PartBytes moe_part_bytes(const model::ModelSpec& spec, const Strategy& strategy, int part,
                         Recompute mode);
/// Rows of all experts of a MoE layer's part for one micro-batch; the most where some may be dropped.
int64_t expert_rows(const model::ModelSpec& spec, const Strategy& strategy, int part);

}  // namespace trireme::plan
