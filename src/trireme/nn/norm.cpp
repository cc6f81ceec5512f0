#include "trireme/nn/norm.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "trireme/base/error.h"
#include "trireme/kernels/ops.h"

namespace trireme::nn {

Norm::Norm(const model::NormSpec& spec, at::Tensor weight, at::Tensor bias)
    : spec_(spec), weight_(std::move(weight)), bias_(std::move(bias)) {
  TRIREME_CHECK(spec_.bias == bias_.defined(), "a norm's bias is {} but expected {}",
                bias_.defined(), spec_.bias);
}

at::Tensor Norm::forward(const at::Tensor& x, bool keep_statistics,
                         NormStatistics& statistics) const {
  at::Tensor y = at::empty_like(x);
  const auto floats = x.options().dtype(at::kFloat);
  NormStatistics kept;
  if (keep_statistics) kept.rstd = at::empty({x.size(0)}, floats);
  if (spec_.kind == model::NormKind::kRmsNorm) {
    kernels::rms_norm(x, weight_, spec_.eps, y, kept.rstd);
  } else {
    if (keep_statistics) kept.mean = at::empty({x.size(0)}, floats);
    kernels::layer_norm(x, weight_, bias_, spec_.eps, y, kept.mean, kept.rstd);
  }
  if (keep_statistics) statistics = std::move(kept);
  return y;
}

at::Tensor Norm::backward(at::Tensor dy, const at::Tensor& x, const NormStatistics& statistics,
                          const at::Tensor& residual, NormGradients& gradients) const {
  const auto floats = x.options().dtype(at::kFloat);
  gradients.weight = at::empty({x.size(1)}, floats);
  if (spec_.kind == model::NormKind::kRmsNorm) {
    kernels::rms_norm_backward(dy, x, weight_, statistics.rstd, dy, false, gradients.weight, false);
  } else {
    if (bias_.defined()) gradients.bias = at::empty({x.size(1)}, floats);
    kernels::layer_norm_backward(dy, x, weight_, statistics.mean, statistics.rstd, dy, false,
                                 gradients.weight, gradients.bias, false);
  }
  if (residual.defined()) dy.add_(residual);
  return dy;
}

void Norm::add_gradients(const NormGradients& gradients, GradientSink& sink, int first) const {
  add_to_sink(sink, first, gradients.weight);
  if (bias_.defined()) add_to_sink(sink, first + 1, gradients.bias);
}

Norm leading_norm(const ParameterStore& store, const model::NormSpec& spec,
                  const std::vector<int>& parameters) {
  TRIREME_CHECK(!parameters.empty() &&
                    store.spec().parameters[parameters[0]].role == model::Role::kNormWeight,
                "the part does not start with its norm");
  return Norm(spec, store.compute(parameters[0]),
              spec.bias ? store.compute(parameters.at(1)) : at::Tensor());
}

void add_to_sink(GradientSink& sink, int index, const at::Tensor& value) {
  at::Tensor& target = sink.gradients[index];
  if (sink.accumulate[index]) {
    kernels::add_(target, value);
  } else {
    target.copy_(value);
  }
}

}  // namespace trireme::nn
