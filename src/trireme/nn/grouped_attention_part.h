// Grouped-query attention: x + after(out(attention(rotary(qk_norm(qkv(norm(x))))))), with the norms that the family has and,
// where it has them, sinks.
//
// What each SaveMode holds between forward and backward (N tokens, W = (Hq + 2 Hkv) head_dim):
//   kAll        norm statistics, normed input [N, d], qkv [N, W] after rotary, attention output,
//   logsumexp;
//               with qk_norm the normed and rotated q|k beside the raw qkv, and its statistics
//   kSelective  without the normed input and, with qk_norm, without the normed q|k
//   kInputOnly  nothing but the input
#pragma once

#include <memory>

#include "trireme/nn/attention_part.h"

namespace trireme::nn {

class GroupedAttentionPart final : public AttentionPart {
 public:
  GroupedAttentionPart(const ParameterStore& store, int part, std::shared_ptr<RotaryTable> rotary,
                       PartScope scope = PartScope::kWhole);
  ForwardResult forward(const at::Tensor& hidden, const BatchTensors& batch, bool with_graph,
                        SaveMode mode) override;
  std::unique_ptr<PartGraph> begin(const at::Tensor& hidden, const BatchTensors& batch,
                                   SaveMode mode) override;
  Projected project(const at::Tensor& hidden, const at::Tensor& positions) const override;
  at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) const override;

 private:
  class Graph;
  class Context;
  struct Saved;

  bool has_qk_norm() const { return attention_.qk_norm != model::QkNorm::kNone; }
  at::Tensor heads(const at::Tensor& rows, int64_t first, int64_t count) const;
  /// The same heads as rows of their norm: [N, count, head_dim], or [N, 1, count head_dim] of all heads together.
  at::Tensor normed_heads(const at::Tensor& rows, int64_t first, int64_t count) const;
  double qk_norm_offset() const { return attention_.qk_norm_spec.unit_offset ? 1.0 : 0.0; }
  /// Turns the queries' and keys' heads; `length`: tokens of the sequences that the positions belong to.
  void turn(const at::Tensor& qk, const at::Tensor& positions, int64_t length, bool inverse) const;
  /// With qk_norm: the normed q|k [N, (Hq + Hkv) head_dim] of raw qkv; keeps statistics where
  /// asked.
  at::Tensor normed_qk(const at::Tensor& qkv, bool keep, at::Tensor& q_rstd,
                       at::Tensor& k_rstd) const;
  /// q and k as attention reads them, then v.
  Projected split(const at::Tensor& qkv, const at::Tensor& qk, int64_t batch, int64_t length) const;
  void make_saved(const at::Tensor& x, const BatchTensors& batch, bool keep_statistics,
                  bool keep_normed, bool keep_qkv, Saved& saved) const;
  /// Its first half: queries, keys and values.
  void make_projection(const at::Tensor& x, const BatchTensors& batch, bool keep_statistics,
                       bool keep_normed, Saved& saved) const;
  /// What follows attention, [N, d]; `x`, the input, only where the scope has the residual.
  at::Tensor output_of(const at::Tensor& x, bool keep_statistics, Saved& saved) const;

  Linear qkv_;
  at::Tensor q_norm_;  ///< [head_dim] or [heads head_dim]; undefined without
  at::Tensor k_norm_;
  int place_of_q_norm_ = -1;
};

}  // namespace trireme::nn
