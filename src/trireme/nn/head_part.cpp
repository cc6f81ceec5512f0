#include "trireme/nn/head_part.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <utility>

#include "trireme/base/error.h"
#include "trireme/kernels/ops.h"

namespace trireme::nn {
HeadPart::HeadPart(const ParameterStore& store, int part)
    : spec_(store.spec().parts[part]),
      depth_(store.spec().mtp_depth(part)),
      parameters_(store.part_parameters(part)),
      norm_(*PartNorms(store, store.spec().final_norm, std::nullopt, parameters_).before),
      softcap_(store.spec().logit_softcap) {
  sink_weight_ = norm_.num_parameters();
  if (store.spec().tied_embeddings) {
    const auto& embedding = store.part_parameters(0);
    TRIREME_CHECK(store.spec().parameters[embedding[0]].role == model::Role::kTokenEmbedding,
                  "a tied head needs the token table first");
    parameters_.push_back(embedding[0]);
  } else if (depth_ > 0) {
    for (const int index : store.part_parameters(store.spec().head_part())) {
      if (store.spec().parameters[index].role == model::Role::kHead) parameters_.push_back(index);
    }
  }
  TRIREME_CHECK(static_cast<int>(parameters_.size()) == sink_weight_ + 1,
                "the head has {} parameters", parameters_.size());
  weight_ = store.compute(parameters_[sink_weight_]);
}

ForwardResult HeadPart::forward(const at::Tensor&, const BatchTensors&, bool, SaveMode) {
  TRIREME_CHECK(false, "the head has no output: call normalize(), loss() or logits()");
}

NormedState HeadPart::normalize(const at::Tensor& hidden) const {
  NormedState state;
  state.normed = norm_.forward(hidden.flatten(0, 1), true, state.statistics).view(hidden.sizes());
  return state;
}

LossResult HeadPart::loss(const at::Tensor& hidden, const BatchTensors& batch,
                          double gradient_scale, int64_t chunk_rows, GradientSink* sink,
                          bool keep_token_losses) const {
  LossOptions options;
  options.gradient_scale = gradient_scale;
  options.chunk_rows = chunk_rows;
  options.keep_token_losses = keep_token_losses;
  return loss(hidden, batch, std::move(options), sink);
}

LossResult HeadPart::loss(const at::Tensor& hidden, const BatchTensors& batch, LossOptions options,
                          GradientSink* sink) const {
  const at::Tensor x = hidden.flatten(0, 1);
  const int64_t rows = x.size(0);
  int64_t chunk_rows = options.chunk_rows;
  if (chunk_rows <= 0) chunk_rows = default_chunk_rows(rows, weight_.size(0));
  const at::Tensor& targets =
      depth_ == 0 ? batch.targets : batch.ahead.at(static_cast<size_t>(depth_) - 1).targets;

  LossResult result;
  NormedState state;
  if (options.state) {
    state = std::exchange(*options.state, {});
    state.normed = state.normed.flatten(0, 1);
  } else {
    state.normed = norm_.forward(x, sink != nullptr, state.statistics);
  }
  kernels::CrossEntropyOutputs outputs;
  if (options.keep_token_losses) outputs.losses = at::empty({rows}, x.options().dtype(at::kFloat));
  if (sink) {
    outputs.d_hidden = at::empty_like(state.normed);
    outputs.d_weight = sink->gradients[sink_weight_];
    outputs.accumulate = sink->accumulate[sink_weight_] != 0;
  }
  result.loss_sum = kernels::linear_cross_entropy(state.normed, weight_, targets.flatten(),
                                                  options.gradient_scale,
                                                  std::min(chunk_rows, rows), outputs, softcap_);
  if (options.keep_token_losses)
    result.token_losses = outputs.losses.view({hidden.size(0), hidden.size(1)});
  if (sink) {
    if (options.d_normed.defined()) outputs.d_hidden.add_(options.d_normed.flatten(0, 1));
    options.d_normed.reset();
    NormGradients gradients;
    const at::Tensor dx = norm_.backward(outputs.d_hidden, x, state.statistics, {}, gradients);
    norm_.add_gradients(gradients, *sink, 0);
    result.grad_hidden = dx.view(hidden.sizes());
  }
  return result;
}

at::Tensor HeadPart::logits(const at::Tensor& hidden) const {
  NormStatistics unused;
  const at::Tensor normed = norm_.forward(hidden, false, unused);
  at::Tensor y = at::empty({hidden.size(0), weight_.size(0)}, hidden.options().dtype(at::kFloat));
  kernels::linear(normed, weight_, std::nullopt, std::nullopt, y);
  if (softcap_ > 0.0) y.div_(softcap_).tanh_().mul_(softcap_);
  return y;
}

int64_t HeadPart::default_chunk_rows(int64_t rows, int64_t vocab_size) {
  // About 32 MiB of float32 logits: large enough for the product's full rate, small beside the
  // activations.
  const int64_t fitting = (int64_t{8} << 20) / std::max<int64_t>(vocab_size, 1);
  return std::clamp<int64_t>(fitting / 64 * 64, std::min<int64_t>(rows, 128), rows);
}

}  // namespace trireme::nn
