// The embedding part: token table plus, where the model has them, learned positions.
#pragma once

#include "trireme/nn/parameter_store.h"
#include "trireme/nn/part.h"

namespace trireme::nn {

class EmbeddingPart final : public Part {
 public:
  EmbeddingPart(const ParameterStore& store, int part);
  const model::PartSpec& spec() const override { return spec_; }
  const std::vector<int>& gradient_parameters() const override { return parameters_; }
  /// The graph borrows `batch`'s tokens and positions.
  ForwardResult forward(const at::Tensor& hidden, const BatchTensors& batch, bool with_graph,
                        SaveMode mode) override;

 private:
  class Graph;
  model::PartSpec spec_;
  std::vector<int> parameters_;
  at::Tensor tokens_;     ///< [V, d]
  at::Tensor positions_;  ///< [P, d] or undefined
  double scale_ = 1.0;    ///< of the embeddings, rounded to the compute dtype
};

/// What the embeddings of a model are multiplied with, in the precision of its compute dtype.
double embedding_scale(const ParameterStore& store);

}  // namespace trireme::nn
