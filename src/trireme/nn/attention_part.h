// The attention part: x + after(out(attention(rotary(qk_norm(qkv(norm(x))))))), with the norms that the family has.
//
// What each SaveMode holds between forward and backward (N tokens, W = (Hq + 2 Hkv) head_dim):
//   kAll        norm statistics, normed input [N, d], qkv [N, W] after rotary, attention output,
//   logsumexp;
//               with qk_norm the normed and rotated q|k beside the raw qkv, and its statistics
//   kSelective  without the normed input and, with qk_norm, without the normed q|k
//   kInputOnly  nothing but the input
#pragma once

#include <memory>
#include <optional>

#include "trireme/kernels/ops.h"
#include "trireme/nn/linear.h"
#include "trireme/nn/norm.h"
#include "trireme/nn/parameter_store.h"
#include "trireme/nn/part.h"
#include "trireme/nn/rotary.h"

namespace trireme::nn {

class AttentionPart final : public Part {
 public:
  /// `rotary` is null for models without; it is shared by the layers.
  AttentionPart(const ParameterStore& store, int part, std::shared_ptr<RotaryTable> rotary);
  const model::PartSpec& spec() const override { return spec_; }
  const std::vector<int>& gradient_parameters() const override { return parameters_; }
  ForwardResult forward(const at::Tensor& hidden, const BatchTensors& batch, bool with_graph,
                        SaveMode mode) override;

  // Pieces for generation with a key-value cache. Same kernels, so a token's values are the
  // training forward's, bit for bit (rows of a product do not depend on their number).

  struct Projected {
    at::Tensor q;  ///< [B, T, Hq, head_dim], normed and rotated
    at::Tensor k;  ///< [B, T, Hkv, head_dim]
    at::Tensor v;  ///< [B, T, Hkv, head_dim]; all three are views of one buffer (two with qk_norm)
  };
  /// hidden [B, T, d], positions [B, T] int64.
  Projected project(const at::Tensor& hidden, const at::Tensor& positions) const;
  /// q [B, Tq, Hq, hd] against keys and values [B, Tk, Hkv, hd] (strided views of a cache): query i
  /// sees keys up to i + Tk - Tq. Returns [B, Tq, Hq, hd].
  at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) const;
  /// hidden + out-projection of `attended`; [B, T, d].
  at::Tensor finish(const at::Tensor& hidden, const at::Tensor& attended) const;
  const model::AttentionSpec& attention_spec() const { return attention_; }

 private:
  class Graph;
  struct Saved;

  kernels::AttentionOptions options(const kernels::Segments* segments) const;
  bool has_qk_norm() const { return attention_.qk_norm != model::QkNorm::kNone; }
  at::Tensor heads(const at::Tensor& rows, int64_t first, int64_t count) const;
  /// The same heads as rows of their norm: [N, count, head_dim], or [N, 1, count head_dim] of all heads together.
  at::Tensor normed_heads(const at::Tensor& rows, int64_t first, int64_t count) const;
  double qk_norm_offset() const { return attention_.qk_norm_spec.unit_offset ? 1.0 : 0.0; }
  /// `length`: tokens of the sequences that the positions belong to.
  void rotate(at::Tensor& qk, const at::Tensor& positions, int64_t length, bool inverse) const;
  /// With qk_norm: the normed q|k [N, (Hq + Hkv) head_dim] of raw qkv; keeps statistics where
  /// asked.
  at::Tensor normed_qk(const at::Tensor& qkv, bool keep, at::Tensor& q_rstd,
                       at::Tensor& k_rstd) const;
  /// q and k as attention reads them, then v.
  Projected split(const at::Tensor& qkv, const at::Tensor& qk, int64_t batch, int64_t length) const;
  void make_saved(const at::Tensor& x, const BatchTensors& batch, bool keep_statistics,
                  bool keep_normed, bool keep_qkv, Saved& saved) const;

  model::PartSpec spec_;
  model::AttentionSpec attention_;
  std::vector<int> parameters_;
  PartNorms norms_;
  Linear qkv_;
  Linear out_;
  at::Tensor q_norm_;  ///< [head_dim] or undefined
  at::Tensor k_norm_;
  double qk_norm_eps_ = 0.0;
  int sink_q_norm_ = -1;
  std::shared_ptr<RotaryTable> rotary_;
};

}  // namespace trireme::nn
