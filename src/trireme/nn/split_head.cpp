#include "trireme/nn/split_head.h"

#include <ATen/ops/amax.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/gather.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros_like.h>

#include <optional>

#include "trireme/base/error.h"
#include "trireme/kernels/ops.h"
#include "trireme/nn/rank_sums.h"

namespace trireme::nn {

SplitHead::SplitHead(const ParameterStore& store, int part)
    : parameters_(store.part_parameters(part)),
      norm_(*PartNorms(store, store.spec().final_norm, std::nullopt, parameters_).before),
      softcap_(store.spec().logit_softcap),
      sink_weight_(norm_.num_parameters()) {
  if (store.spec().tied_embeddings) parameters_.push_back(store.part_parameters(0).front());
  TRIREME_CHECK(static_cast<int>(parameters_.size()) == sink_weight_ + 1,
                "the head has {} parameters", parameters_.size());
  const int index = parameters_.back();
  weight_ = store.compute(index);
  place_ = store.spec().tensor.place;
  first_ = store.spec().parameters[static_cast<size_t>(index)].shard.value().first;
}

at::Tensor SplitHead::normalize(const at::Tensor& hidden, bool keep_statistics,
                                NormStatistics& statistics) const {
  return norm_.forward(hidden.flatten(0, 1), keep_statistics, statistics);
}

SplitHead::Places SplitHead::places_of(const at::Tensor& targets) const {
  Places places;
  places.ids = targets.sub(first_).unsqueeze(1);
  at::Tensor others = places.ids.lt(0);
  others.logical_or_(places.ids.ge(weight_.size(0)));
  others.logical_or_(targets.unsqueeze(1).eq(kernels::kIgnoredTarget));
  places.ids.masked_fill_(others, 0);
  places.mine = others.logical_not().to(at::kFloat);
  return places;
}

SplitHead::Rows SplitHead::measure(const at::Tensor& normed, const at::Tensor& targets) const {
  Rows rows;
  rows.logits = at::empty({normed.size(0), weight_.size(0)}, normed.options().dtype(at::kFloat));
  kernels::linear(normed, weight_, std::nullopt, std::nullopt, rows.logits);
  if (softcap_ > 0.0) rows.logits.div_(softcap_).tanh_().mul_(softcap_);
  rows.statistics = at::empty({3, normed.size(0)}, rows.logits.options());
  const Places places = places_of(targets);
  rows.statistics.select(0, 2).copy_(
      rows.logits.gather(1, places.ids).mul_(places.mine).squeeze(1));
  const at::Tensor largest = rows.logits.amax(1, /*keepdim=*/true);
  rows.statistics.select(0, 0).copy_(largest.squeeze(1));
  // A cap's slope is made from the capped logits, so they stay.
  at::Tensor exponentials = softcap_ > 0.0 ? rows.logits.sub(largest) : rows.logits.sub_(largest);
  exponentials.exp_();
  rows.statistics.select(0, 1).copy_(exponentials.sum(1));
  return rows;
}

namespace {

/// Of all ranks' [ranks, 3, R]: the largest logit of each row, and the logarithm of the sum of exponentials above it. Float64 [R].
struct Normalizer {
  at::Tensor largest;
  at::Tensor log_sum;
};
Normalizer normalizer_of(const at::Tensor& statistics) {
  const at::Tensor all = statistics.to(at::kDouble);
  Normalizer of{all.select(1, 0).amax(0), {}};
  at::Tensor sum = at::zeros_like(of.largest);
  for (int64_t rank = 0; rank < all.size(0); ++rank)
    sum.add_(all.select(0, rank)
                 .select(0, 0)
                 .sub(of.largest)
                 .exp_()
                 .mul_(all.select(0, rank).select(0, 1)));
  of.log_sum = sum.log_();
  return of;
}

}  // namespace

at::Tensor SplitHead::losses(const at::Tensor& statistics, const at::Tensor& targets) const {
  const Normalizer of = normalizer_of(statistics);
  at::Tensor losses = of.largest.add(of.log_sum);
  // One rank has the target's logit, all others 0.
  for (int64_t rank = 0; rank < statistics.size(0); ++rank)
    losses.sub_(statistics.select(0, rank).select(0, 2));
  return losses.masked_fill_(targets.eq(kernels::kIgnoredTarget), 0.0);
}

void SplitHead::spread(at::Tensor logits, const at::Tensor& statistics, const at::Tensor& normed,
                       const at::Tensor& targets, double gradient_scale, at::Tensor d_normed,
                       GradientSink& sink) const {
  const Normalizer of = normalizer_of(statistics);
  const Places places = places_of(targets);
  const at::Tensor counts = targets.ne(kernels::kIgnoredTarget).to(at::kDouble);
  if (softcap_ > 0.0) {
    // p (1 - (z / cap)^2) scale
    const at::Tensor slope = logits.div(softcap_).square_().neg_().add_(1.0);
    logits.sub_(of.largest.add(of.log_sum).to(at::kFloat).unsqueeze(1)).exp_();
    logits.mul_(counts.mul(gradient_scale).to(at::kFloat).unsqueeze(1));
    logits.scatter_add_(1, places.ids, places.mine.mul(-gradient_scale));
    logits.mul_(slope);
  } else {
    const at::Tensor mine = statistics.select(0, place_).select(0, 0).to(at::kDouble);
    const at::Tensor factor =
        mine.sub(of.largest).sub_(of.log_sum).exp_().mul_(counts).mul_(gradient_scale);
    logits.mul_(factor.to(at::kFloat).unsqueeze(1));
    logits.scatter_add_(1, places.ids, places.mine.mul(-gradient_scale));
  }
  at::Tensor rounded = logits;
  if (normed.scalar_type() != at::kFloat) {
    rounded = at::empty(logits.sizes(), normed.options());
    kernels::convert(logits, rounded);
  }
  kernels::linear_backward_input(rounded, weight_, d_normed);
  kernels::linear_backward_weight(rounded, normed,
                                  sink.gradients[static_cast<size_t>(sink_weight_)],
                                  sink.accumulate[static_cast<size_t>(sink_weight_)] != 0);
}

at::Tensor SplitHead::finish(const at::Tensor& hidden, const NormStatistics& statistics,
                             const at::Tensor& pieces, GradientSink& sink) const {
  NormGradients gradients;
  const at::Tensor dx =
      norm_.backward(sum_in_order(pieces), hidden.flatten(0, 1), statistics, {}, gradients);
  norm_.add_gradients(gradients, sink, 0);
  return dx.view(hidden.sizes());
}

double add_losses(double sum, const at::Tensor& losses) {
  const at::Tensor host = losses.cpu();
  const double* values = host.data_ptr<double>();
  for (int64_t i = 0; i < host.numel(); ++i) sum += values[i];
  return sum;
}

}  // namespace trireme::nn
