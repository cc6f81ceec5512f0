// Activations, positions, tables, and the optimizer's passes.
#include <ATen/ops/empty.h>
#include <ATen/ops/sort.h>

#include <algorithm>
#include <cmath>

#include "trireme/kernels/cuda/cuda_kernels.h"
#include "trireme/kernels/cuda/identifiers.h"
#include "trireme/kernels/cuda/operands.h"

namespace trireme::kernels::gpu {

namespace {

Act act_of(Activation activation) {
  switch (activation) {
    case Activation::kSilu:
      return Act::kSilu;
    case Activation::kGeluTanh:
      return Act::kGeluTanh;
    case Activation::kGelu:
      return Act::kGelu;
    case Activation::kRelu:
      return Act::kRelu;
  }
  TRIREME_CHECK(false, "unknown activation");
}

Gated gated_of(const ExpertActivation& act, const at::Tensor& gate_up, const at::Tensor& weights) {
  return {.type = type_of(gate_up),
          .act = act_of(act.activation),
          .limit = static_cast<float>(act.clamp_limit),
          .rows = gate_up.size(0),
          .width = gate_up.size(1) / 2,
          .weights = data_of<float>(weights)};
}

}  // namespace

void check_ids(const at::Tensor& ids, int64_t limit, int64_t ignored, const char* what,
               Stream stream) {
  if (ids.numel() == 0) return;
  const at::Tensor found = at::empty({1}, ids.options());
  find_outside(data_of<int64_t>(ids), ids.numel(), limit, ignored, data_of<int64_t>(found), stream);
  const auto at = found.item<int64_t>();
  TRIREME_USER_CHECK(at < 0, kData,
                     "use the tokenizer that belongs to the model, or a larger vocab_size",
                     "{} {} is outside the table of {} entries", what,
                     at < 0 ? 0 : ids.select(0, at).item<int64_t>(), limit);
}

namespace ops {

void activation(Activation act, const at::Tensor& x, at::Tensor& y) {
  const Place place(x);
  gpu::activation(type_of(x), act_of(act), data_of(x), data_of(y), x.numel(), place.stream());
}

void activation_backward(Activation act, const at::Tensor& dy, const at::Tensor& x,
                         at::Tensor& dx) {
  const Place place(x);
  gpu::activation_backward(type_of(x), act_of(act), data_of(dy), data_of(x), data_of(dx), x.numel(),
                           place.stream());
}

void gated_activation(Activation act, const at::Tensor& gate_up, at::Tensor& y) {
  const Place place(y);
  gated(gated_of({act}, gate_up, {}), data_of(gate_up), data_of(y), place.stream());
}

void gated_activation_backward(Activation act, const at::Tensor& dy, const at::Tensor& gate_up,
                               at::Tensor& d_gate_up, at::Tensor y) {
  const Place place(dy);
  gated_backward(gated_of({act}, gate_up, {}), data_of(dy), data_of(gate_up), data_of(d_gate_up),
                 nullptr, data_of(y), place.stream());
}

void weighted_gated_activation(const ExpertActivation& act, const at::Tensor& gate_up,
                               const at::Tensor& weights, at::Tensor& y) {
  const Place place(y);
  gated(gated_of(act, gate_up, weights), data_of(gate_up), data_of(y), place.stream());
}

void weighted_gated_activation_backward(const ExpertActivation& act, const at::Tensor& dy,
                                        const at::Tensor& gate_up, const at::Tensor& weights,
                                        at::Tensor& d_gate_up, at::Tensor& d_weights,
                                        const at::Tensor& y) {
  const Place place(dy);
  gated_backward(gated_of(act, gate_up, weights), data_of(dy), data_of(gate_up), data_of(d_gate_up),
                 data_of<float>(d_weights), data_of(y), place.stream());
}

void rotary_(at::Tensor& x, const at::Tensor& positions, const at::Tensor& cos,
             const at::Tensor& sin, bool inverse, bool interleaved) {
  const Place place(x);
  rotary({.type = type_of(x),
          .tokens = x.size(0),
          .heads = x.size(1),
          .half = cos.size(1),
          .table_rows = cos.size(0),
          .x = data_of(x),
          .stride = x.stride(0),
          .head_stride = x.stride(1),
          .positions = data_of<int64_t>(positions),
          .cos = data_of<float>(cos),
          .sin = data_of<float>(sin),
          .inverse = inverse,
          .interleaved = interleaved},
         place.stream());
}

void embedding(const at::Tensor& tokens, const at::Tensor& weight, const at::Tensor& positions,
               const at::Tensor& position_weight, at::Tensor& out) {
  const Place place(weight);
  const at::Tensor ids = tokens.reshape(-1);
  check_ids(ids, weight.size(0), 0, "token id", place.stream());
  at::Tensor places;
  if (position_weight.defined()) {
    places = positions.reshape(-1);
    check_ids(places, position_weight.size(0), 0, "position", place.stream());
  }
  gather(type_of(weight), data_of<int64_t>(ids), data_of(weight), data_of<int64_t>(places),
         data_of(position_weight), data_of(out), ids.numel(), weight.size(1), place.stream());
}

void embedding_backward(const at::Tensor& tokens, const at::Tensor& dy, at::Tensor& dweight,
                        bool accumulate) {
  const Place place(dy);
  if (!accumulate) dweight.zero_();
  // Stable: rows of one token stay in order, and are summed in it.
  const auto [ids, order] = tokens.reshape(-1).sort(/*stable=*/true, 0, /*descending=*/false);
  scatter_sorted(type_of(dy), data_of<int64_t>(ids), data_of<int64_t>(order), data_of(dy),
                 data_of<float>(dweight), ids.numel(), dweight.size(1), place.stream());
}

void adamw_(at::Tensor& weights, const at::Tensor& gradients, at::Tensor& exp_avg,
            at::Tensor& exp_avg_sq, at::Tensor compute, const AdamWParams& params) {
  const Place place(weights);
  const auto step = static_cast<double>(params.step);
  const double correction1 = 1.0 - std::pow(params.beta1, step);
  const double correction2 = 1.0 - std::pow(params.beta2, step);
  adamw({.count = weights.numel(),
         .weights = data_of<float>(weights),
         .gradients = data_of<float>(gradients),
         .exp_avg = data_of<float>(exp_avg),
         .exp_avg_sq = data_of<float>(exp_avg_sq),
         .compute = data_of<Bf16>(compute),
         .gradient_scale = static_cast<float>(params.gradient_scale),
         .decay = static_cast<float>(1.0 - params.lr * params.weight_decay),
         .beta1 = static_cast<float>(params.beta1),
         .one_minus_beta1 = static_cast<float>(1.0 - params.beta1),
         .beta2 = static_cast<float>(params.beta2),
         .one_minus_beta2 = static_cast<float>(1.0 - params.beta2),
         .step_size = static_cast<float>(params.lr / correction1),
         .root_correction2 = static_cast<float>(std::sqrt(correction2)),
         .eps = static_cast<float>(params.eps)},
        place.stream());
}

double sum_of_squares(const at::Tensor& x) {
  if (x.numel() == 0) return 0.0;
  const Place place(x);
  const auto doubles = x.options().dtype(at::kDouble);
  const at::Tensor partial = at::empty({squares_partial_doubles(x.numel())}, doubles);
  const at::Tensor sum = at::empty({1}, doubles);
  gpu::sum_of_squares(data_of<float>(x), x.numel(), data_of<double>(partial), data_of<double>(sum),
                      place.stream());
  return sum.item<double>();
}

void squares_by_block(const at::Tensor& x, at::Tensor& out) {
  if (x.numel() == 0) return;
  const Place place(x);
  gpu::squares_by_block(data_of<float>(x), x.numel(), kSquaresBlock, data_of<double>(out),
                        place.stream());
}

void scaled_sum(const at::Tensor& x, double a, const at::Tensor& y, double b, at::Tensor& out) {
  const Place place(x);
  gpu::scaled_sum(type_of(out), data_of<float>(x), static_cast<float>(a), data_of<Bf16>(y),
                  static_cast<float>(b), data_of(out), x.numel(), place.stream());
}

}  // namespace ops

}  // namespace trireme::kernels::gpu
