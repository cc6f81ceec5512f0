// Activations alone, gated, and gated with a weight a row; slopes by ATen's own backward operators.
#include <ATen/TensorOperators.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/gelu_backward.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/silu_backward.h>
#include <ATen/ops/threshold_backward.h>

#include "trireme/base/error.h"
#include "trireme/kernels/aten/accumulation.h"
#include "trireme/kernels/aten/aten_kernels.h"

namespace trireme::kernels::aten {

namespace {

at::Tensor value_of(Activation act, const at::Tensor& x) {
  switch (act) {
    case Activation::kSilu:
      return at::silu(x);
    case Activation::kGeluTanh:
      return at::gelu(x, "tanh");
    case Activation::kGelu:
      return at::gelu(x);
    case Activation::kRelu:
      return at::relu(x);
  }
  TRIREME_CHECK(false, "unknown activation");
}

at::Tensor slope_of(Activation act, const at::Tensor& x) {
  const at::Tensor one = at::ones_like(x);
  switch (act) {
    case Activation::kSilu:
      return at::silu_backward(one, x);
    case Activation::kGeluTanh:
      return at::gelu_backward(one, x, "tanh");
    case Activation::kGelu:
      return at::gelu_backward(one, x);
    case Activation::kRelu:
      return at::threshold_backward(one, x, 0);
  }
  TRIREME_CHECK(false, "unknown activation");
}

/// Value of a gate, and its derivatives by gate and up.
struct Gate {
  at::Tensor value;
  at::Tensor by_gate;
  at::Tensor by_up;
};

Gate gate_of(const ExpertActivation& act, const at::Tensor& gate_up) {
  const at::Tensor in = wide(gate_up);
  const int64_t width = in.size(1) / 2;
  const at::Tensor gate = in.narrow(1, 0, width);
  const at::Tensor up = in.narrow(1, width, width);
  if (act.clamp_limit <= 0.0) {
    const at::Tensor value = value_of(act.activation, gate);
    return {value * up, slope_of(act.activation, gate) * up, value};
  }
  constexpr double kSlope = 1.702;  // gpt_oss
  const double limit = act.clamp_limit;
  const at::Tensor g = gate.clamp_max(limit);
  const at::Tensor s = (g * kSlope).sigmoid();
  const at::Tensor swish = g * s;
  const at::Tensor factor = up.clamp(-limit, limit) + 1.0;
  const at::Tensor slope = s + kSlope * swish * (1.0 - s);
  return {factor * swish, (factor * slope).masked_fill(gate.gt(limit), 0.0),
          swish.masked_fill(up.abs().gt(limit), 0.0)};
}

void put_halves(const at::Tensor& to, const at::Tensor& first, const at::Tensor& second) {
  const int64_t width = to.size(1) / 2;
  put(to.narrow(1, 0, width), first);
  put(to.narrow(1, width, width), second);
}

}  // namespace

void activation(Activation act, const at::Tensor& x, at::Tensor& y) {
  put(y, value_of(act, wide(x)));
}

void activation_backward(Activation act, const at::Tensor& dy, const at::Tensor& x,
                         at::Tensor& dx) {
  put(dx, wide(dy) * slope_of(act, wide(x)));
}

void gated_activation(Activation act, const at::Tensor& gate_up, at::Tensor& y) {
  put(y, gate_of({act}, gate_up).value);
}

void gated_activation_backward(Activation act, const at::Tensor& dy, const at::Tensor& gate_up,
                               at::Tensor& d_gate_up, at::Tensor y) {
  const Gate gate = gate_of({act}, gate_up);
  const at::Tensor grad = wide(dy);
  const at::Tensor d_gate = grad * gate.by_gate;
  const at::Tensor d_up = grad * gate.by_up;
  if (y.defined()) put(y, gate.value);
  put_halves(d_gate_up, d_gate, d_up);
}

void weighted_gated_activation(const ExpertActivation& act, const at::Tensor& gate_up,
                               const at::Tensor& weights, at::Tensor& y) {
  put(y, gate_of(act, gate_up).value * weights.view({-1, 1}));
}

void weighted_gated_activation_backward(const ExpertActivation& act, const at::Tensor& dy,
                                        const at::Tensor& gate_up, const at::Tensor& weights,
                                        at::Tensor& d_gate_up, at::Tensor& d_weights,
                                        const at::Tensor& y) {
  const Gate gate = gate_of(act, gate_up);
  const at::Tensor w = weights.view({-1, 1});
  const at::Tensor grad = wide(dy);
  const at::Tensor d_value = grad * w;
  put(d_weights, (grad * gate.value).sum(1));
  if (y.defined()) put(y, gate.value * w);
  put_halves(d_gate_up, d_value * gate.by_gate, d_value * gate.by_up);
}

}  // namespace trireme::kernels::aten
