// A head: norm, output product (own weight or the token embedding's) and loss. The model's own, and those of multi-token
// prediction, whose product is the model's own head's.
#pragma once

#include "trireme/nn/norm.h"
#include "trireme/nn/parameter_store.h"
#include "trireme/nn/part.h"

namespace trireme::nn {

/// The normed state of a head that a module of multi-token prediction goes on from (model/mtp.h), and what the norm's
/// backward needs.
struct NormedState {
  at::Tensor normed;  ///< [rows, seq_len, hidden]
  NormStatistics statistics;
};

struct LossOptions {
  /// As a rule 1 / counted targets of the global batch; of gradients, not of the returned loss.
  double gradient_scale = 0.0;
  int64_t chunk_rows = 0;  ///< rows of logits that exist at once; 0: chosen by default_chunk_rows()
  bool keep_token_losses = false;
  /// What normalize() made, if it was called, and the gradient that came back for it. Both are consumed.
  NormedState* state = nullptr;
  at::Tensor d_normed;
};

class HeadPart final : public Part {
 public:
  HeadPart(const ParameterStore& store, int part);
  const model::PartSpec& spec() const override { return spec_; }
  const std::vector<int>& gradient_parameters() const override { return parameters_; }
  /// A head has no output of its own: throws Error{kInternal}. Use normalize(), loss() or logits().
  ForwardResult forward(const at::Tensor& hidden, const BatchTensors& batch, bool with_graph,
                        SaveMode mode) override;

  /// The norm alone, for a module of multi-token prediction; loss() goes on from it.
  NormedState normalize(const at::Tensor& hidden) const;

  /// Forward, loss and, with a sink, all gradients at once, in chunks of rows: the logits of the batch never exist
  /// together. The targets are the batch's, or those of this module of multi-token prediction.
  LossResult loss(const at::Tensor& hidden, const BatchTensors& batch, LossOptions options,
                  GradientSink* sink) const;
  LossResult loss(const at::Tensor& hidden, const BatchTensors& batch, double gradient_scale,
                  int64_t chunk_rows, GradientSink* sink, bool keep_token_losses = false) const;

  /// Logits of rows of hidden states: [n, d] -> float32 [n, V].
  at::Tensor logits(const at::Tensor& hidden) const;

  /// Rows of logits that exist at once where nothing else is asked for.
  static int64_t default_chunk_rows(int64_t rows, int64_t vocab_size);

 private:
  model::PartSpec spec_;
  int depth_;  ///< of multi-token prediction; 0: the model's own head
  std::vector<int> parameters_;
  Norm norm_;
  at::Tensor weight_;     ///< [V, d]
  double softcap_ = 0.0;  ///< of the logits; 0: none
  int sink_weight_;
};

}  // namespace trireme::nn
