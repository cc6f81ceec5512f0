// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434), written out: keys and values are expanded for the kernel.
//
//   query  q = Wq norm(Wqd h), or Wq h where queries are not compressed; the last rope_dim of a head are rotated
//   c | r  = Wkvd h, c = norm(c); r, one rotary key for all heads, is rotated
//   k | v  = Wkvu c for every head; a head's key is k | r
//   y      = x + Wo attention(q, k | r, v), with h = norm(x)
//
// What each SaveMode holds between forward and backward (N tokens, H heads):
//   kAll        norm statistics, normed input [N, d], raw compressed query, c and rotated r [N, query_rank + kv_rank +
//               rope_dim], the two compressed vectors normed, q [N, H head_dim] after rotary, k | v [N, H (nope_dim +
//               value_dim)], attention output, logsumexp
//   kSelective  without what was normed
//   kInputOnly  nothing but the input
// The keys as attention reads them are copied together where they are needed, and never kept.
//
// A cache holds c (normed) and r (rotated) of a token, and each step expands them: the products are those of training, so
// the bits are too.
#pragma once

#include <memory>
#include <optional>

#include "trireme/nn/attention_part.h"

namespace trireme::nn {

class LatentAttentionPart final : public AttentionPart {
 public:
  LatentAttentionPart(const ParameterStore& store, int part, std::shared_ptr<RotaryTable> rotary,
                      PartScope scope = PartScope::kWhole);
  ForwardResult forward(const at::Tensor& hidden, const BatchTensors& batch, bool with_graph,
                        SaveMode mode) override;
  Projected project(const at::Tensor& hidden, const at::Tensor& positions) const override;
  at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) const override;

 private:
  class Graph;
  struct Saved;

  // Columns of `down` or its gradient: compressed query | compressed keys and values | rotary key.
  at::Tensor query_latent(const at::Tensor& down) const;
  at::Tensor latent(const at::Tensor& down) const;
  at::Tensor shared_key(const at::Tensor& down) const;  ///< [N, 1, rope_dim]
  // Heads of k | v or its gradient.
  at::Tensor own_keys(const at::Tensor& kv) const;  ///< [N, H, nope_dim]
  at::Tensor values(const at::Tensor& kv) const;    ///< [N, H, value_dim]
  /// The heads' keys as attention reads them, [N, H, head_dim].
  at::Tensor joined_keys(const at::Tensor& kv, const at::Tensor& shared) const;
  /// Dimensions with positions of q [N, H head_dim], as heads.
  at::Tensor turning(const at::Tensor& q) const;
  /// Turns queries and shared key; `length`: tokens of the sequences that the positions belong to.
  void turn(const at::Tensor& q, const at::Tensor& down, const at::Tensor& positions,
            int64_t length, bool inverse) const;
  void make_saved(const at::Tensor& x, const BatchTensors& batch, bool keep, bool keep_normed,
                  Saved& saved) const;
  bool compressed() const { return latent_.query_rank > 0; }

  model::LatentSpec latent_;
  Linear down_;   ///< to all compressed vectors and the rotary key
  Linear query_;  ///< from the compressed query, or from the input
  Linear up_;     ///< to keys and values
  std::optional<Norm> query_norm_;
  std::optional<Norm> latent_norm_;
  int place_of_norms_ = -1;
};

}  // namespace trireme::nn
