// The last part of a MoE layer: the sum of every token's experts, the shared expert, and the residual.
//
// out = x + sum of the token's rows + g(h) shared(h) with h the normed input and g = sigmoid(w h), or 1 where the family
// has no gate. g goes in before the shared expert's last product, as the router's weights do (experts_part.h).
//
// What each SaveMode holds for the shared expert (N tokens, F hidden units; nothing without one):
//   kAll        gate|up [N, 2F], activation [N, F], g [N]
//   kSelective  gate|up, g
//   kInputOnly  nothing but h, which the router's output holds
#pragma once

#include <optional>
#include <vector>

#include "trireme/kernels/moe_ops.h"
#include "trireme/nn/linear.h"
#include "trireme/nn/parameter_store.h"
#include "trireme/nn/part.h"

namespace trireme::nn {

class CombinePart final : public Part {
 public:
  CombinePart(const ParameterStore& store, int part);
  const model::PartSpec& spec() const override { return spec_; }
  const std::vector<int>& gradient_parameters() const override { return parameters_; }
  /// hidden [M, d] -> [rows, seq_len, d].
  ForwardResult forward(const at::Tensor& hidden, const BatchTensors& batch, bool with_graph,
                        SaveMode mode) override;

 private:
  class Graph;
  struct Saved {
    at::Tensor gate;     ///< float32 [N]: g
    at::Tensor gate_up;  ///< [N, 2F]
    at::Tensor act;      ///< [N, F]
  };
  struct Shared {
    Linear up;
    Linear down;
    std::optional<Linear> gate;
    kernels::ExpertActivation activation;
  };
  void make_saved(const at::Tensor& normed, Saved& saved) const;

  model::PartSpec spec_;
  std::vector<int> parameters_;
  std::optional<Shared> shared_;
};

}  // namespace trireme::nn
