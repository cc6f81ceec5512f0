// A dense layer over one or several adjacent weights of the store (query|key|value, gate|up, or
// one).
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "trireme/nn/parameter_store.h"
#include "trireme/nn/part.h"

namespace trireme::nn {

/// y = x W^T + b with W the rows of `weights` one below the other. Borrows the store's storage.
/// Thread-safety: const calls from one thread at a time.
class Linear {
 public:
  /// The product over the weights of `roles` among a part's `parameters`
  /// (Part::gradient_parameters()), with the biases that follow them. All must be adjacent.
  Linear(const ParameterStore& store, const std::vector<int>& parameters,
         const std::vector<model::Role>& roles);

  int64_t in_features() const { return weight_.size(1); }
  int64_t out_features() const { return weight_.size(0); }

  /// x [N, in] -> a new [N, out], plus `residual` [N, out] where defined.
  at::Tensor forward(const at::Tensor& x, const at::Tensor& residual = {}) const;
  /// The same without bias and residual.
  at::Tensor forward_without_bias(const at::Tensor& x) const;
  const at::Tensor& bias() const { return bias_; }  ///< [out], or undefined
  /// The same in float32 from compute dtype, without a residual.
  at::Tensor forward_float(const at::Tensor& x) const;
  /// dy [N, out] -> a new [N, in].
  at::Tensor backward_input(const at::Tensor& dy) const;
  /// dx [N, in] += the same.
  void add_backward_input(const at::Tensor& dy, at::Tensor& dx) const;
  /// Adds the gradients of weights and biases to the sink.
  void backward_weight(const at::Tensor& dy, const at::Tensor& x, GradientSink& sink) const;

 private:
  at::Tensor weight_;
  at::Tensor bias_;
  int num_weights_ = 0;
  int sink_weight_ =
      -1;  ///< places of the first weight and the first bias in the part's GradientSink
  int sink_bias_ = -1;
};

/// The sink's entries first .. first + count - 1 as one tensor (they are adjacent in the flat
/// accumulator).
at::Tensor fused_gradient(const GradientSink& sink, int first, int count);

}  // namespace trireme::nn
