// A normalisation layer over its kernels: RMSNorm or LayerNorm, with what its backward needs.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "trireme/model/model_spec.h"
#include "trireme/nn/parameter_store.h"
#include "trireme/nn/part.h"

namespace trireme::nn {

/// Statistics of one forward, float32 [N] each; mean is undefined for RMSNorm.
struct NormStatistics {
  at::Tensor mean;
  at::Tensor rstd;
};

/// Gradients of the weights, float32 [d]; held between backward_input and backward_weight because
/// they fall out of the pass that makes the input's gradient.
struct NormGradients {
  at::Tensor weight;
  at::Tensor bias;
};

/// Borrows its weights. Thread-safety: const calls may run at the same time.
class Norm {
 public:
  /// `weight` [d], `bias` [d] or undefined, compute dtype.
  Norm(const model::NormSpec& spec, at::Tensor weight, at::Tensor bias);

  /// y = norm(x). x [N, d]. The statistics are undefined unless `keep_statistics`.
  at::Tensor forward(const at::Tensor& x, bool keep_statistics, NormStatistics& statistics) const;
  /// The same written to y, which may be any rows of x's shape.
  void forward_into(const at::Tensor& x, at::Tensor y, bool keep_statistics,
                    NormStatistics& statistics) const;
  /// dx = gradient of the input + residual, written over `dy`, which it returns. `residual` may be
  /// undefined.
  at::Tensor backward(at::Tensor dy, const at::Tensor& x, const NormStatistics& statistics,
                      const at::Tensor& residual, NormGradients& gradients) const;
  /// The same without a residual, written over x, which it returns.
  at::Tensor backward_over_input(const at::Tensor& dy, at::Tensor x,
                                 const NormStatistics& statistics, NormGradients& gradients) const;
  /// The same written to dx, which may be any rows of x's shape.
  void backward_into(const at::Tensor& dy, const at::Tensor& x, const NormStatistics& statistics,
                     at::Tensor dx, NormGradients& gradients) const;
  /// The number of weight tensors: 1, or 2 with a bias.
  int num_parameters() const { return bias_.defined() ? 2 : 1; }
  /// Adds (or writes) held gradients to entries `first`.. of the sink.
  void add_gradients(const NormGradients& gradients, GradientSink& sink, int first) const;

 private:
  model::NormSpec spec_;
  at::Tensor weight_;
  at::Tensor bias_;
};

/// The norms around a part's work, which a family has or has not: before it, whose parameters are the part's first, and
/// after it, whose parameters are its last.
struct PartNorms {
  PartNorms(const ParameterStore& store, const std::optional<model::NormSpec>& before,
            const std::optional<model::NormSpec>& after, const std::vector<int>& parameters);
  std::optional<Norm> before;
  std::optional<Norm> after;
  int after_place = -1;  ///< of its first parameter among the part's
};

/// None of them in PartScope::kProducts.
PartNorms of_scope(PartScope scope, PartNorms norms);

/// sink[index] = value, or += value. Float32, same shape.
void add_to_sink(GradientSink& sink, int index, const at::Tensor& value);

}  // namespace trireme::nn
