#include "trireme/nn/linear.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <optional>

#include "trireme/base/error.h"
#include "trireme/kernels/ops.h"

namespace trireme::nn {

Linear::Linear(const ParameterStore& store, const std::vector<int>& parameters,
               const std::vector<model::Role>& roles) {
  const auto role_at = [&](size_t place) {
    return store.spec().parameters[parameters[place]].role;
  };
  size_t place = 0;
  while (place < parameters.size() && std::ranges::find(roles, role_at(place)) == roles.end())
    ++place;
  TRIREME_CHECK(place < parameters.size(), "the part of {} has no such product",
                store.spec().parameters[parameters.at(0)].name);
  const auto run = [&](auto belongs) {
    const size_t first = place;
    while (place < parameters.size() && belongs(role_at(place))) ++place;
    return static_cast<int>(place - first);
  };
  const auto fused = [&](int first_place, int count) {
    for (int i = 1; i < count; ++i) {
      TRIREME_CHECK(parameters[first_place + i] == parameters[first_place] + i,
                    "fused parameters are not adjacent");
    }
    const int first = parameters[first_place];
    return store.fused_view(store.part_compute(store.spec().parameters[first].part), first, count);
  };
  sink_weight_ = static_cast<int>(place);
  num_weights_ =
      run([&](model::Role role) { return std::ranges::find(roles, role) != roles.end(); });
  weight_ = fused(sink_weight_, num_weights_);
  const int bias_place = static_cast<int>(place);
  const int num_biases = run([](model::Role role) { return role == model::Role::kBias; });
  if (num_biases > 0) {
    TRIREME_CHECK(num_biases == num_weights_, "{} weights with {} biases", num_weights_,
                  num_biases);
    sink_bias_ = bias_place;
    bias_ = fused(bias_place, num_biases);
  }
}

at::Tensor Linear::forward(const at::Tensor& x, const at::Tensor& residual) const {
  at::Tensor y = at::empty({x.size(0), out_features()}, x.options());
  kernels::linear(x, weight_, bias_.defined() ? std::optional<at::Tensor>(bias_) : std::nullopt,
                  residual.defined() ? std::optional<at::Tensor>(residual) : std::nullopt, y);
  return y;
}

at::Tensor Linear::forward_without_bias(const at::Tensor& x) const {
  at::Tensor y = at::empty({x.size(0), out_features()}, x.options());
  kernels::linear(x, weight_, std::nullopt, std::nullopt, y);
  return y;
}

at::Tensor Linear::forward_float(const at::Tensor& x) const {
  at::Tensor y = at::empty({x.size(0), out_features()}, x.options().dtype(at::kFloat));
  kernels::linear(x, weight_, bias_.defined() ? std::optional<at::Tensor>(bias_) : std::nullopt,
                  std::nullopt, y);
  return y;
}

void Linear::add_backward_input(const at::Tensor& dy, at::Tensor& dx) const {
  kernels::linear_backward_input(dy, weight_, dx, true);
}

at::Tensor Linear::backward_input(const at::Tensor& dy) const {
  at::Tensor dx = at::empty({dy.size(0), in_features()}, dy.options());
  kernels::linear_backward_input(dy, weight_, dx);
  return dx;
}

void Linear::backward_weight(const at::Tensor& dy, const at::Tensor& x, GradientSink& sink) const {
  at::Tensor dweight = fused_gradient(sink, sink_weight_, num_weights_);
  kernels::linear_backward_weight(dy, x, dweight, sink.accumulate[sink_weight_] != 0);
  if (bias_.defined()) {
    at::Tensor dbias = fused_gradient(sink, sink_bias_, num_weights_);
    kernels::bias_gradient(dy, dbias, sink.accumulate[sink_bias_] != 0);
  }
}

at::Tensor fused_gradient(const GradientSink& sink, int first, int count) {
  const at::Tensor& head = sink.gradients[first];
  if (count == 1) return head;
  int64_t rows = 0;
  for (int i = first; i < first + count; ++i) {
    const at::Tensor& piece = sink.gradients[i];
    TRIREME_CHECK(piece.is_contiguous() &&
                      piece.storage_offset() == head.storage_offset() + rows * head.stride(0) &&
                      sink.accumulate[i] == sink.accumulate[first],
                  "gradients {} and {} are not adjacent", first, i);
    rows += piece.size(0);
  }
  std::vector<int64_t> sizes = head.sizes().vec();
  sizes[0] = rows;
  return head.as_strided(sizes, head.strides(), head.storage_offset());
}

}  // namespace trireme::nn
