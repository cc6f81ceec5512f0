// The third part of a MoE layer: the routed experts' MLPs over rows sorted by expert.
//
// y[m] = W_down (p_m act(gate) up): the router's weight goes in before the last product, where it costs one multiplication
// an element of the hidden layer and its gradient needs no result of the experts (exact: the product is linear; a bias of
// that product is weighted by itself).
//
// What each SaveMode holds beside the input (M rows, F hidden units of an expert):
//   kAll        gate|up [M, 2F], weighted activation [M, F]
//   kSelective  gate|up
//   kInputOnly  nothing
#pragma once

#include <vector>

#include "trireme/kernels/moe_ops.h"
#include "trireme/nn/parameter_store.h"
#include "trireme/nn/part.h"

namespace trireme::nn {

class ExpertsPart final : public Part {
 public:
  ExpertsPart(const ParameterStore& store, int part);
  const model::PartSpec& spec() const override { return spec_; }
  const std::vector<int>& gradient_parameters() const override { return parameters_; }
  /// hidden [M, d], rows of the layer's MoeFlow -> [M, d].
  ForwardResult forward(const at::Tensor& hidden, const BatchTensors& batch, bool with_graph,
                        SaveMode mode) override;

 private:
  class Graph;
  struct Saved {
    at::Tensor row_weights;  ///< float32 [M]
    at::Tensor gate_up;
    at::Tensor act;
  };
  void make_saved(const at::Tensor& rows, const MoeFlow& flow, Saved& saved) const;

  model::PartSpec spec_;
  kernels::ExpertActivation activation_;
  std::vector<int> parameters_;
  std::vector<at::Tensor> gate_up_;       ///< [E, F, d] each
  std::vector<at::Tensor> down_;          ///< one, [E, d, F]
  std::vector<at::Tensor> gate_up_bias_;  ///< [E, F] each, or none
  at::Tensor down_bias_;                  ///< [E, d] or undefined
  int place_of_down_ = 0;
  int place_of_gate_up_bias_ = -1;
  int place_of_down_bias_ = -1;
};

}  // namespace trireme::nn
