// Activations, positions, and the optimizer's passes.
//
// What is computed element by element takes a handful of operations, and functions such as exp are within 4 units in the
// last place of float32 or they are not the function.
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>

#include <algorithm>
#include <cmath>

#include "trireme/kernels/conformance/trial.h"

namespace trireme::kernels::conformance {

namespace {

constexpr double kFunction = 16.0;  ///< operations that an activation counts as

// A value is x times a gate between 0 and 1, a slope at most 1.2: where they are small, terms of the size of 1 cancel
// (1 + tanh, 1 + erf), so m is |x| and 1.
Bound of_value(const at::Tensor& x) {
  return {.operations = kFunction, .magnitude = x.abs()};
}

// The argument of exp, tanh and erf grows with x (and its cube): an error of an argument a by one unit is an error of
// a in the slope's terms, as long as they are not saturated, from 8 on.
Bound of_slope(const at::Tensor& x, const at::Tensor& factor) {
  return {.operations = kFunction, .magnitude = factor.abs() * (1.0 + x.abs().clamp_max(8.0))};
}

constexpr int kNumActivations = 4;

// Sizes: any. Options: the activations.
void try_activation(decltype(&kernels::activation) activation, Trial& t) {
  const at::Tensor x = t.input(t.setting().sizes);
  at::Tensor y = t.output(x.sizes());
  activation(static_cast<Activation>(t.option()), x, y);
  t.result("y", y, of_value(x));
}

void try_activation_backward(decltype(&kernels::activation_backward) backward, Trial& t) {
  const at::Tensor x = t.input(t.setting().sizes);
  const at::Tensor dy = t.input(x.sizes());
  at::Tensor dx = t.output(x.sizes());
  backward(static_cast<Activation>(t.option()), dy, x, dx);
  t.result("dx", dx, of_slope(x, dy));
}

// Sizes: rows, width. Options: the activations, then the same in place.
void try_gated_activation(decltype(&kernels::gated_activation) gated, Trial& t) {
  const at::Tensor gate_up = t.input({t.size(0), 2 * t.size(1)});
  at::Tensor y = t.output({t.size(0), t.size(1)});
  gated(static_cast<Activation>(t.option()), gate_up, y);
  t.result(
      "y", y,
      {.operations = kFunction,
       .magnitude = gate_up.narrow(1, 0, t.size(1)) * gate_up.narrow(1, t.size(1), t.size(1))});
}

void try_gated_activation_backward(decltype(&kernels::gated_activation_backward) backward,
                                   Trial& t) {
  const int64_t width = t.size(1);
  const at::Tensor gate_up = t.input({t.size(0), 2 * width});
  const at::Tensor dy = t.input({t.size(0), width});
  const at::Tensor gate = gate_up.narrow(1, 0, width).clone();
  const at::Tensor up = gate_up.narrow(1, width, width).clone();
  const bool again = t.option() >= kNumActivations;
  const at::Tensor y = again ? t.output(dy.sizes()) : at::Tensor();
  at::Tensor d_gate_up = again ? gate_up : t.output(gate_up.sizes());
  backward(static_cast<Activation>(t.option() % kNumActivations), dy, gate_up, d_gate_up, y);
  t.result("d_gate", d_gate_up.narrow(1, 0, width), of_slope(gate, dy * up));
  t.result("d_up", d_gate_up.narrow(1, width, width),
           {.operations = kFunction, .magnitude = dy * gate});
  if (again) t.result("y", y, {.operations = kFunction, .magnitude = gate * up});
}

// Sizes: rows, heads, width of a head, places that turn. Options: forward, inverse, and both interleaved.
void try_rotary_(decltype(&kernels::rotary_) rotary, Trial& t) {
  const int64_t half = t.size(3) / 2;
  constexpr int64_t kPlaces = 50;
  at::Tensor x = t.rows({t.size(0), t.size(1), t.size(2)});
  const at::Tensor positions = t.integers({t.size(0)}, kPlaces);
  const at::Tensor angle = t.normal({kPlaces, half});
  const at::Tensor cos = t.wide(angle.cos());
  const at::Tensor sin = t.wide(angle.sin());
  Bound bound{.operations = 3};
  if (t.reference()) {
    // Two terms: both magnitudes, with the larger of the pair for either.
    const at::Tensor turning = x.narrow(2, 0, 2 * half);
    bound.magnitude = x.abs().clone();
    const int64_t head = t.option() >= 2 ? half : 2;
    at::Tensor pairs = t.option() >= 2 ? turning.unflatten(2, {head, 2})
                                       : turning.unflatten(2, {head, half}).transpose(2, 3);
    pairs = pairs.abs().sum(3, /*keepdim=*/true).expand(pairs.sizes());
    if (t.option() < 2) pairs = pairs.transpose(2, 3);
    bound.magnitude.narrow(2, 0, 2 * half).copy_(pairs.flatten(2, 3));
  }
  rotary(x, positions, cos, sin, t.option() % 2 == 1, t.option() >= 2);
  t.result("x", x, bound);
}

// Sizes: rows, heads, own, shared.
void try_join_shared_key(decltype(&kernels::join_shared_key) join, Trial& t) {
  const at::Tensor own = t.rows({t.size(0), t.size(1), t.size(2)});
  const at::Tensor shared = t.rows({t.size(0), 1, t.size(3)});
  at::Tensor k = t.output_rows({t.size(0), t.size(1), t.size(2) + t.size(3)});
  join(own, shared, k);
  t.exact("k", k);
}

void try_join_shared_key_backward(decltype(&kernels::join_shared_key_backward) backward, Trial& t) {
  const at::Tensor dk = t.rows({t.size(0), t.size(1), t.size(2) + t.size(3)});
  at::Tensor d_own = t.output_rows({t.size(0), t.size(1), t.size(2)});
  at::Tensor d_shared = t.output_rows({t.size(0), 1, t.size(3)});
  backward(dk, d_own, d_shared);
  t.exact("d_own", d_own);
  t.result("d_shared", d_shared,
           {.operations = static_cast<double>(t.size(1)),
            .magnitude = dk.narrow(2, t.size(2), t.size(3)).abs().sum(1, true)});
}

// Sizes: rows, width, entries. Options: tokens alone, with positions.
void try_embedding(decltype(&kernels::embedding) embedding, Trial& t) {
  const at::Tensor tokens = t.integers({t.size(0)}, t.size(2));
  const at::Tensor weight = t.input({t.size(2), t.size(1)});
  at::Tensor positions;
  at::Tensor position_weight;
  if (t.option() == 1) {
    positions = t.integers({t.size(0)}, 40);
    position_weight = t.input({40, t.size(1)});
  }
  at::Tensor out = t.output({t.size(0), t.size(1)});
  embedding(tokens, weight, positions, position_weight, out);
  t.result("out", out, {.operations = t.option() == 1 ? 1.0 : 0.0});
}

void try_embedding_backward(decltype(&kernels::embedding_backward) backward, Trial& t) {
  const at::Tensor tokens = t.integers({t.size(0)}, t.size(2));
  const at::Tensor dy = t.input({t.size(0), t.size(1)});
  const at::Tensor start = t.floats({t.size(2), t.size(1)});
  const bool accumulate = t.option() == 1;
  at::Tensor dweight = accumulate ? start.clone() : t.float_output(start.sizes());
  backward(tokens, dy, dweight, accumulate);
  Bound bound{.operations = static_cast<double>(t.size(0)) + 1};
  if (t.reference()) {
    bound.magnitude = accumulate ? start.abs() : at::full(start.sizes(), 0.0, start.options());
    bound.magnitude.index_add_(0, tokens, dy.abs());
  }
  t.result("dweight", dweight, bound);
}

// --- Flat buffers. Sizes: elements ------------------------------------------------------------------

// Options: the first step, a later one with decay and clipping, with a bfloat16 copy.
void try_adamw_(decltype(&kernels::adamw_) adamw, Trial& t) {
  at::Tensor weights = t.floats({t.size(0)});
  const at::Tensor gradients = t.floats({t.size(0)});
  at::Tensor exp_avg = t.floats({t.size(0)});
  at::Tensor exp_avg_sq = t.wide(t.normal({t.size(0)}).square());
  const at::Tensor compute = t.option() == 2 ? t.low_output({t.size(0)}) : at::Tensor();
  AdamWParams params{.lr = 1e-2, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8};
  if (t.option() > 0) {
    params.weight_decay = 0.1;
    params.step = 17;
    params.gradient_scale = 0.3;
  }
  Bound of_weights{.operations = 16};
  Bound of_avg{.operations = 6};
  if (t.reference()) {
    const double correction1 = 1.0 - std::pow(params.beta1, static_cast<double>(params.step));
    const double correction2 = 1.0 - std::pow(params.beta2, static_cast<double>(params.step));
    const at::Tensor g = gradients * params.gradient_scale;
    of_avg.magnitude = exp_avg.abs() * 2.0 + g.abs();
    const at::Tensor square = exp_avg_sq * params.beta2 + g.square() * (1.0 - params.beta2);
    of_weights.magnitude = weights.abs() + params.lr / correction1 * of_avg.magnitude /
                                               ((square / correction2).sqrt() + params.eps);
  }
  adamw(weights, gradients, exp_avg, exp_avg_sq, compute, params);
  t.result("exp_avg", exp_avg, of_avg);
  t.result("exp_avg_sq", exp_avg_sq, {.operations = 6});
  t.result("weights", weights, of_weights);
  if (compute.defined()) t.result("compute", compute, of_weights);
}

// Squares and their sum are double in the contract: no error that float32 would see.
void try_sum_of_squares(decltype(&kernels::sum_of_squares) sum_of_squares, Trial& t) {
  t.result("sum", sum_of_squares(t.floats({t.size(0)})), {.operations = 1});
}

void try_squares_by_block(decltype(&kernels::squares_by_block) squares_by_block, Trial& t) {
  const at::Tensor x = t.floats({t.size(0)});
  at::Tensor sums =
      at::empty({(x.numel() + kSquaresBlock - 1) / kSquaresBlock}, x.options().dtype(at::kDouble));
  squares_by_block(x, sums);
  t.result("sums", sums, {.operations = 1});
}

void try_add_(decltype(&kernels::add_) add, Trial& t) {
  at::Tensor a = t.floats({t.size(0)});
  add(a, t.floats({t.size(0)}));
  t.result("a", a, {.operations = 1});
}

// Options: to float32, to bfloat16.
void try_scaled_sum(decltype(&kernels::scaled_sum) scaled_sum, Trial& t) {
  const at::Tensor x = t.floats({t.size(0)});
  const at::Tensor y = t.low(t.normal({t.size(0)}));
  at::Tensor out = t.option() == 0 ? t.float_output(x.sizes()) : t.low_output(x.sizes());
  // Coefficients that float32 holds: their rounding is not the kernel's.
  constexpr double kA = 0.7109375;
  constexpr double kB = -1.3203125;
  scaled_sum(x, kA, y, kB, out);
  t.result("out", out,
           {.operations = 3, .magnitude = x.abs() * kA + y.abs().to(x.scalar_type()) * -kB});
}

void try_convert(decltype(&kernels::convert) convert, Trial& t) {
  const at::Tensor src = t.floats({t.size(0)});
  at::Tensor dst = t.option() == 0 ? t.float_output(src.sizes()) : t.low_output(src.sizes());
  convert(src, dst);
  // Half a unit in the last place: |got - y| <= v |y|.
  t.result("dst", dst, {.operations = 1, .magnitude = src * 0.0});
}

}  // namespace

std::vector<TrialTable> elementwise_trials() {
  const std::vector<const char*> activations = {"silu", "gelu_tanh", "gelu", "relu"};
  std::vector<const char*> twice = activations;
  for (const char* in_place :
       {"silu in place", "gelu_tanh in place", "gelu in place", "relu in place"})
    twice.push_back(in_place);
  const std::vector<std::vector<int64_t>> any = {{1}, {7}, {3, 33}, {130, 65}, {20000}, {0}};
  const std::vector<std::vector<int64_t>> matrices = {{1, 1}, {3, 7}, {65, 33}, {17, 1000}, {0, 8}};
  const std::vector<std::vector<int64_t>> turns = {
      {1, 1, 2, 2}, {5, 3, 8, 8}, {33, 2, 16, 10}, {9, 4, 66, 34}, {0, 2, 8, 8}};
  const std::vector<std::vector<int64_t>> keys = {
      {1, 1, 1, 1}, {5, 3, 7, 3}, {33, 16, 12, 8}, {0, 2, 4, 4}};
  const std::vector<std::vector<int64_t>> tables = {
      {1, 1, 1}, {7, 5, 3}, {65, 33, 100}, {1000, 17, 11}, {0, 8, 5}};
  const std::vector<std::vector<int64_t>> flat = {{1}, {7}, {1000}, {70001}, {0}};
  return {
      {"activation", any, activations, false, {Values::kTiny}, TRIREME_TRIAL(activation)},
      {"activation_backward",
       any,
       activations,
       false,
       {Values::kTiny},
       TRIREME_TRIAL(activation_backward)},
      {"gated_activation",
       matrices,
       activations,
       false,
       {Values::kTiny},
       TRIREME_TRIAL(gated_activation)},
      {"gated_activation_backward",
       matrices,
       twice,
       false,
       {},
       TRIREME_TRIAL(gated_activation_backward)},
      {"rotary_",
       turns,
       {"", "inverse", "interleaved", "interleaved inverse"},
       true,
       {},
       TRIREME_TRIAL(rotary_)},
      {"join_shared_key",
       keys,
       {""},
       true,
       {Values::kTiny, Values::kInfinite},
       TRIREME_TRIAL(join_shared_key)},
      {"join_shared_key_backward", keys, {""}, true, {}, TRIREME_TRIAL(join_shared_key_backward)},
      {"embedding",
       tables,
       {"", "with positions"},
       false,
       {Values::kTiny},
       TRIREME_TRIAL(embedding)},
      {"embedding_backward", tables, {"", "added"}, false, {}, TRIREME_TRIAL(embedding_backward)},
      {"adamw_",
       flat,
       {"first step", "decay and clipping", "with a copy"},
       false,
       {},
       TRIREME_TRIAL(adamw_)},
      {"sum_of_squares",
       flat,
       {""},
       false,
       {Values::kTiny, Values::kInfinite},
       TRIREME_TRIAL(sum_of_squares)},
      {"squares_by_block",
       flat,
       {""},
       false,
       {Values::kTiny, Values::kInfinite},
       TRIREME_TRIAL(squares_by_block)},
      {"add_", flat, {""}, false, {Values::kTiny, Values::kInfinite}, TRIREME_TRIAL(add_)},
      {"scaled_sum",
       flat,
       {"to float32", "to bfloat16"},
       false,
       {Values::kTiny},
       TRIREME_TRIAL(scaled_sum)},
      {"convert",
       flat,
       {"to float32", "to bfloat16"},
       false,
       {Values::kTiny, Values::kInfinite},
       TRIREME_TRIAL(convert)},
  };
}

}  // namespace trireme::kernels::conformance
