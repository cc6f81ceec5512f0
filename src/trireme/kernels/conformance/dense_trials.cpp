// Products, norms and the output head.
//
// A product is a sum over its inner dimension: n = inner + the terms added to it, m = the product of the magnitudes.
#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/rsqrt.h>

#include <cmath>

#include "trireme/kernels/conformance/trial.h"

namespace trireme::kernels::conformance {

namespace {

/// |a| |b|.
at::Tensor product_of_magnitudes(const at::Tensor& a, const at::Tensor& b) {
  return at::matmul(a.abs(), b.abs());
}

// Sizes: rows, in, out. Options: plain, bias, residual, both.
void try_linear(decltype(&kernels::linear) linear, Trial& t) {
  const int64_t rows = t.size(0);
  const int64_t in = t.size(1);
  const int64_t out = t.size(2);
  const at::Tensor x = t.rows({rows, in});
  const at::Tensor weight = t.rows({out, in});
  std::optional<at::Tensor> bias;
  std::optional<at::Tensor> residual;
  if (t.option() == 1 || t.option() == 3) bias = t.input({out});
  if (t.option() >= 2) residual = t.rows({rows, out});
  at::Tensor y = t.output_rows({rows, out});
  linear(x, weight, bias, residual, y);
  Bound bound{.operations = static_cast<double>(in) + 2};
  if (t.reference()) {
    bound.magnitude = product_of_magnitudes(x, weight.t());
    if (bias) bound.magnitude = bound.magnitude + bias->abs();
    if (residual) bound.magnitude = bound.magnitude + residual->abs();
  }
  t.result("y", y, bound);
}

// Sizes: rows, in, out. Options: overwrite, accumulate.
void try_linear_backward_input(decltype(&kernels::linear_backward_input) backward, Trial& t) {
  const at::Tensor dy = t.rows({t.size(0), t.size(2)});
  const at::Tensor weight = t.rows({t.size(2), t.size(1)});
  const at::Tensor start = t.input({t.size(0), t.size(1)});
  const bool accumulate = t.option() == 1;
  at::Tensor dx = accumulate ? t.strided(start.clone()) : t.output_rows(start.sizes());
  backward(dy, weight, dx, accumulate);
  Bound bound{.operations = static_cast<double>(t.size(2)) + 1};
  if (t.reference()) {
    bound.magnitude = product_of_magnitudes(dy, weight);
    if (accumulate) bound.magnitude = bound.magnitude + start.abs();
  }
  t.result("dx", dx, bound);
}

void try_linear_backward_weight(decltype(&kernels::linear_backward_weight) backward, Trial& t) {
  const at::Tensor dy = t.rows({t.size(0), t.size(2)});
  const at::Tensor x = t.rows({t.size(0), t.size(1)});
  const at::Tensor start = t.floats({t.size(2), t.size(1)});
  const bool accumulate = t.option() == 1;
  at::Tensor dweight = accumulate ? start.clone() : t.float_output(start.sizes());
  backward(dy, x, dweight, accumulate);
  Bound bound{.operations = static_cast<double>(t.size(0)) + 1};
  if (t.reference()) {
    bound.magnitude = product_of_magnitudes(dy.t(), x);
    if (accumulate) bound.magnitude = bound.magnitude + start.abs();
  }
  t.result("dweight", dweight, bound);
}

// Sizes: rows, width.
void try_bias_gradient(decltype(&kernels::bias_gradient) gradient, Trial& t) {
  const at::Tensor dy = t.rows({t.size(0), t.size(1)});
  const at::Tensor start = t.floats({t.size(1)});
  const bool accumulate = t.option() == 1;
  at::Tensor dbias = accumulate ? start.clone() : t.float_output(start.sizes());
  gradient(dy, dbias, accumulate);
  Bound bound{.operations = static_cast<double>(t.size(0)) + 1};
  if (t.reference()) {
    bound.magnitude = dy.abs().sum(0);
    if (accumulate) bound.magnitude = bound.magnitude + start.abs();
  }
  t.result("dbias", dbias, bound);
}

// Sizes: rows, in.
void try_gram(decltype(&kernels::gram) gram, Trial& t) {
  const at::Tensor x = t.rows({t.size(0), t.size(1)});
  at::Tensor y = t.float_output({t.size(0), t.size(0)});
  gram(x, y);
  Bound bound{.operations = static_cast<double>(t.size(1))};
  if (t.reference()) bound.magnitude = product_of_magnitudes(x, x.t());
  t.result("y", y, bound);
}

// --- Norms. Sizes: rows, heads (0: a matrix), width ------------------------------------------------

std::vector<int64_t> rows_of(const Trial& t) {
  if (t.size(1) == 0) return {t.size(0), t.size(2)};
  return {t.size(0), t.size(1), t.size(2)};
}

at::Tensor mean_of(const at::Tensor& x) {
  return x.mean(-1, /*keepdim=*/true);
}

std::vector<int64_t> statistics_of(const Trial& t) {
  std::vector<int64_t> sizes = rows_of(t);
  sizes.pop_back();
  return sizes;
}

constexpr double kEps = 1e-5;

// All terms of the mean of squares are positive: its relative error is gamma(width + 1), the square root halves it, and a
// handful of operations follow. Options: weight alone, with an offset, without rstd.
void try_rms_norm(decltype(&kernels::rms_norm) rms_norm, Trial& t) {
  const double offset = t.option() == 1 ? 1.0 : 0.0;
  const at::Tensor x = t.rows(rows_of(t));
  const at::Tensor weight = t.input({t.size(2)});
  at::Tensor y = t.output_rows(rows_of(t));
  const at::Tensor rstd = t.option() == 2 ? at::Tensor() : t.float_output(statistics_of(t));
  rms_norm(x, weight, kEps, y, rstd, offset);
  const double operations = static_cast<double>(t.size(2)) / 2 + 6;
  Bound bound{.operations = operations};
  if (t.reference()) {
    const at::Tensor scale = (mean_of(x.square()) + kEps).rsqrt();
    bound.magnitude = x.abs() * scale * (weight.abs() + std::abs(offset));
  }
  t.result("y", y, bound);
  if (rstd.defined()) t.result("rstd", rstd, {.operations = operations});
}

// Options: overwrite, add to dx and dweight, an offset, dweight alone, dx alone.
void try_rms_norm_backward(decltype(&kernels::rms_norm_backward) backward, Trial& t) {
  const bool add = t.option() == 1;
  const double offset = t.option() == 2 ? 1.0 : 0.0;
  const at::Tensor drawn = t.normal(rows_of(t));
  const at::Tensor x = t.strided(t.compute(drawn));
  const at::Tensor weight = t.input({t.size(2)});
  const at::Tensor dy = t.rows(rows_of(t));
  const at::Tensor rstd = t.wide((drawn.square().mean(-1) + kEps).rsqrt());
  const at::Tensor start = t.input(rows_of(t));
  const at::Tensor start_weight = t.floats({t.size(2)});
  at::Tensor dx;
  at::Tensor dweight;
  if (t.option() != 3) dx = t.strided(add ? start.clone() : t.output(rows_of(t)));
  if (t.option() != 4) dweight = add ? start_weight.clone() : t.float_output({t.size(2)});
  backward(dy, x, weight, rstd, dx, add, dweight, add, offset);
  Bound by_x{.operations = static_cast<double>(t.size(2)) + 8};
  Bound by_weight{.operations =
                      static_cast<double>(dy.numel() / std::max<int64_t>(1, t.size(2))) + 3};
  if (t.reference()) {
    const at::Tensor scale = rstd.unsqueeze(-1);
    const at::Tensor normed = (x * scale).abs();
    const at::Tensor scaled = dy.abs() * (weight.abs() + std::abs(offset));
    by_x.magnitude = scale * (scaled + normed * mean_of(scaled * normed));
    by_weight.magnitude = (dy.abs() * normed).flatten(0, -2).sum(0);
    if (add) {
      by_x.magnitude = by_x.magnitude + start.abs();
      by_weight.magnitude = by_weight.magnitude + start_weight.abs();
    }
  }
  if (dx.defined()) t.result("dx", dx, by_x);
  if (dweight.defined()) t.result("dweight", dweight, by_weight);
}

// The mean has an absolute error of gamma(width) mean|x|, which x - mean keeps and the variance sees squared and in its
// first order: m is made of |x| + mean|x| in place of |x - mean|. Options: bias, no bias, no statistics.
void try_layer_norm(decltype(&kernels::layer_norm) layer_norm, Trial& t) {
  const at::Tensor x = t.rows(rows_of(t));
  const at::Tensor weight = t.input({t.size(2)});
  const at::Tensor bias = t.option() == 1 ? at::Tensor() : t.input({t.size(2)});
  at::Tensor y = t.output_rows(rows_of(t));
  at::Tensor mean;
  at::Tensor rstd;
  if (t.option() != 2) {
    mean = t.float_output(statistics_of(t));
    rstd = t.float_output(statistics_of(t));
  }
  layer_norm(x, weight, bias, kEps, y, mean, rstd);
  const auto width = static_cast<double>(t.size(2));
  Bound bound{.operations = 2 * width + 10};
  Bound of_mean{.operations = width + 1};
  Bound of_rstd{.operations = 2 * width + 6};
  if (t.reference()) {
    const at::Tensor size = x.abs() + mean_of(x.abs());
    const at::Tensor centred = x - mean_of(x);
    const at::Tensor scale = (mean_of(centred.square()) + kEps).rsqrt();
    // d rstd / rstd = -(error of the variance) / (2 variance) <= mean|size centred| scale^2 gamma.
    const at::Tensor condition = 1.0 + mean_of(size * centred.abs()) * scale.square();
    bound.magnitude = size * scale * condition * weight.abs();
    if (bias.defined()) bound.magnitude = bound.magnitude + bias.abs();
    of_mean.magnitude = x.abs().mean(-1);
    of_rstd.magnitude = (scale * condition).squeeze(-1);
  }
  t.result("y", y, bound);
  if (mean.defined()) t.result("mean", mean, of_mean);
  if (rstd.defined()) t.result("rstd", rstd, of_rstd);
}

// Options: overwrite, add, no dbias, no dweight, dx alone, parameters alone.
void try_layer_norm_backward(decltype(&kernels::layer_norm_backward) backward, Trial& t) {
  const bool add = t.option() == 1;
  const at::Tensor drawn = t.normal(rows_of(t));
  const at::Tensor centred = drawn - mean_of(drawn);
  const at::Tensor x = t.strided(t.compute(drawn));
  const at::Tensor weight = t.input({t.size(2)});
  const at::Tensor dy = t.rows(rows_of(t));
  const at::Tensor mean = t.wide(drawn.mean(-1));
  const at::Tensor rstd = t.wide((centred.square().mean(-1) + kEps).rsqrt());
  const at::Tensor start = t.input(rows_of(t));
  const at::Tensor start_weight = t.floats({t.size(2)});
  const at::Tensor start_bias = t.floats({t.size(2)});
  at::Tensor dx;
  at::Tensor dweight;
  at::Tensor dbias;
  if (t.option() != 5) dx = t.strided(add ? start.clone() : t.output(rows_of(t)));
  if (t.option() != 3 && t.option() != 4)
    dweight = add ? start_weight.clone() : t.float_output({t.size(2)});
  if (t.option() != 2 && t.option() != 4)
    dbias = add ? start_bias.clone() : t.float_output({t.size(2)});
  backward(dy, x, weight, mean, rstd, dx, add, dweight, dbias, add);
  const double rows = static_cast<double>(dy.numel() / std::max<int64_t>(1, t.size(2)));
  Bound by_x{.operations = static_cast<double>(t.size(2)) + 10};
  Bound by_weight{.operations = rows + 4};
  Bound by_bias{.operations = rows + 1};
  if (t.reference()) {
    const at::Tensor scale = rstd.unsqueeze(-1);
    const at::Tensor normed = (x.abs() + mean.unsqueeze(-1).abs()) * scale;
    const at::Tensor scaled = dy.abs() * weight.abs();
    by_x.magnitude = scale * (scaled + mean_of(scaled) + normed * mean_of(scaled * normed));
    by_weight.magnitude = (dy.abs() * normed).flatten(0, -2).sum(0);
    by_bias.magnitude = dy.abs().flatten(0, -2).sum(0);
    if (add) {
      by_x.magnitude = by_x.magnitude + start.abs();
      by_weight.magnitude = by_weight.magnitude + start_weight.abs();
      by_bias.magnitude = by_bias.magnitude + start_bias.abs();
    }
  }
  if (dx.defined()) t.result("dx", dx, by_x);
  if (dweight.defined()) t.result("dweight", dweight, by_weight);
  if (dbias.defined()) t.result("dbias", dbias, by_bias);
}

// --- The output head. Sizes: rows, width, vocabulary, rows of a chunk -------------------------------
//
// An error e of a logit changes a probability by the factor exp(2 e), and a loss by 2 e: with L the largest sum of
// magnitudes behind a logit, 2 L counts as so many operations more. The exponential and the logarithm are within a few
// units; 16 for all of them. Options: all results, a soft cap, no gradients, accumulated.
void try_linear_cross_entropy(decltype(&kernels::linear_cross_entropy) cross_entropy, Trial& t) {
  const int64_t rows = t.size(0);
  const int64_t width = t.size(1);
  const int64_t vocab = t.size(2);
  const double softcap = t.option() == 1 ? 2.0 : 0.0;
  const double scale = 0.37;
  const at::Tensor hidden = t.input({rows, width});
  const at::Tensor weight = t.input({vocab, width});
  at::Tensor targets = t.integers({rows}, vocab);
  if (rows > 2) targets.select(0, 1).fill_(kIgnoredTarget);
  const at::Tensor start = t.floats({vocab, width});
  CrossEntropyOutputs outputs;
  outputs.losses = t.float_output({rows});
  if (t.option() != 2) {
    outputs.d_hidden = t.output({rows, width});
    outputs.accumulate = t.option() == 3;
    outputs.d_weight = outputs.accumulate ? start.clone() : t.float_output({vocab, width});
  }
  const double loss = cross_entropy(hidden, weight, targets, scale, t.size(3), outputs, softcap);
  Bound of_loss;
  Bound of_losses;
  Bound by_hidden{.low_roundings = 1};
  Bound by_weight{.low_roundings = 1};
  if (t.reference()) {
    const at::Tensor sizes = product_of_magnitudes(hidden, weight.t());
    const double largest = sizes.numel() > 0 ? sizes.max().item<double>() : 0.0;
    const double of_logit = 2 * largest * (static_cast<double>(width) + 4) + 16;
    // A loss is a logarithm of at least one: its error is absolute.
    of_losses = {.operations = of_logit + static_cast<double>(vocab),
                 .magnitude = outputs.losses.abs() + 1.0};
    of_loss = {.operations = of_logit + static_cast<double>(vocab),
               .magnitude = (outputs.losses.abs() + 1.0).sum()};
    at::Tensor logits = at::matmul(hidden, weight.t());
    at::Tensor slope = at::full({}, scale, logits.options());
    if (softcap > 0.0) {
      const at::Tensor tanh = (logits / softcap).tanh();
      logits = tanh * softcap;
      // 1 - t^2 loses digits where t is near 1: its own error is that of t, twice.
      slope = slope * (1.0 + 2.0 * tanh.square());
    }
    at::Tensor d_logits = logits.softmax(1) * slope;
    const at::Tensor counted = targets.ne(kIgnoredTarget).to(at::kDouble).unsqueeze(1);
    if (rows > 0)
      d_logits = d_logits.scatter_add(1, targets.clamp_min(0).unsqueeze(1),
                                      slope.expand_as(d_logits).narrow(1, 0, 1)) *
                 counted;
    by_hidden.operations = of_logit + 2.0 * static_cast<double>(vocab);
    by_hidden.magnitude = product_of_magnitudes(d_logits, weight);
    by_weight.operations = of_logit + static_cast<double>(vocab + rows);
    by_weight.magnitude = product_of_magnitudes(d_logits.t(), hidden);
    if (outputs.accumulate) by_weight.magnitude = by_weight.magnitude + start.abs();
  }
  t.result("loss", loss, of_loss);
  t.result("losses", outputs.losses, of_losses);
  if (outputs.d_hidden.defined()) t.result("d_hidden", outputs.d_hidden, by_hidden);
  if (outputs.d_weight.defined()) t.result("d_weight", outputs.d_weight, by_weight);
}

}  // namespace

std::vector<TrialTable> dense_trials() {
  const std::vector<std::vector<int64_t>> products = {
      {1, 1, 1}, {3, 5, 7}, {16, 32, 24}, {33, 65, 17}, {67, 130, 129}, {600, 48, 31}, {0, 8, 4}};
  const std::vector<std::vector<int64_t>> rows = {{1, 1}, {3, 7}, {65, 33}, {1000, 17}};
  const std::vector<std::vector<int64_t>> norms = {
      {1, 0, 1}, {3, 0, 7}, {65, 0, 33}, {5, 3, 16}, {9, 2, 65}, {2, 0, 5000}, {0, 0, 8}};
  const std::vector<std::vector<int64_t>> heads = {
      {1, 1, 2, 1}, {5, 7, 11, 2}, {33, 16, 130, 8}, {70, 33, 257, 100}, {0, 8, 5, 4}};
  return {
      {"linear",
       products,
       {"", "with bias", "with residual", "with bias and residual"},
       true,
       {Values::kTiny, Values::kInfinite},
       TRIREME_TRIAL(linear)},
      {"linear_backward_input",
       products,
       {"", "added"},
       true,
       {},
       TRIREME_TRIAL(linear_backward_input)},
      {"linear_backward_weight",
       products,
       {"", "added"},
       true,
       {},
       TRIREME_TRIAL(linear_backward_weight)},
      {"bias_gradient", rows, {"", "added"}, true, {}, TRIREME_TRIAL(bias_gradient)},
      {"gram", rows, {""}, true, {}, TRIREME_TRIAL(gram)},
      {"rms_norm",
       norms,
       {"", "with offset", "without rstd"},
       true,
       {Values::kTiny},
       TRIREME_TRIAL(rms_norm)},
      {"rms_norm_backward",
       norms,
       {"", "added", "with offset", "dweight alone", "dx alone"},
       true,
       {},
       TRIREME_TRIAL(rms_norm_backward)},
      {"layer_norm",
       norms,
       {"", "without bias", "without statistics"},
       true,
       {},
       TRIREME_TRIAL(layer_norm)},
      {"layer_norm_backward",
       norms,
       {"", "added", "without dbias", "without dweight", "dx alone", "parameters alone"},
       true,
       {},
       TRIREME_TRIAL(layer_norm_backward)},
      {"linear_cross_entropy",
       heads,
       {"", "with softcap", "without gradients", "added"},
       false,
       {},
       TRIREME_TRIAL(linear_cross_entropy)},
  };
}

}  // namespace trireme::kernels::conformance
