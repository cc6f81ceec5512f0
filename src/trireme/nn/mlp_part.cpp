#include "trireme/nn/mlp_part.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "trireme/base/error.h"
#include "trireme/kernels/ops.h"

namespace trireme::nn {

kernels::Activation to_kernel(model::Activation activation) {
  switch (activation) {
    case model::Activation::kSilu:
      return kernels::Activation::kSilu;
    case model::Activation::kGeluTanh:
      return kernels::Activation::kGeluTanh;
    case model::Activation::kGelu:
      return kernels::Activation::kGelu;
    case model::Activation::kRelu:
      return kernels::Activation::kRelu;
  }
  TRIREME_CHECK(false, "unknown activation {}", static_cast<int>(activation));
}

struct MlpPart::Saved {
  NormStatistics statistics;
  at::Tensor normed;
  at::Tensor up;  ///< gate|up or up, before the activation
  at::Tensor act;
  at::Tensor projected;  ///< [N, d], what the norm after the MLP reads; undefined without one
  NormStatistics after_statistics;
};

class MlpPart::Graph final : public ProductsGraph {
 public:
  Graph(const MlpPart& part, at::Tensor x, Saved saved, SaveMode mode)
      : part_(part), x_(std::move(x)), saved_(std::move(saved)) {
    if (mode == SaveMode::kSelective) {
      saved_.normed.reset();
      saved_.act.reset();
    }
    if (mode == SaveMode::kInputOnly) saved_ = {};
  }

  void recompute() override {
    if (saved_.up.defined()) return;
    part_.make_saved(x_.flatten(0, 1), true, true, saved_);
    if (part_.norms_.after) part_.project(true, saved_);
  }

  void drop_input() override { x_.reset(); }
  void give_input(at::Tensor input) override { x_ = std::move(input); }

  std::vector<at::Tensor> kept() const override {
    return {saved_.statistics.mean,
            saved_.statistics.rstd,
            saved_.normed,
            saved_.up,
            saved_.act,
            saved_.projected,
            saved_.after_statistics.mean,
            saved_.after_statistics.rstd};
  }

  at::Tensor backward_input(at::Tensor grad_output) override {
    TRIREME_CHECK(saved_.up.defined(), "{}: backward before recompute", part_.spec_.name);
    const at::Tensor x = x_.flatten(0, 1);
    const at::Tensor residual = grad_output.flatten(0, 1);
    grad_output_ = residual;
    if (part_.norms_.after) {
      grad_output_ = part_.norms_.after->backward_over_input(
          residual, std::move(saved_.projected), saved_.after_statistics, after_gradients_);
      saved_.after_statistics = {};
    }
    const auto act = to_kernel(part_.mlp_.activation);
    at::Tensor dact = part_.down_.backward_input(grad_output_);
    if (part_.mlp_.kind == model::MlpKind::kGated) {
      // The gradient takes gate|up's place and, where the activation was not kept, dact's place
      // takes it.
      const bool again = !saved_.act.defined();
      kernels::gated_activation_backward(act, dact, saved_.up, saved_.up,
                                         again ? dact : at::Tensor());
      if (again) saved_.act = dact;
      d_up_ = std::move(saved_.up);
    } else if (saved_.act.defined()) {
      kernels::activation_backward(act, dact, saved_.up, saved_.up);
      d_up_ = std::move(saved_.up);
    } else {
      kernels::activation_backward(act, dact, saved_.up, dact);
      kernels::activation(act, saved_.up, saved_.up);
      saved_.act = std::move(saved_.up);
      d_up_ = dact;
    }
    dact.reset();
    saved_.up.reset();
    at::Tensor dx = part_.up_.backward_input(d_up_);
    if (part_.norms_.before) {
      dx = part_.norms_.before->backward(dx, x, saved_.statistics, residual, norm_gradients_);
      NormStatistics unused;
      if (!saved_.normed.defined()) saved_.normed = part_.norms_.before->forward(x, false, unused);
    } else {
      if (part_.scope_ == PartScope::kWhole) dx.add_(residual);
      saved_.normed = x;
    }
    saved_.statistics = {};
    const std::vector<int64_t> sizes = x_.sizes().vec();
    x_.reset();
    return dx.view(sizes);
  }

  void backward_weight(GradientSink& sink) override {
    part_.down_.backward_weight(grad_output_, saved_.act, sink);
    grad_output_.reset();
    saved_.act.reset();
    part_.up_.backward_weight(d_up_, saved_.normed, sink);
    d_up_.reset();
    saved_.normed.reset();
    if (part_.norms_.before) part_.norms_.before->add_gradients(norm_gradients_, sink, 0);
    if (part_.norms_.after)
      part_.norms_.after->add_gradients(after_gradients_, sink, part_.norms_.after_place);
    norm_gradients_ = after_gradients_ = {};
  }

 private:
  const MlpPart& part_;
  at::Tensor x_;
  Saved saved_;
  at::Tensor grad_output_;
  at::Tensor d_up_;
  NormGradients norm_gradients_;
  NormGradients after_gradients_;
};

MlpPart::MlpPart(const ParameterStore& store, int part, PartScope scope)
    : spec_(store.spec().parts[part]),
      mlp_(store.spec().layers[spec_.layer].mlp),
      scope_(scope),
      parameters_(store.part_parameters(part)),
      norms_(
          of_scope(scope, PartNorms(store, store.spec().layers[spec_.layer].mlp_norm,
                                    store.spec().layers[spec_.layer].mlp_post_norm, parameters_))),
      up_(store, parameters_, {model::Role::kGate, model::Role::kUp}),
      down_(store, parameters_, {model::Role::kDown}) {}

at::Tensor MlpPart::activate(const at::Tensor& up) const {
  const auto act = to_kernel(mlp_.activation);
  at::Tensor y = at::empty({up.size(0), down_.in_features()}, up.options());
  if (mlp_.kind == model::MlpKind::kGated) {
    kernels::gated_activation(act, up, y);
  } else {
    kernels::activation(act, up, y);
  }
  return y;
}

void MlpPart::make_saved(const at::Tensor& x, bool keep_statistics, bool keep_normed,
                         Saved& saved) const {
  saved.normed = norms_.before ? norms_.before->forward(x, keep_statistics, saved.statistics) : x;
  saved.up = up_.forward(saved.normed);
  if (!keep_normed || !norms_.before) saved.normed.reset();
  saved.act = activate(saved.up);
}

void MlpPart::project(bool keep_statistics, Saved& saved) const {
  saved.projected = down_.forward(saved.act);
  if (!keep_statistics) return;
  norms_.after->forward(saved.projected, true, saved.after_statistics);
}

ForwardResult MlpPart::forward(const at::Tensor& hidden, const BatchTensors&, bool with_graph,
                               SaveMode mode) {
  const at::Tensor x = hidden.flatten(0, 1);
  const bool keep = with_graph && mode != SaveMode::kInputOnly;
  Saved saved;
  make_saved(x, keep, with_graph && mode == SaveMode::kAll, saved);
  if (!keep) saved.up.reset();
  ForwardResult result;
  if (norms_.after) {
    saved.projected = down_.forward(saved.act);
    result.output = norms_.after->forward(saved.projected, keep, saved.after_statistics);
    result.output = result.output.add_(x).view(hidden.sizes());
  } else {
    result.output = (scope_ == PartScope::kWhole ? down_.forward(saved.act, x)
                                                 : down_.forward_without_bias(saved.act))
                        .view(hidden.sizes());
  }
  if (with_graph) result.graph = std::make_unique<Graph>(*this, hidden, std::move(saved), mode);
  return result;
}

}  // namespace trireme::nn
