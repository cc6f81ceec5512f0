// The attention part of a layer: x + after(out(attention(...norm(x)...))), with the norms that the family has. What lies
// between the norm and the softmax is the business of the two kinds: grouped_attention_part.h (heads of query, key and
// value, each its own product) and latent_attention_part.h (keys and values from one compressed vector).
#pragma once

#include <memory>

#include "trireme/kernels/ops.h"
#include "trireme/nn/linear.h"
#include "trireme/nn/norm.h"
#include "trireme/nn/parameter_store.h"
#include "trireme/nn/part.h"
#include "trireme/nn/rotary.h"

namespace trireme::nn {

class AttentionPart : public Part {
 public:
  const model::PartSpec& spec() const override { return spec_; }
  const std::vector<int>& gradient_parameters() const override { return parameters_; }
  const model::AttentionSpec& attention_spec() const { return attention_; }

  // Pieces for generation with a key-value cache. Same kernels, so a token's values are the
  // training forward's, bit for bit (rows of a product do not depend on their number).

  struct Projected {
    at::Tensor q;  ///< [B, T, Hq, head_dim], normed and rotated
    at::Tensor k;  ///< what is cached of a token, [B, T, heads, key_dim] of cached_shape()
    at::Tensor v;  ///< [B, T, heads, value_dim]; the three may be views of one buffer
  };
  /// hidden [B, T, d], positions [B, T] int64.
  virtual Projected project(const at::Tensor& hidden, const at::Tensor& positions) const = 0;
  /// q [B, Tq, Hq, head_dim] against what was cached of Tk tokens (strided views of a cache): query i
  /// sees keys up to i + Tk - Tq. Returns [B, Tq, Hq, value_dim of a head].
  virtual at::Tensor attend(const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v) const = 0;
  /// Of a batch of which other ranks have the other places: the forward as far as keys and values; its graph has a context().
  /// Error{kInternal}: the kind cannot.
  virtual std::unique_ptr<PartGraph> begin(const at::Tensor& hidden, const BatchTensors& batch,
                                           SaveMode mode);
  /// hidden + out-projection of `attended`; [B, T, d].
  at::Tensor finish(const at::Tensor& hidden, const at::Tensor& attended) const;

 protected:
  AttentionPart(const ParameterStore& store, int part, std::shared_ptr<RotaryTable> rotary,
                PartScope scope);
  /// Attention's result through the last product, as the part's scope has it.
  at::Tensor project_out(const at::Tensor& attended, const at::Tensor& x) const;
  /// `batch` may be null: every row is one document.
  kernels::AttentionOptions options(const BatchTensors* batch) const;
  /// Whether a row has several documents.
  static bool is_cut(const BatchTensors& batch);
  /// The place of the first parameter with a role among the part's; -1 without one.
  int place_of(const ParameterStore& store, model::Role role) const;

  model::PartSpec spec_;
  model::AttentionSpec attention_;
  PartScope scope_;
  std::vector<int> parameters_;
  PartNorms norms_;
  Linear out_;
  at::Tensor sinks_;  ///< [Hq], compute dtype, or undefined
  int place_of_sinks_ = -1;
  std::shared_ptr<RotaryTable> rotary_;  ///< null for models without
};

/// What a key-value cache holds of a token.
struct CachedShape {
  int64_t heads = 0;
  int64_t key_dim = 0;
  int64_t value_dim =
      0;  ///< 0 for latent attention, whose compressed vector and rotary key are the "key"
};
CachedShape cached_shape(const model::AttentionSpec& attention);

/// `rotary` is null for models without; it is shared by the layers.
std::unique_ptr<AttentionPart> make_attention_part(const ParameterStore& store, int part,
                                                   std::shared_ptr<RotaryTable> rotary,
                                                   PartScope scope = PartScope::kWhole);

}  // namespace trireme::nn
