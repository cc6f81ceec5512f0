#include "trireme/nn/combine_part.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/sigmoid.h>

#include "trireme/base/error.h"
#include "trireme/nn/mlp_part.h"
#include "trireme/nn/moe_flow.h"

namespace trireme::nn {

class CombinePart::Graph final : public PartGraph {
 public:
  Graph(const CombinePart& part, MoeFlow& flow, Saved saved, SaveMode mode)
      : part_(part), flow_(flow), saved_(std::move(saved)) {
    if (part_.shared_) normed_ = flow_.normed;
    if (mode != SaveMode::kAll) saved_.act.reset();
    if (mode == SaveMode::kInputOnly) saved_ = {};
  }

  void recompute() override {
    if (part_.shared_ && !saved_.gate_up.defined()) part_.make_saved(normed_, saved_);
  }

  std::vector<at::Tensor> kept() const override {
    return {saved_.gate, saved_.gate_up, saved_.act};
  }

  at::Tensor backward_input(at::Tensor grad_output) override {
    flow_.grad_output = grad_output;
    const at::Tensor dy = grad_output.flatten(0, 1);
    if (part_.shared_) backward_shared(dy);
    at::Tensor d_rows = at::empty({flow_.rows.count(), dy.size(1)}, dy.options());
    kernels::gather_rows(dy, flow_.rows, d_rows);
    return d_rows;
  }

  void backward_weight(GradientSink& sink) override {
    if (!part_.shared_) return;
    const Shared& shared = *part_.shared_;
    shared.down.backward_weight(grad_output_, saved_.act, sink);
    grad_output_.reset();
    saved_.act.reset();
    shared.up.backward_weight(d_gate_up_, normed_, sink);
    d_gate_up_.reset();
    if (shared.gate) shared.gate->backward_weight(d_gate_, normed_, sink);
    d_gate_.reset();
    normed_.reset();
  }

 private:
  void backward_shared(const at::Tensor& dy) {
    const Shared& shared = *part_.shared_;
    TRIREME_CHECK(saved_.gate_up.defined(), "{}: backward before recompute", part_.spec_.name);
    grad_output_ = dy;
    at::Tensor dact = shared.down.backward_input(dy);
    at::Tensor d_gate = at::empty(saved_.gate.sizes(), saved_.gate.options());
    const bool again = !saved_.act.defined();
    kernels::weighted_gated_activation_backward(shared.activation, dact, saved_.gate_up,
                                                saved_.gate, saved_.gate_up, d_gate,
                                                again ? dact : at::Tensor());
    if (again) saved_.act = dact;
    dact.reset();
    d_gate_up_ = std::move(saved_.gate_up);
    at::Tensor d_normed = shared.up.backward_input(d_gate_up_);
    if (shared.gate) {
      // Through the sigmoid: g (1 - g).
      d_gate.mul_(saved_.gate).mul_(saved_.gate.neg().add_(1.0));
      d_gate_ = d_gate.view({-1, 1}).to(dy.scalar_type());
      shared.gate->add_backward_input(d_gate_, d_normed);
    }
    saved_.gate.reset();
    flow_.d_normed = d_normed;
  }

  const CombinePart& part_;
  MoeFlow& flow_;
  at::Tensor normed_;
  Saved saved_;
  at::Tensor grad_output_;
  at::Tensor d_gate_up_;
  at::Tensor d_gate_;  ///< [N, 1], compute dtype
};

CombinePart::CombinePart(const ParameterStore& store, int part)
    : spec_(store.spec().parts[part]), parameters_(store.part_parameters(part)) {
  const model::MoeSpec& moe = store.spec().layers[spec_.layer].moe.value();
  if (moe.shared_hidden == 0) return;
  shared_.emplace(Shared{Linear(store, parameters_, {model::Role::kGate, model::Role::kUp}),
                         Linear(store, parameters_, {model::Role::kDown}),
                         std::nullopt,
                         {to_kernel(moe.expert.activation), 0.0}});
  if (moe.shared_gate)
    shared_->gate.emplace(store, parameters_,
                          std::vector<model::Role>{model::Role::kSharedExpertGate});
}

void CombinePart::make_saved(const at::Tensor& normed, Saved& saved) const {
  const int64_t tokens = normed.size(0);
  const auto floats = normed.options().dtype(at::kFloat);
  saved.gate = shared_->gate ? at::sigmoid(shared_->gate->forward_float(normed)).view({tokens})
                             : at::ones({tokens}, floats);
  saved.gate_up = shared_->up.forward(normed);
  saved.act = at::empty({tokens, shared_->down.in_features()}, normed.options());
  kernels::weighted_gated_activation(shared_->activation, saved.gate_up, saved.gate, saved.act);
}

ForwardResult CombinePart::forward(const at::Tensor& hidden, const BatchTensors& batch,
                                   bool with_graph, SaveMode mode) {
  MoeFlow& flow = (*batch.moe)[spec_.layer];
  const at::Tensor x = flow.residual.flatten(0, 1);
  Saved saved;
  ForwardResult result;
  if (shared_) {
    make_saved(flow.normed, saved);
    if (!with_graph || mode == SaveMode::kInputOnly) saved.gate_up.reset();
    result.output = shared_->down.forward(saved.act, x);
    kernels::sum_rows(hidden, flow.rows, result.output, result.output);
  } else {
    result.output = at::empty(x.sizes(), x.options());
    kernels::sum_rows(hidden, flow.rows, x, result.output);
  }
  result.output = result.output.view(flow.residual.sizes());
  flow.residual.reset();
  if (with_graph) {
    result.graph = std::make_unique<Graph>(*this, flow, std::move(saved), mode);
  }
  flow.normed.reset();
  return result;
}

}  // namespace trireme::nn
