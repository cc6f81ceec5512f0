// The ops of a mixture of experts.
#include <ATen/TensorOperators.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <cmath>

#include "trireme/kernels/aten/aten_kernels.h"
#include "trireme/kernels/conformance/trial.h"

namespace trireme::kernels::conformance {

namespace {

// --- The router. Sizes: rows, experts, chosen, groups, chosen groups ------------------------------

enum RouterOption { kSoftmax, kAfterTopK, kNormalized, kSigmoid, kBiased, kNumRouterOptions };
const std::vector<const char*> kRouterOptions = {"softmax", "softmax after top-k", "normalized",
                                                 "sigmoid", "sigmoid with bias"};

RouterOptions router_of(const Trial& t) {
  RouterOptions o;
  o.top_k = t.size(2);
  o.num_groups = t.size(3);
  o.top_groups = t.size(4);
  o.softmax_after_top_k = t.option() == kAfterTopK;
  o.normalize = t.option() >= kNormalized;
  o.score = t.option() >= kSigmoid ? RouterScore::kSigmoid : RouterScore::kSoftmax;
  o.group_score_top2 = t.option() == kBiased;
  o.scaling = t.option() == kBiased ? 2.5 : 1.0;
  return o;
}

// A share is an exponential over a sum of positive terms: experts + 16 operations, and twice the size of a logit for the
// error of z - max(z).
double share_operations(const Trial& t, const at::Tensor& logits) {
  const double largest = logits.numel() > 0 ? logits.abs().max().item<double>() : 0.0;
  return static_cast<double>(t.size(1)) + 4 * largest + 16;
}

void try_route(decltype(&kernels::route) route, Trial& t) {
  const RouterOptions options = router_of(t);
  const at::Tensor logits = t.floats({t.size(0), t.size(1)});
  const at::Tensor bias = t.option() == kBiased ? t.floats({t.size(1)}) : at::Tensor();
  at::Tensor choice = t.integers({t.size(0), t.size(2)}, 1);
  at::Tensor weights = t.float_output({t.size(0), t.size(2)});
  route(logits, bias, options, choice, weights);
  t.exact("choice", choice);
  t.result("weights", weights, {.operations = 2 * share_operations(t, logits)});
}

/// Experts as the reference chooses them.
at::Tensor choice_of(Trial& t, const at::Tensor& logits, const RouterOptions& options) {
  const at::Tensor exact = logits.to(at::kCPU).to(at::kDouble);
  at::Tensor choice = t.integers({t.size(0), t.size(2)}, 1).to(at::kCPU);
  at::Tensor weights = exact.new_empty(choice.sizes());
  kernels::aten::route(exact, {}, options, choice, weights);
  return choice.to(logits.device());
}

void try_route_backward(decltype(&kernels::route_backward) backward, Trial& t) {
  const RouterOptions options = router_of(t);
  const at::Tensor logits = t.floats({t.size(0), t.size(1)});
  const at::Tensor choice = choice_of(t, logits, options);
  const at::Tensor d_weights = t.floats(choice.sizes());
  const bool balanced = t.size(0) > 0 && t.option() != kNormalized;
  const at::Tensor d_scores = balanced ? t.floats({1, t.size(1)}) : at::Tensor();
  const double z_gradient = t.option() == kSoftmax ? 0.25 : 0.0;
  at::Tensor d_logits = t.float_output(logits.sizes());
  backward(logits, choice, d_weights, options, d_scores, z_gradient, d_logits);
  Bound bound;
  if (t.reference() && logits.numel() > 0) {
    bound.operations = 3 * share_operations(t, logits);
    // Every term is a share (or a part of one over the chosen's sum) times gradients and their weighted means.
    const bool sigmoids = options.score == RouterScore::kSigmoid;
    const at::Tensor scores = sigmoids ? logits.sigmoid() : logits.softmax(1);
    const at::Tensor few = options.softmax_after_top_k ? logits.gather(1, choice).softmax(1)
                                                       : scores.gather(1, choice);
    at::Tensor d_few = d_weights.abs() * options.scaling;
    if (options.normalize) {
      const at::Tensor sum = few.sum(1, true);
      d_few = (d_few + (d_few * few).sum(1, true) / sum) / sum;
    }
    at::Tensor ds = logits.new_zeros(logits.sizes());
    bound.magnitude = logits.new_zeros(logits.sizes());
    if (options.softmax_after_top_k) {
      bound.magnitude =
          bound.magnitude.scatter(1, choice, few * (d_few + (d_few * few).sum(1, true)));
    } else {
      ds = ds.scatter(1, choice, d_few);
    }
    if (d_scores.defined()) {
      const at::Tensor sum = sigmoids ? scores.sum(1, true) : logits.new_ones({logits.size(0), 1});
      at::Tensor g = d_scores.abs().expand_as(logits);
      if (sigmoids) g = (g + (g * scores).sum(1, true) / sum) / sum;
      ds = ds + g;
    }
    bound.magnitude =
        bound.magnitude + (sigmoids ? ds * scores : scores * (ds + (ds * scores).sum(1, true)));
    bound.magnitude = bound.magnitude +
                      2 * z_gradient * (logits.logsumexp(1, true).abs() + 1.0) * logits.softmax(1);
  }
  t.result("d_logits", d_logits, bound);
}

void try_balance(decltype(&kernels::balance) balance, Trial& t) {
  const RouterOptions options = router_of(t);
  const at::Tensor logits = t.floats({t.size(0), t.size(1)});
  const at::Tensor choice = choice_of(t, logits, options);
  const int64_t sets = t.size(0) % 3 == 0 && t.size(0) > 0 ? 3 : 1;
  const RouterBalance result = balance(logits, choice, options, sets, {});
  t.exact("load", at::tensor(result.load));
  const double operations = share_operations(t, logits);
  t.result("loss", result.loss, {.operations = operations});
  // logsumexp is off by gamma (1 + |z|), absolute; its square by twice that times itself.
  const at::Tensor unit = at::tensor(std::vector<double>{1.0}).squeeze(0);
  const double lse = std::sqrt(result.z_loss);
  t.result("z_loss", result.z_loss,
           {.operations = operations, .magnitude = unit * (2 * (lse + 1) * (lse + 1))});
  t.result("entropy", result.entropy,
           {.operations = operations,
            .magnitude = unit * (1.0 + std::log(static_cast<double>(t.size(1))))});
  t.result("d_scores", result.d_scores, {.operations = 3});
}

// --- Rows. Sizes: tokens, experts, chosen, width, capacity ------------------------------------------
// Options of sort_by_expert: nothing dropped, a capacity, padded to it.

const std::vector<const char*> kSortOptions = {"", "with capacity", "padded"};

ExpertRows sorted(decltype(&kernels::sort_by_expert) sort, Trial& t, at::Tensor& weights) {
  // Experts of a token are different ones: a rotation of 0 .. k - 1.
  const at::Tensor first = t.integers({t.size(0), 1}, t.size(1));
  const at::Tensor step = t.integers({t.size(0), t.size(2)}, 1);
  at::Tensor choice = (first + (step + 1).cumsum(1)).remainder(t.size(1)).contiguous();
  weights = t.wide(t.normal({t.size(0), t.size(2)}).abs());
  const int64_t capacity = t.option() == 0 ? 0 : t.size(4);
  return sort(choice, weights, t.size(1), capacity, t.option() == 2);
}

/// The rows that the reference makes, on the trial's device.
ExpertRows rows_of(Trial& t, at::Tensor& weights) {
  ExpertRows rows = sorted(&kernels::aten::sort_by_expert, t, weights);
  return rows;
}

void try_sort_by_expert(decltype(&kernels::sort_by_expert) sort, Trial& t) {
  at::Tensor weights;
  const ExpertRows rows = sorted(sort, t, weights);
  t.exact("offsets", at::tensor(rows.offsets));
  t.exact("tokens", rows.tokens);
  t.exact("rows", rows.rows);
  t.exact("dropped", at::tensor(std::vector<int64_t>{rows.dropped}));
}

void try_gather_rows(decltype(&kernels::gather_rows) gather, Trial& t) {
  at::Tensor weights;
  const ExpertRows rows = rows_of(t, weights);
  const at::Tensor x = t.input({t.size(0), t.size(3)});
  at::Tensor y = t.output({rows.count(), t.size(3)});
  gather(x, rows, y);
  t.exact("y", y);
}

void try_sum_rows(decltype(&kernels::sum_rows) sum, Trial& t) {
  at::Tensor weights;
  const ExpertRows rows = rows_of(t, weights);
  const at::Tensor y = t.input({rows.count(), t.size(3)});
  const at::Tensor start = t.option() == 1 ? t.input({t.size(0), t.size(3)}) : at::Tensor();
  at::Tensor out = t.output({t.size(0), t.size(3)});
  sum(y, rows, start, out);
  Bound bound{.operations = static_cast<double>(t.size(2)) + 1};
  if (t.reference()) {
    bound.magnitude = out.clone();
    kernels::aten::sum_rows(y.abs(), rows, start.defined() ? start.abs() : start, bound.magnitude);
  }
  t.result("out", out, bound);
}

void try_weights_of_rows(decltype(&kernels::weights_of_rows) move, Trial& t) {
  at::Tensor weights;
  const ExpertRows rows = rows_of(t, weights);
  at::Tensor of_rows = t.float_output({rows.count()});
  move(weights, rows, of_rows);
  t.exact("of_rows", of_rows);
}

void try_weights_of_choices(decltype(&kernels::weights_of_choices) move, Trial& t) {
  at::Tensor weights;
  const ExpertRows rows = rows_of(t, weights);
  const at::Tensor of_rows = t.floats({rows.count()});
  at::Tensor back = t.float_output({t.size(0), t.size(2)});
  move(of_rows, rows, back);
  t.exact("weights", back);
}

// --- The gate with a weight a row. Sizes: rows, width. Options: the activations, and gpt_oss's --------

constexpr int kClamped = 4;
constexpr double kFunction = 16.0;

ExpertActivation activation_of(const Trial& t) {
  if (t.option() == kClamped) return {Activation::kSilu, 1.0};
  return {static_cast<Activation>(t.option()), 0.0};
}

/// |up|, or |up| + 1 where that is the factor.
at::Tensor factor_of(const Trial& t, const at::Tensor& up) {
  return t.option() == kClamped ? up.abs() + 1.0 : up.abs();
}

void try_weighted_gated_activation(decltype(&kernels::weighted_gated_activation) gated, Trial& t) {
  const at::Tensor gate_up = t.input({t.size(0), 2 * t.size(1)});
  const at::Tensor weights = t.floats({t.size(0)});
  at::Tensor y = t.output({t.size(0), t.size(1)});
  gated(activation_of(t), gate_up, weights, y);
  const at::Tensor gate = gate_up.narrow(1, 0, t.size(1));
  const at::Tensor up = gate_up.narrow(1, t.size(1), t.size(1));
  t.result(
      "y", y,
      {.operations = kFunction + 2, .magnitude = gate * factor_of(t, up) * weights.unsqueeze(1)});
}

void try_weighted_gated_activation_backward(
    decltype(&kernels::weighted_gated_activation_backward) backward, Trial& t) {
  const int64_t width = t.size(1);
  const at::Tensor gate_up = t.input({t.size(0), 2 * width});
  const at::Tensor weights = t.floats({t.size(0)});
  const at::Tensor dy = t.input({t.size(0), width});
  at::Tensor d_gate_up = t.output(gate_up.sizes());
  at::Tensor d_weights = t.float_output({t.size(0)});
  const at::Tensor y = t.output(dy.sizes());
  backward(activation_of(t), dy, gate_up, weights, d_gate_up, d_weights, y);
  const at::Tensor gate = gate_up.narrow(1, 0, width).abs();
  const at::Tensor up = factor_of(t, gate_up.narrow(1, width, width));
  const at::Tensor w = weights.unsqueeze(1).abs();
  const at::Tensor grad = dy.abs();
  // As of the gate without a weight (elementwise_trials.cpp); 1.702 g is gpt_oss's argument.
  t.result("d_gate", d_gate_up.narrow(1, 0, width),
           {.operations = kFunction + 4,
            .magnitude = grad * up * w * (1.0 + 2.0 * gate.clamp_max(8.0))});
  t.result("d_up", d_gate_up.narrow(1, width, width),
           {.operations = kFunction + 2, .magnitude = grad * gate * w});
  t.result("d_weights", d_weights,
           {.operations = kFunction + 2 + static_cast<double>(width),
            .magnitude = (grad * gate * up).sum(1)});
  t.result("y", y, {.operations = kFunction + 2, .magnitude = gate * up * w});
}

// --- Products by group. Sizes: in, out, out of a second part (0: none), then the rows of every group ---

GroupOffsets offsets_of(const Trial& t) {
  GroupOffsets offsets = {0};
  for (size_t i = 3; i < t.setting().sizes.size(); ++i)
    offsets.push_back(offsets.back() + t.size(i));
  return offsets;
}

int64_t most_rows(const GroupOffsets& offsets) {
  int64_t most = 0;
  for (size_t g = 0; g + 1 < offsets.size(); ++g)
    most = std::max(most, offsets[g + 1] - offsets[g]);
  return most;
}

std::vector<at::Tensor> absolute(const std::vector<at::Tensor>& tensors) {
  std::vector<at::Tensor> result;
  for (const at::Tensor& tensor : tensors) result.push_back(tensor.abs());
  return result;
}

std::vector<at::Tensor> weights_of(Trial& t, const GroupOffsets& offsets) {
  const auto groups = static_cast<int64_t>(offsets.size()) - 1;
  std::vector<at::Tensor> weights = {t.input({groups, t.size(1), t.size(0)})};
  if (t.size(2) > 0) weights.push_back(t.input({groups, t.size(2), t.size(0)}));
  return weights;
}

void try_grouped_linear(decltype(&kernels::grouped_linear) linear, Trial& t) {
  const GroupOffsets offsets = offsets_of(t);
  const at::Tensor x = t.rows({offsets.back(), t.size(0)});
  const std::vector<at::Tensor> weights = weights_of(t, offsets);
  const at::Tensor start = t.input({offsets.back(), t.size(1) + t.size(2)});
  const bool accumulate = t.option() == 1;
  at::Tensor y = accumulate ? t.strided(start.clone()) : t.output_rows(start.sizes());
  linear(x, weights, offsets, accumulate, y);
  Bound bound{.operations = static_cast<double>(t.size(0)) + 1};
  if (t.reference()) {
    bound.magnitude = start.abs();
    kernels::aten::grouped_linear(x.abs(), absolute(weights), offsets, accumulate, bound.magnitude);
  }
  t.result("y", y, bound);
}

void try_grouped_linear_backward_input(decltype(&kernels::grouped_linear_backward_input) backward,
                                       Trial& t) {
  const GroupOffsets offsets = offsets_of(t);
  const at::Tensor dy = t.rows({offsets.back(), t.size(1) + t.size(2)});
  const std::vector<at::Tensor> weights = weights_of(t, offsets);
  at::Tensor dx = t.output_rows({offsets.back(), t.size(0)});
  backward(dy, weights, offsets, dx);
  Bound bound{.operations = static_cast<double>(t.size(1) + t.size(2))};
  if (t.reference()) {
    bound.magnitude = dx.clone();
    kernels::aten::grouped_linear_backward_input(dy.abs(), absolute(weights), offsets,
                                                 bound.magnitude);
  }
  t.result("dx", dx, bound);
}

void try_grouped_linear_backward_weight(decltype(&kernels::grouped_linear_backward_weight) backward,
                                        Trial& t) {
  const GroupOffsets offsets = offsets_of(t);
  const at::Tensor dy = t.rows({offsets.back(), t.size(1) + t.size(2)});
  const at::Tensor x = t.rows({offsets.back(), t.size(0)});
  const bool accumulate = t.option() == 1;
  std::vector<at::Tensor> start;
  for (const at::Tensor& weight : weights_of(t, offsets)) start.push_back(t.floats(weight.sizes()));
  std::vector<at::Tensor> dweights;
  for (const at::Tensor& part : start)
    dweights.push_back(accumulate ? part.clone() : t.float_output(part.sizes()));
  backward(dy, x, offsets, dweights, accumulate);
  std::vector<at::Tensor> magnitudes = absolute(start);
  if (t.reference())
    kernels::aten::grouped_linear_backward_weight(dy.abs(), x.abs(), offsets, magnitudes,
                                                  accumulate);
  const double operations = static_cast<double>(most_rows(offsets)) + 1;
  for (size_t i = 0; i < dweights.size(); ++i)
    t.result(i == 0 ? "dweight" : "second dweight", dweights[i],
             {.operations = operations, .magnitude = magnitudes[i]});
}

// Sizes as above; the bias is `out` wide. Options: with weights, without.
void try_grouped_bias(decltype(&kernels::grouped_bias) grouped_bias, Trial& t) {
  const GroupOffsets offsets = offsets_of(t);
  const at::Tensor bias = t.input({static_cast<int64_t>(offsets.size()) - 1, t.size(1)});
  const at::Tensor weights = t.option() == 0 ? t.floats({offsets.back()}) : at::Tensor();
  at::Tensor y = t.output_rows({offsets.back(), t.size(1)});
  grouped_bias(bias, weights, offsets, y);
  t.result("y", y, {.operations = 1});
}

void try_grouped_bias_backward(decltype(&kernels::grouped_bias_backward) backward, Trial& t) {
  const GroupOffsets offsets = offsets_of(t);
  const at::Tensor dy = t.rows({offsets.back(), t.size(1)});
  const at::Tensor bias = t.input({static_cast<int64_t>(offsets.size()) - 1, t.size(1)});
  const bool weighted = t.option() == 0;
  const bool accumulate = t.option() == 1;
  const at::Tensor weights = weighted ? t.floats({offsets.back()}) : at::Tensor();
  const at::Tensor start = t.floats(bias.sizes());
  const at::Tensor start_weights = t.floats({offsets.back()});
  at::Tensor dbias = accumulate ? start.clone() : t.float_output(bias.sizes());
  const at::Tensor d_weights = weighted ? start_weights.clone() : at::Tensor();
  backward(dy, bias, weights, offsets, dbias, accumulate, d_weights);
  Bound by_bias{.operations = static_cast<double>(most_rows(offsets)) + 2};
  Bound by_weights{.operations = static_cast<double>(t.size(1)) + 2};
  if (t.reference()) {
    by_bias.magnitude = start.abs();
    by_weights.magnitude = start_weights.abs();
    kernels::aten::grouped_bias_backward(dy.abs(), bias.abs(), weighted ? weights.abs() : weights,
                                         offsets, by_bias.magnitude, accumulate,
                                         weighted ? by_weights.magnitude : at::Tensor());
  }
  t.result("dbias", dbias, by_bias);
  if (weighted) t.result("d_weights", d_weights, by_weights);
}

}  // namespace

std::vector<TrialTable> expert_trials() {
  const std::vector<std::vector<int64_t>> routers = {
      {1, 1, 1, 1, 1}, {7, 5, 2, 1, 1}, {66, 16, 4, 4, 2}, {129, 64, 8, 8, 4}, {0, 8, 2, 1, 1}};
  const std::vector<std::vector<int64_t>> rows = {
      {1, 1, 1, 1, 1}, {7, 5, 2, 3, 2}, {65, 8, 3, 33, 20}, {200, 16, 4, 17, 60}, {0, 4, 2, 8, 3}};
  const std::vector<std::vector<int64_t>> gates = {{1, 1}, {3, 7}, {65, 33}, {17, 1000}, {0, 8}};
  const std::vector<std::vector<int64_t>> groups = {{1, 1, 0, 1},
                                                    {5, 7, 3, 2, 0, 4},
                                                    {33, 65, 0, 1, 70, 0, 33},
                                                    {48, 24, 24, 130, 5, 16, 2, 0},
                                                    {8, 4, 0, 0, 0}};
  const std::vector<const char*> gate_options = {"silu", "gelu_tanh", "gelu", "relu", "clamped"};
  return {
      {"route", routers, kRouterOptions, false, {}, TRIREME_TRIAL(route)},
      {"route_backward", routers, kRouterOptions, false, {}, TRIREME_TRIAL(route_backward)},
      {"balance", routers, kRouterOptions, false, {}, TRIREME_TRIAL(balance)},
      {"sort_by_expert", rows, kSortOptions, false, {}, TRIREME_TRIAL(sort_by_expert)},
      {"gather_rows",
       rows,
       kSortOptions,
       false,
       {Values::kTiny, Values::kInfinite},
       TRIREME_TRIAL(gather_rows)},
      {"sum_rows", rows, kSortOptions, false, {}, TRIREME_TRIAL(sum_rows)},
      {"weights_of_rows", rows, kSortOptions, false, {}, TRIREME_TRIAL(weights_of_rows)},
      {"weights_of_choices", rows, kSortOptions, false, {}, TRIREME_TRIAL(weights_of_choices)},
      {"weighted_gated_activation",
       gates,
       gate_options,
       false,
       {},
       TRIREME_TRIAL(weighted_gated_activation)},
      {"weighted_gated_activation_backward",
       gates,
       gate_options,
       false,
       {},
       TRIREME_TRIAL(weighted_gated_activation_backward)},
      {"grouped_linear", groups, {"", "added"}, true, {}, TRIREME_TRIAL(grouped_linear)},
      {"grouped_linear_backward_input",
       groups,
       {""},
       true,
       {},
       TRIREME_TRIAL(grouped_linear_backward_input)},
      {"grouped_linear_backward_weight",
       groups,
       {"", "added"},
       true,
       {},
       TRIREME_TRIAL(grouped_linear_backward_weight)},
      {"grouped_bias", groups, {"with weights", ""}, true, {}, TRIREME_TRIAL(grouped_bias)},
      {"grouped_bias_backward",
       groups,
       {"with weights", "added", ""},
       true,
       {},
       TRIREME_TRIAL(grouped_bias_backward)},
  };
}

}  // namespace trireme::kernels::conformance
