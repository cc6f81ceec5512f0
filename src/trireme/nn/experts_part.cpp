#include "trireme/nn/experts_part.h"

#include <ATen/ops/empty.h>

#include "trireme/base/error.h"
#include "trireme/nn/mlp_part.h"
#include "trireme/nn/moe_flow.h"

namespace trireme::nn {

class ExpertsPart::Graph final : public PartGraph {
 public:
  Graph(const ExpertsPart& part, MoeFlow& flow, at::Tensor rows, Saved saved, SaveMode mode)
      : part_(part), flow_(flow), rows_(std::move(rows)), saved_(std::move(saved)) {
    if (mode != SaveMode::kAll) saved_.act.reset();
    if (mode == SaveMode::kInputOnly) saved_ = {};
  }

  void recompute() override {
    if (!saved_.gate_up.defined()) part_.make_saved(rows_, flow_, saved_);
  }

  std::vector<at::Tensor> kept() const override {
    return {saved_.row_weights, saved_.gate_up, saved_.act};
  }

  at::Tensor backward_input(at::Tensor grad_output) override {
    TRIREME_CHECK(saved_.gate_up.defined(), "{}: backward before recompute", part_.spec_.name);
    const kernels::GroupOffsets& offsets = flow_.rows.offsets;
    at::Tensor dact =
        at::empty({grad_output.size(0), saved_.gate_up.size(1) / 2}, grad_output.options());
    kernels::grouped_linear_backward_input(grad_output, part_.down_, offsets, dact);
    const bool spread = flow_.d_row_weights.defined();
    at::Tensor d_weights =
        spread ? flow_.d_row_weights : at::empty({dact.size(0)}, saved_.row_weights.options());
    // The gradient takes gate|up's place and, where the activation was not kept, dact's place takes it.
    const bool again = !saved_.act.defined();
    kernels::weighted_gated_activation_backward(part_.activation_, dact, saved_.gate_up,
                                                saved_.row_weights, saved_.gate_up, d_weights,
                                                again ? dact : at::Tensor());
    if (again) saved_.act = dact;
    dact.reset();
    if (part_.down_bias_.defined()) {
      d_down_bias_ = at::empty(part_.down_bias_.sizes(), saved_.row_weights.options());
      kernels::grouped_bias_backward(grad_output, part_.down_bias_, saved_.row_weights, offsets,
                                     d_down_bias_, false, d_weights);
    }
    if (!spread) {
      flow_.d_weights = at::empty(flow_.weights.sizes(), flow_.weights.options());
      kernels::weights_of_choices(d_weights, flow_.rows, flow_.d_weights);
    }
    d_weights.reset();
    saved_.row_weights.reset();
    grad_output_ = grad_output;
    d_gate_up_ = std::move(saved_.gate_up);
    at::Tensor d_rows =
        flow_.d_into.defined() ? flow_.d_into : at::empty(rows_.sizes(), rows_.options());
    kernels::grouped_linear_backward_input(d_gate_up_, part_.gate_up_, offsets, d_rows);
    return d_rows;
  }

  void backward_weight(GradientSink& sink) override {
    const kernels::GroupOffsets& offsets = flow_.rows.offsets;
    const auto entry = [&](int place) { return sink.gradients[static_cast<size_t>(place)]; };
    const auto adds = [&](int place) { return sink.accumulate[static_cast<size_t>(place)] != 0; };
    const int down = part_.place_of_down_;
    kernels::grouped_linear_backward_weight(grad_output_, saved_.act, offsets, {entry(down)},
                                            adds(down));
    grad_output_.reset();
    saved_.act.reset();
    TRIREME_CHECK(sink.accumulate[0] == sink.accumulate[1], "gate and up part ways");
    kernels::grouped_linear_backward_weight(d_gate_up_, rows_, offsets, {entry(0), entry(1)},
                                            adds(0));
    rows_.reset();
    if (const int place = part_.place_of_gate_up_bias_; place >= 0) {
      const int64_t width = d_gate_up_.size(1) / 2;
      for (int i = 0; i < 2; ++i) {
        at::Tensor into = entry(place + i);
        kernels::grouped_bias_backward(d_gate_up_.slice(1, i * width, (i + 1) * width),
                                       part_.gate_up_bias_[static_cast<size_t>(i)], {}, offsets,
                                       into, adds(place + i), {});
      }
    }
    d_gate_up_.reset();
    if (part_.place_of_down_bias_ >= 0) add_to_sink(sink, part_.place_of_down_bias_, d_down_bias_);
    d_down_bias_.reset();
  }

