// The second part of a MoE layer: every token's row, once for each expert that it chose, sorted by expert.
#pragma once

#include <vector>

#include "trireme/nn/parameter_store.h"
#include "trireme/nn/part.h"

namespace trireme::nn {

/// Has no parameters and keeps nothing: the order of rows is in the layer's MoeFlow.
class DispatchPart final : public Part {
 public:
  DispatchPart(const ParameterStore& store, int part);
  const model::PartSpec& spec() const override { return spec_; }
  const std::vector<int>& gradient_parameters() const override { return parameters_; }
  /// hidden [rows, seq_len, d] -> [M, d].
  ForwardResult forward(const at::Tensor& hidden, const BatchTensors& batch, bool with_graph,
                        SaveMode mode) override;

 private:
  class Graph;
  model::PartSpec spec_;
  std::vector<int> parameters_;
};

}  // namespace trireme::nn
