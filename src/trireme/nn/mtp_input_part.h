// Where a module of multi-token prediction begins: W [enorm(embedding of a later token) | hnorm(hidden state)].
//
// Between forward and backward it keeps, whatever the SaveMode (N tokens): both norms' statistics and what W multiplies
// with [N, 2d]. The embeddings are looked up again.
#pragma once

#include "trireme/nn/linear.h"
#include "trireme/nn/norm.h"
#include "trireme/nn/parameter_store.h"
#include "trireme/nn/part.h"

namespace trireme::nn {

class MtpInputPart final : public Part {
 public:
  MtpInputPart(const ParameterStore& store, int part);
  const model::PartSpec& spec() const override { return spec_; }
  /// Its own three, then the token table, whose rows backward_weight adds to.
  const std::vector<int>& gradient_parameters() const override { return parameters_; }
  /// `hidden` is the normed state of the head before it (HeadPart::normalize()).
  ForwardResult forward(const at::Tensor& hidden, const BatchTensors& batch, bool with_graph,
                        SaveMode mode) override;

 private:
  class Graph;
  at::Tensor look_up(const at::Tensor& tokens) const;

  model::PartSpec spec_;
  int depth_;
  std::vector<int> parameters_;
  at::Tensor table_;  ///< [V, d]
  Norm embedding_norm_;
  Norm hidden_norm_;
  Linear projection_;
};

}  // namespace trireme::nn
