// The head part: final norm, output product (own weight or the token embedding's) and loss.
#pragma once

#include "trireme/nn/norm.h"
#include "trireme/nn/parameter_store.h"
#include "trireme/nn/part.h"

namespace trireme::nn {

class HeadPart final : public Part {
 public:
  HeadPart(const ParameterStore& store, int part);
  const model::PartSpec& spec() const override { return spec_; }
  const std::vector<int>& gradient_parameters() const override { return parameters_; }
  /// A head has no output of its own: throws Error{kInternal}. Use loss() or logits().
  ForwardResult forward(const at::Tensor& hidden, const BatchTensors& batch, bool with_graph,
                        SaveMode mode) override;

  /// Forward, loss and, with a sink, all gradients at once, in chunks of `chunk_rows` rows (0:
  /// chosen by default_chunk_rows()): the logits of the batch never exist together.
  /// `gradient_scale`, as a rule 1 / counted targets of the global batch, applies to gradients and
  /// not to the returned loss.
  LossResult loss(const at::Tensor& hidden, const BatchTensors& batch, double gradient_scale,
                  int64_t chunk_rows, GradientSink* sink, bool keep_token_losses = false);

  /// Logits of rows of hidden states: [n, d] -> float32 [n, V].
  at::Tensor logits(const at::Tensor& hidden) const;

  /// Rows of logits that exist at once where nothing else is asked for.
  static int64_t default_chunk_rows(int64_t rows, int64_t vocab_size);

 private:
  model::PartSpec spec_;
  std::vector<int> parameters_;
  Norm norm_;
  at::Tensor weight_;     ///< [V, d]
  double softcap_ = 0.0;  ///< of the logits; 0: none
  int sink_weight_;
};

}  // namespace trireme::nn
