// The MLP part: x + after(down(act(gate(norm(x))) * up(norm(x)))), or x + after(down(act(up(norm(x))))), with either norm
// where the family has it.
//
// What each SaveMode holds between forward and backward (N tokens, F hidden units):
//   kAll        norm statistics, normed input [N, d], gate|up [N, 2F] (plain: [N, F]), activation
//   [N, F] kSelective  norm statistics and gate|up kInputOnly  nothing but the input
#pragma once

#include "trireme/kernels/ops.h"
#include "trireme/nn/linear.h"
#include "trireme/nn/norm.h"
#include "trireme/nn/parameter_store.h"
#include "trireme/nn/part.h"

namespace trireme::nn {

/// The kernel of an activation.
kernels::Activation to_kernel(model::Activation activation);

class MlpPart final : public Part {
 public:
  MlpPart(const ParameterStore& store, int part, PartScope scope = PartScope::kWhole);
  const model::PartSpec& spec() const override { return spec_; }
  const std::vector<int>& gradient_parameters() const override { return parameters_; }
  ForwardResult forward(const at::Tensor& hidden, const BatchTensors& batch, bool with_graph,
                        SaveMode mode) override;

 private:
  class Graph;
  struct Saved;
  at::Tensor activate(const at::Tensor& up) const;
  void make_saved(const at::Tensor& x, bool keep_statistics, bool keep_normed, Saved& saved) const;
  /// What the norm after the MLP reads, and its statistics.
  void project(bool keep_statistics, Saved& saved) const;

  model::PartSpec spec_;
  model::MlpSpec mlp_;
  PartScope scope_;
  std::vector<int> parameters_;
  PartNorms norms_;
  Linear up_;  ///< gate and up as one product where the MLP is gated
  Linear down_;
};

}  // namespace trireme::nn
