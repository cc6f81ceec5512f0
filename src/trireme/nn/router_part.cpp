#include "trireme/nn/router_part.h"

#include <ATen/ops/empty.h>

#include <cmath>

#include "trireme/base/error.h"
#include "trireme/kernels/ops.h"
#include "trireme/nn/moe_flow.h"

namespace trireme::nn {

kernels::RouterOptions router_options(const model::MoeSpec& moe) {
  kernels::RouterOptions options;
  options.score = moe.score == model::ScoreFunction::kSigmoid ? kernels::RouterScore::kSigmoid
                                                              : kernels::RouterScore::kSoftmax;
  options.top_k = moe.top_k;
  options.softmax_after_top_k = moe.softmax_after_top_k;
  options.normalize = moe.normalize;
  options.scaling = moe.scaling;
  options.num_groups = moe.num_groups;
  options.top_groups = moe.top_groups;
  options.group_score_top2 = moe.group_score_top2;
  return options;
}

int64_t expert_capacity(const model::MoeSpec& moe, int64_t tokens) {
  if (moe.capacity_factor <= 0.0) return 0;
  const double even =
      static_cast<double>(tokens * moe.top_k) / static_cast<double>(moe.num_experts);
  return std::max<int64_t>(1, static_cast<int64_t>(std::ceil(moe.capacity_factor * even)));
}

class RouterPart::Graph final : public PartGraph {
 public:
  const RouterPart& part;
  MoeFlow& flow;
  at::Tensor x;
  at::Tensor normed;
  NormStatistics statistics;
  at::Tensor logits;
  at::Tensor choice;
  at::Tensor d_scores;  ///< of the balancing loss, its coefficient applied; undefined without one
  double z_gradient = 0.0;

  Graph(const RouterPart& part, MoeFlow& flow) : part(part), flow(flow) {}

  void recompute() override {}

  /// The normed state is the part's output.
  std::vector<at::Tensor> kept() const override {
    return {statistics.mean, statistics.rstd, logits,           choice,
            d_scores,        flow.weights,    flow.rows.tokens, flow.rows.rows};
  }

  at::Tensor backward_input(at::Tensor grad_output) override {
    at::Tensor d_normed = grad_output.flatten(0, 1);
    at::Tensor d_logits = at::empty(logits.sizes(), logits.options());
    kernels::route_backward(logits, choice, flow.d_weights, part.options_, d_scores, z_gradient,
                            d_logits);
    flow.d_weights.reset();
    logits.reset();
    choice.reset();
    d_scores.reset();
    // Experts and dispatch have passed: what is left to them is where an expert's rows begin.
    flow.weights.reset();
    flow.rows.tokens.reset();
    flow.rows.rows.reset();
    if (normed.scalar_type() != at::kFloat) {
      d_logits_ = at::empty(d_logits.sizes(), normed.options());
      kernels::convert(d_logits, d_logits_);
    } else {
      d_logits_ = d_logits;
    }
    d_logits.reset();
    part.router_.add_backward_input(d_logits_, d_normed);
    const at::Tensor residual = flow.grad_output.flatten(0, 1);
    flow.grad_output.reset();
    at::Tensor dx = d_normed;
    if (part.norms_.before) {
      dx = part.norms_.before->backward(d_normed, x.flatten(0, 1), statistics, residual,
                                        norm_gradients_);
    } else {
      dx.add_(residual);
    }
    statistics = {};
    const std::vector<int64_t> sizes = x.sizes().vec();
    x.reset();
    return dx.view(sizes);
  }

  void backward_weight(GradientSink& sink) override {
    part.router_.backward_weight(d_logits_, normed, sink);
    d_logits_.reset();
    normed.reset();
    if (part.norms_.before) part.norms_.before->add_gradients(norm_gradients_, sink, 0);
    norm_gradients_ = {};
    // The load moves the selection bias, not a gradient.
    const int place = part.selection_bias_place_;
    if (place >= 0 && sink.accumulate[place] == 0) sink.gradients[place].zero_();
  }

 private:
  at::Tensor d_logits_;  ///< compute dtype
  NormGradients norm_gradients_;
};

RouterPart::RouterPart(const ParameterStore& store, int part)
    : spec_(store.spec().parts[part]),
      moe_(store.spec().layers[spec_.layer].moe.value()),
      options_(router_options(moe_)),
      parameters_(store.part_parameters(part)),
      norms_(store, store.spec().layers[spec_.layer].mlp_norm, std::nullopt, parameters_),
      router_(store, parameters_, {model::Role::kRouter}) {
  TRIREME_CHECK(!store.spec().layers[spec_.layer].mlp_post_norm, "{}: no norm after experts",
                spec_.name);
  for (size_t i = 0; i < parameters_.size(); ++i) {
    if (store.spec().parameters[parameters_[i]].role != model::Role::kSelectionBias) continue;
    selection_bias_place_ = static_cast<int>(i);
    selection_bias_ = store.master(parameters_[i]);
  }
  TRIREME_CHECK(selection_bias_.defined() == moe_.selection_bias, "{}: selection bias", spec_.name);
}

ForwardResult RouterPart::forward(const at::Tensor& hidden, const BatchTensors& batch,
                                  bool with_graph, SaveMode /*mode*/) {
  MoeFlow& flow = (*batch.moe)[spec_.layer];
  flow = {};
  auto graph = std::make_unique<Graph>(*this, flow);
  const at::Tensor x = hidden.flatten(0, 1);
  const int64_t tokens = x.size(0);
  flow.residual = hidden;
  flow.normed = norms_.before ? norms_.before->forward(x, with_graph, graph->statistics) : x;
  graph->logits = router_.forward_float(flow.normed);
  graph->choice = at::empty({tokens, moe_.top_k}, x.options().dtype(at::kLong));
  flow.weights = at::empty({tokens, moe_.top_k}, x.options().dtype(at::kFloat));
  kernels::route(graph->logits, selection_bias_, options_, graph->choice, flow.weights);
  // Generation and evaluation drop nothing.
  flow.rows =
      kernels::sort_by_expert(graph->choice, flow.weights, moe_.num_experts,
                              with_graph ? expert_capacity(moe_, tokens) : 0, moe_.pad_to_capacity);
  ForwardResult result;
  result.output = flow.normed.view(hidden.sizes());
  if (!with_graph) return result;

  const int64_t sets = moe_.sequence_aux ? batch.rows : 1;
  const std::vector<int64_t>* all = nullptr;
  if (moe_.global_aux && batch.expert_load != nullptr) {
    const auto found = batch.expert_load->find(spec_.layer);
    if (found != batch.expert_load->end()) all = &found->second;
  }
  kernels::RouterBalance balance = kernels::balance(graph->logits, graph->choice, options_, sets,
                                                    all == nullptr ? std::vector<int64_t>{} : *all);
  flow.statistics = {std::move(balance.load), flow.rows.dropped, balance.loss, balance.z_loss,
                     balance.entropy};
  // This micro-batch's part of the mean over the global batch.
  if (moe_.aux_loss > 0.0)
    graph->d_scores = balance.d_scores.mul_(moe_.aux_loss * batch.share_of_step);
  if (moe_.z_loss > 0.0)
    graph->z_gradient = moe_.z_loss * batch.share_of_step / static_cast<double>(tokens);
  graph->x = hidden;
  graph->normed = flow.normed;
  result.graph = std::move(graph);
  return result;
}

}  // namespace trireme::nn
