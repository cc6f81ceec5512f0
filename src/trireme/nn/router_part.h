// The first part of a MoE layer: norm, router, and the choice of experts for every token.
//
// Output: the normed input, which dispatch and the shared expert read. Beside it, in the layer's MoeFlow: weights, rows
// sorted by expert, statistics. Its graph holds float32 logits [N, E], the choice, and the norm's statistics.
#pragma once

#include <vector>

#include "trireme/nn/linear.h"
#include "trireme/nn/norm.h"
#include "trireme/nn/parameter_store.h"
#include "trireme/nn/part.h"

namespace trireme::nn {

class RouterPart final : public Part {
 public:
  RouterPart(const ParameterStore& store, int part);
  const model::PartSpec& spec() const override { return spec_; }
  const std::vector<int>& gradient_parameters() const override { return parameters_; }
  /// hidden [rows, seq_len, d] -> the same shape, normed. There is no recomputation: what the graph keeps is small.
  ForwardResult forward(const at::Tensor& hidden, const BatchTensors& batch, bool with_graph,
                        SaveMode mode) override;

 private:
  class Graph;
  model::PartSpec spec_;
  model::MoeSpec moe_;
  kernels::RouterOptions options_;
  std::vector<int> parameters_;
  PartNorms norms_;
  Linear router_;
  at::Tensor selection_bias_;  ///< the float32 master [E], or undefined
  int selection_bias_place_ = -1;
};

/// What the choice of experts is made by.
kernels::RouterOptions router_options(const model::MoeSpec& moe);

/// Rows that one expert takes at most of `tokens` tokens; 0: any number.
int64_t expert_capacity(const model::MoeSpec& moe, int64_t tokens);

}  // namespace trireme::nn
