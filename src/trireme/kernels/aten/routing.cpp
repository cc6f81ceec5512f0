// The router's choice, its gradient and balance, and rows sorted by expert.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/bincount.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/xlogy.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "trireme/base/error.h"
#include "trireme/kernels/aten/accumulation.h"
#include "trireme/kernels/aten/aten_kernels.h"

namespace trireme::kernels::aten {

namespace {

at::Tensor scores_of(const RouterOptions& options, const at::Tensor& logits) {
  return options.score == RouterScore::kSigmoid ? logits.sigmoid() : logits.softmax(1);
}

/// Numbers of the `count` largest of each row, best first, the lower number among equals.
at::Tensor largest(const at::Tensor& values, int64_t count) {
  return values.argsort(/*stable=*/true, 1, /*descending=*/true).narrow(1, 0, count).contiguous();
}

/// Experts outside a row's best groups get minus infinity.
at::Tensor keep_best_groups(const RouterOptions& options, const at::Tensor& values) {
  const at::Tensor grouped = values.unflatten(1, {options.num_groups, -1});
  const int64_t size = grouped.size(2);
  const int64_t best = options.group_score_top2 ? std::min<int64_t>(2, size) : 1;
  const at::Tensor of_group =
      grouped.argsort(/*stable=*/true, 2, /*descending=*/true).narrow(2, 0, best);
  const at::Tensor chosen = largest(grouped.gather(2, of_group).sum(2), options.top_groups);
  const at::Tensor dropped =
      at::full({values.size(0), options.num_groups}, true, values.options().dtype(at::kBool))
          .scatter(1, chosen, false);
  return grouped.masked_fill(dropped.unsqueeze(2), -std::numeric_limits<double>::infinity())
      .flatten(1, 2);
}

/// A row's shares of its experts, which sum to one.
at::Tensor shares_of(const RouterOptions& options, const at::Tensor& logits) {
  const at::Tensor scores = scores_of(options, logits);
  if (options.score == RouterScore::kSoftmax) return scores;
  return scores / scores.sum(1, /*keepdim=*/true);
}

std::vector<int64_t> host_values(const at::Tensor& integers) {
  std::vector<int64_t> values;
  const at::Tensor here = integers.to(at::kCPU).contiguous().view(-1);
  for (int64_t i = 0; i < here.numel(); ++i) values.push_back(here[i].item<int64_t>());
  return values;
}

at::Tensor softmax_backward(const at::Tensor& grad, const at::Tensor& p) {
  return p * (grad - (grad * p).sum(1, /*keepdim=*/true));
}

}  // namespace

void route(const at::Tensor& logits, const at::Tensor& selection_bias, const RouterOptions& options,
           at::Tensor& choice, at::Tensor& weights) {
  const at::Tensor scores = scores_of(options, logits);
  // Far-apart logits have equal (rounded) probabilities: the order of the logits decides.
  const bool by_logits = options.score == RouterScore::kSoftmax && !selection_bias.defined() &&
                         options.num_groups == 1;
  at::Tensor values = by_logits ? logits : scores;
  if (selection_bias.defined()) values = values + selection_bias;
  if (options.num_groups > 1) values = keep_best_groups(options, values);
  const at::Tensor chosen = largest(values, options.top_k);
  at::Tensor w =
      options.softmax_after_top_k ? logits.gather(1, chosen).softmax(1) : scores.gather(1, chosen);
  if (options.normalize) w = w / w.sum(1, /*keepdim=*/true);
  choice.copy_(chosen);
  weights.copy_(w * options.scaling);
}

void route_backward(const at::Tensor& logits, const at::Tensor& choice, const at::Tensor& d_weights,
                    const RouterOptions& options, const at::Tensor& d_scores, double z_gradient,
                    at::Tensor& d_logits) {
  const at::Tensor scores = scores_of(options, logits);
  const at::Tensor few =
      options.softmax_after_top_k ? logits.gather(1, choice).softmax(1) : scores.gather(1, choice);
  at::Tensor d_few = d_weights * options.scaling;
  if (options.normalize) {
    const at::Tensor sum = few.sum(1, /*keepdim=*/true);
    d_few = (d_few - (d_few * few).sum(1, /*keepdim=*/true) / sum) / sum;
  }
  at::Tensor ds = logits.new_zeros(logits.sizes());  // by the scores
  at::Tensor result = logits.new_zeros(logits.sizes());
  if (options.softmax_after_top_k) {
    result = result.scatter(1, choice, softmax_backward(d_few, few));
  } else {
    ds = ds.scatter(1, choice, d_few);
  }
  if (d_scores.defined() && logits.size(0) > 0) {
    at::Tensor g = d_scores.repeat_interleave(logits.size(0) / d_scores.size(0), 0);
    if (options.score == RouterScore::kSigmoid) {
      const at::Tensor sum = scores.sum(1, /*keepdim=*/true);
      g = (g - (g * scores).sum(1, /*keepdim=*/true) / sum) / sum;
    }
    ds = ds + g;
  }
  result = result + (options.score == RouterScore::kSigmoid ? ds * scores * (1.0 - scores)
                                                            : softmax_backward(ds, scores));
  if (z_gradient != 0.0)
    result = result + 2.0 * z_gradient * logits.logsumexp(1, /*keepdim=*/true) * logits.softmax(1);
  d_logits.copy_(result);
}

RouterBalance balance(const at::Tensor& logits, const at::Tensor& choice,
                      const RouterOptions& options, int64_t sets,
                      const std::vector<int64_t>& load_of_all) {
  const int64_t rows = logits.size(0);
  const int64_t experts = logits.size(1);
  TRIREME_CHECK(sets >= 1 && rows % sets == 0, "{} rows do not make {} sets", rows, sets);
  const at::Tensor shares = shares_of(options, logits).to(at::kDouble);
  const at::Tensor of_set = choice.view({sets, rows / sets * options.top_k});
  const at::Tensor load = at::zeros({sets, experts}, choice.options())
                              .scatter_add(1, of_set, of_set.new_ones(of_set.sizes()));
  const double num_rows = static_cast<double>(std::max<int64_t>(rows, 1));

  RouterBalance result;
  result.load = host_values(load.sum(0));
  // E / k * f_e with f_e = load / N: E times the fraction of all choices.
  at::Tensor counted = load.to(at::kDouble);
  if (!load_of_all.empty()) counted = at::tensor(load_of_all).to(counted.options()).unsqueeze(0);
  const at::Tensor factor =
      counted / counted.sum(1, /*keepdim=*/true).clamp_min(1.0) * static_cast<double>(experts);
  const at::Tensor share = shares.view({sets, rows / sets, experts}).sum(1);
  result.loss = (factor * share).sum().item<double>() / num_rows;
  result.d_scores = (factor / num_rows).to(logits.scalar_type());
  if (rows == 0) return result;
  result.z_loss = logits.logsumexp(1).to(at::kDouble).square().mean().item<double>();
  result.entropy = -at::xlogy(shares, shares).sum().item<double>() / num_rows;
  return result;
}

ExpertRows sort_by_expert(const at::Tensor& choice, const at::Tensor& weights, int64_t num_experts,
                          int64_t capacity, bool pad) {
  const int64_t top_k = choice.size(1);
  const at::Tensor expert = choice.view(-1);
  const int64_t all = expert.numel();
  const auto integers = expert.options();
  const at::Tensor number = at::arange(all, integers);
  const at::Tensor count = at::bincount(expert, {}, num_experts);

  // Choices by expert and, in an expert, by weight: what lies behind its first `capacity` is dropped.
  at::Tensor kept = at::full({all}, true, integers.dtype(at::kBool));
  if (capacity > 0) {
    const at::Tensor by_weight = weights.view(-1).argsort(/*stable=*/true, 0, /*descending=*/true);
    const at::Tensor order =
        by_weight.index_select(0, expert.index_select(0, by_weight).argsort(true, 0, false));
    const at::Tensor place =
        number - (count.cumsum(0) - count).index_select(0, expert.index_select(0, order));
    kept = kept.scatter(0, order, place.lt(capacity));
  }
  // The others by expert, in the order of the tokens.
  const at::Tensor left = number.masked_select(kept);
  const at::Tensor of_left = expert.index_select(0, left);
  const at::Tensor order = of_left.argsort(/*stable=*/true, 0, /*descending=*/false);
  const at::Tensor sorted = left.index_select(0, order);
  const at::Tensor expert_of = of_left.index_select(0, order);
  const at::Tensor size = at::bincount(of_left, {}, num_experts);
  const at::Tensor rows_of =
      pad && capacity > 0 ? at::full({num_experts}, capacity, integers) : size;
  const at::Tensor first = rows_of.cumsum(0) - rows_of;
  const at::Tensor row = at::arange(sorted.numel(), integers) -
                         (size.cumsum(0) - size).index_select(0, expert_of) +
                         first.index_select(0, expert_of);

  ExpertRows result;
  result.dropped = all - sorted.numel();
  result.offsets = {0};
  for (const int64_t rows : host_values(rows_of))
    result.offsets.push_back(result.offsets.back() + rows);
  result.tokens =
      at::full({result.count()}, -1, integers).scatter(0, row, sorted.div(top_k, "floor"));
  result.rows = at::full({all}, -1, integers).scatter(0, sorted, row).view(choice.sizes());
  return result;
}

}  // namespace trireme::kernels::aten