 private:
  const ExpertsPart& part_;
  MoeFlow& flow_;
  at::Tensor rows_;
  Saved saved_;
  at::Tensor grad_output_;
  at::Tensor d_gate_up_;
  at::Tensor d_down_bias_;
};

ExpertsPart::ExpertsPart(const ParameterStore& store, int part)
    : spec_(store.spec().parts[part]), parameters_(store.part_parameters(part)) {
  const model::MoeSpec& moe = store.spec().layers[spec_.layer].moe.value();
  activation_ = {to_kernel(moe.expert.activation), moe.clamp_limit};
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const at::Tensor weight = store.compute(parameters_[i]);
    const int place = static_cast<int>(i);
    switch (store.spec().parameters[parameters_[i]].role) {
      case model::Role::kExpertGate:
      case model::Role::kExpertUp:
        gate_up_.push_back(weight);
        break;
      case model::Role::kExpertGateBias:
        place_of_gate_up_bias_ = place;
        [[fallthrough]];
      case model::Role::kExpertUpBias:
        gate_up_bias_.push_back(weight);
        break;
      case model::Role::kExpertDown:
        place_of_down_ = place;
        down_.push_back(weight);
        break;
      case model::Role::kExpertDownBias:
        place_of_down_bias_ = place;
        down_bias_ = weight;
        break;
      default:
        TRIREME_CHECK(false, "{} has no place among experts",
                      store.spec().parameters[parameters_[i]].name);
    }
  }
  TRIREME_CHECK(gate_up_.size() == 2 && down_.size() == 1 &&
                    (gate_up_bias_.empty() || gate_up_bias_.size() == 2),
                "{}: experts are gated", spec_.name);
}

void ExpertsPart::make_saved(const at::Tensor& rows, const MoeFlow& flow, Saved& saved) const {
  const int64_t width = gate_up_[0].size(1);
  const kernels::GroupOffsets& offsets = flow.rows.offsets;
  saved.row_weights = flow.row_weights;
  if (!saved.row_weights.defined()) {
    saved.row_weights = at::empty({rows.size(0)}, flow.weights.options());
    kernels::weights_of_rows(flow.weights, flow.rows, saved.row_weights);
  }
  saved.gate_up = at::empty({rows.size(0), 2 * width}, rows.options());
  for (size_t i = 0; i < gate_up_bias_.size(); ++i) {
    const auto first = static_cast<int64_t>(i) * width;
    at::Tensor half = saved.gate_up.slice(1, first, first + width);
    kernels::grouped_bias(gate_up_bias_[i], {}, offsets, half);
  }
  kernels::grouped_linear(rows, gate_up_, offsets, !gate_up_bias_.empty(), saved.gate_up);
  saved.act = at::empty({rows.size(0), width}, rows.options());
  kernels::weighted_gated_activation(activation_, saved.gate_up, saved.row_weights, saved.act);
}

ForwardResult ExpertsPart::forward(const at::Tensor& hidden, const BatchTensors& batch,
                                   bool with_graph, SaveMode mode) {
  MoeFlow& flow = (*batch.moe)[spec_.layer];
  Saved saved;
  make_saved(hidden, flow, saved);
  if (!with_graph || mode == SaveMode::kInputOnly) saved.gate_up.reset();
  ForwardResult result;
  result.output = flow.into.defined() ? flow.into : at::empty(hidden.sizes(), hidden.options());
  if (down_bias_.defined()) {
    kernels::grouped_bias(down_bias_, saved.row_weights, flow.rows.offsets, result.output);
  }
  kernels::grouped_linear(saved.act, down_, flow.rows.offsets, down_bias_.defined(), result.output);
  if (with_graph) {
    result.graph = std::make_unique<Graph>(*this, flow, hidden, std::move(saved), mode);
  }
  return result;
}

}  // namespace trireme::nn
