#include "trireme/nn/split_part.h"

#include <ATen/ops/empty_like.h>

#include "trireme/base/error.h"
#include "trireme/nn/attention_part.h"
#include "trireme/nn/rank_sums.h"

namespace trireme::nn {

namespace {

PartNorms norms_of(const ParameterStore& store, int part) {
  const model::PartSpec& where = store.spec().parts[static_cast<size_t>(part)];
  const model::LayerSpec& layer = store.spec().layers[static_cast<size_t>(where.layer)];
  const bool attention = where.kind == model::PartKind::kAttention;
  return {store, attention ? layer.attention_norm : layer.mlp_norm,
          attention ? layer.attention_post_norm : layer.mlp_post_norm, store.part_parameters(part)};
}

int index_of(const ParameterStore& store, const model::PartSpec& spec) {
  const auto& parts = store.spec().parts;
  for (size_t i = 0; i < parts.size(); ++i) {
    if (parts[i].name == spec.name) return static_cast<int>(i);
  }
  TRIREME_CHECK(false, "{}: no such part", spec.name);
}

}  // namespace

SplitPart::SplitPart(const ParameterStore& store, Part& products)
    : products_(products), norms_(norms_of(store, index_of(store, products.spec()))) {
  const bool attention = products.spec().kind == model::PartKind::kAttention;
  bias_ = Linear(store, products.gradient_parameters(),
                 {attention ? model::Role::kAttentionOut : model::Role::kDown})
              .bias();
}

SplitGraph::SplitGraph(const SplitPart& part, const BatchTensors& batch, bool with_backward,
                       SaveMode mode)
    : part_(part), batch_(batch), with_backward_(with_backward), mode_(mode) {}

at::Tensor SplitGraph::normalize(const at::Tensor& hidden) {
  return part_.norms_.before->forward(hidden.flatten(0, 1), with_backward_, statistics_);
}

at::Tensor SplitGraph::multiply(const at::Tensor& gathered) {
  const at::Tensor x = gathered.view({batch_.rows, batch_.seq_len, gathered.size(-1)});
  ForwardResult result = part_.products_.forward(x, batch_, with_backward_, mode_);
  products_ = std::move(result.graph);
  if (with_backward_ && mode_ != SaveMode::kAll)
    static_cast<ProductsGraph&>(*products_).drop_input();
  return result.output.flatten(0, 1);
}

void SplitGraph::begin_multiply(const at::Tensor& gathered) {
  const model::PartSpec& spec = part_.products_.spec();
  TRIREME_CHECK(spec.kind == model::PartKind::kAttention, "{}: no keys to exchange", spec.name);
  const at::Tensor x = gathered.view({batch_.rows, batch_.seq_len, gathered.size(-1)});
  products_ = static_cast<AttentionPart&>(part_.products_).begin(x, batch_, mode_);
  if (mode_ != SaveMode::kAll) static_cast<ProductsGraph&>(*products_).drop_input();
}

ContextGraph& SplitGraph::context() const {
  ContextGraph* const context = products_ == nullptr ? nullptr : products_->context();
  TRIREME_CHECK(context != nullptr, "{}: its work on keys has not begun",
                part_.products_.spec().name);
  return *context;
}

at::Tensor SplitGraph::finish(const at::Tensor& hidden, const at::Tensor& pieces) {
  const at::Tensor x = hidden.flatten(0, 1);
  if (!part_.norms_.after) return sum_in_order(pieces, part_.bias_, x).view(hidden.sizes());
  at::Tensor projected = sum_in_order(pieces, part_.bias_);
  at::Tensor out = part_.norms_.after->forward(projected, with_backward_, after_statistics_);
  if (with_backward_) projected_ = std::move(projected);
  return out.add_(x).view(hidden.sizes());
}

void SplitGraph::give_input(const at::Tensor& gathered) {
  static_cast<ProductsGraph&>(*products_)
      .give_input(gathered.view({batch_.rows, batch_.seq_len, gathered.size(-1)}));
}

void SplitGraph::recompute() {
  products_->recompute();
}

at::Tensor SplitGraph::begin_backward(const at::Tensor& grad_output, GradientSink& sink) {
  NormGradients gradients;
  at::Tensor dx = at::empty_like(projected_);
  part_.norms_.after->backward_into(grad_output.flatten(0, 1), projected_, after_statistics_, dx,
                                    gradients);
  projected_.reset();
  after_statistics_ = {};
  part_.norms_.after->add_gradients(gradients, sink, part_.norms_.after_place);
  return dx;
}

at::Tensor SplitGraph::backward_input(const at::Tensor& gathered) {
  return products_->backward_input(gathered.view({batch_.rows, batch_.seq_len, gathered.size(-1)}))
      .flatten(0, 1);
}

at::Tensor SplitGraph::finish_backward(const at::Tensor& hidden, const at::Tensor& grad_output,
                                       const at::Tensor& pieces, GradientSink& sink) {
  const at::Tensor residual = grad_output.flatten(0, 1);
  if (!part_.norms_.before) return sum_in_order(pieces, {}, residual).view(hidden.sizes());
  NormGradients gradients;
  const at::Tensor dx = part_.norms_.before->backward(sum_in_order(pieces), hidden.flatten(0, 1),
                                                      statistics_, residual, gradients);
  statistics_ = {};
  part_.norms_.before->add_gradients(gradients, sink, 0);
  return dx.view(hidden.sizes());
}

void SplitGraph::backward_weight(GradientSink& sink) {
  products_->backward_weight(sink);
  products_.reset();
}

}  // namespace trireme::nn
