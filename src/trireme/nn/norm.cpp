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
  forward_into(x, y, keep_statistics, statistics);
  return y;
}

void Norm::forward_into(const at::Tensor& x, at::Tensor y, bool keep_statistics,
                        NormStatistics& statistics) const {
  const auto floats = x.options().dtype(at::kFloat);
  NormStatistics kept;
  if (keep_statistics) kept.rstd = at::empty({x.size(0)}, floats);
  if (spec_.kind == model::NormKind::kRmsNorm) {
    kernels::rms_norm(x, weight_, spec_.eps, y, kept.rstd, spec_.unit_offset ? 1.0 : 0.0);
  } else {
    if (keep_statistics) kept.mean = at::empty({x.size(0)}, floats);
    kernels::layer_norm(x, weight_, bias_, spec_.eps, y, kept.mean, kept.rstd);
  }
  if (keep_statistics) statistics = std::move(kept);
}

void Norm::backward_into(const at::Tensor& dy, const at::Tensor& x,
                         const NormStatistics& statistics, at::Tensor dx,
                         NormGradients& gradients) const {
  const auto floats = x.options().dtype(at::kFloat);
  gradients.weight = at::empty({x.size(1)}, floats);
  if (spec_.kind == model::NormKind::kRmsNorm) {
    kernels::rms_norm_backward(dy, x, weight_, statistics.rstd, dx, false, gradients.weight, false,
                               spec_.unit_offset ? 1.0 : 0.0);
  } else {
    if (bias_.defined()) gradients.bias = at::empty({x.size(1)}, floats);
    kernels::layer_norm_backward(dy, x, weight_, statistics.mean, statistics.rstd, dx, false,
                                 gradients.weight, gradients.bias, false);
  }
}

at::Tensor Norm::backward(at::Tensor dy, const at::Tensor& x, const NormStatistics& statistics,
                          const at::Tensor& residual, NormGradients& gradients) const {
  backward_into(dy, x, statistics, dy, gradients);
  if (residual.defined()) dy.add_(residual);
  return dy;
}

at::Tensor Norm::backward_over_input(const at::Tensor& dy, at::Tensor x,
                                     const NormStatistics& statistics,
                                     NormGradients& gradients) const {
  backward_into(dy, x, statistics, x, gradients);
  return x;
}

void Norm::add_gradients(const NormGradients& gradients, GradientSink& sink, int first) const {
  add_to_sink(sink, first, gradients.weight);
  if (bias_.defined()) add_to_sink(sink, first + 1, gradients.bias);
}

PartNorms::PartNorms(const ParameterStore& store, const std::optional<model::NormSpec>& before,
                     const std::optional<model::NormSpec>& after,
                     const std::vector<int>& parameters) {
  const auto make = [&](const model::NormSpec& spec, size_t place) {
    TRIREME_CHECK(store.spec().parameters[parameters.at(place)].role == model::Role::kNormWeight,
                  "no norm at place {} of the part of {}", place,
                  store.spec().parameters[parameters[0]].name);
    return Norm(spec, store.compute(parameters[place]),
                spec.bias ? store.compute(parameters.at(place + 1)) : at::Tensor());
  };
  if (before) this->before = make(*before, 0);
  if (after) {
    after_place = static_cast<int>(parameters.size()) - (after->bias ? 2 : 1);
    this->after = make(*after, static_cast<size_t>(after_place));
  }
}

PartNorms of_scope(PartScope scope, PartNorms norms) {
  if (scope == PartScope::kProducts) {
    norms.before.reset();
    norms.after.reset();
  }
  return norms;
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
