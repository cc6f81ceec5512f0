// Memory of the parts of a MoE layer: mirrors nn/{router,dispatch,experts,combine}_part.cpp line by line.
#include <cmath>

#include "trireme/plan/part_memory.h"

namespace trireme::plan {

namespace {

using model::PartKind;

const model::MoeSpec& moe_of(const model::ModelSpec& spec, int part) {
  const int layer = spec.parts[static_cast<size_t>(part)].layer;
  return spec.layers[static_cast<size_t>(layer)].moe.value();
}

PartBytes router_bytes(const model::ModelSpec& spec, const Strategy& strategy, int part) {
  const model::MoeSpec& moe = moe_of(spec, part);
  const model::LayerSpec& layer =
      spec.layers[static_cast<size_t>(spec.parts[static_cast<size_t>(part)].layer)];
  const Sizes sizes(spec, strategy);
  const int64_t tokens = sizes.tokens;
  const int64_t statistics = norm_statistics(layer.mlp_norm, tokens);
  const int64_t gradients = norm_gradients(layer.mlp_norm, spec.hidden);
  const int64_t logits = tensor_bytes(4 * tokens * moe.num_experts);
  const int64_t choice = tensor_bytes(8 * tokens * moe.top_k);
  const int64_t weights = tensor_bytes(4 * tokens * moe.top_k);
  const int64_t order = choice + tensor_bytes(8 * expert_rows(spec, strategy, part));
  const int64_t balance =
      tensor_bytes(4 * moe.num_experts * (moe.sequence_aux ? strategy.micro : 1));
  const int64_t kept_balance = moe.aux_loss > 0.0 ? balance : 0;
  const int64_t low = sizes.activations(moe.num_experts);
  const bool converts = sizes.precision == Precision::kBf16;

  PartBytes bytes;
  bytes.saved_input = statistics + logits + choice + weights + order + kept_balance;
  bytes.delayed = gradients + low;

  HighWater forward;
  forward.hold(statistics + sizes.hidden + logits);
  forward.pass(sizes.product(moe.num_experts, sizes.width));
  forward.hold(choice + weights + order);
  forward.hold(balance);
  bytes.forward_workspace = forward.above(sizes.hidden + bytes.saved_input);

  HighWater backward;
  backward.hold(logits);  // their gradient
  backward.drop(logits + choice + kept_balance + weights + order);
  backward.hold(converts ? low : 0);
  backward.drop(converts ? logits : 0);
  backward.pass(sizes.product(sizes.width, moe.num_experts));
  backward.hold(gradients);
  if (layer.mlp_norm)
    backward.pass(sizes.kernels.norm_backward(tokens, sizes.width, *layer.mlp_norm));
  // The input's gradient takes the place of the output's.
  bytes.backward_input_workspace = backward.above(sizes.hidden + bytes.delayed);
  bytes.backward_weight_workspace =
      sizes.weight_product(moe.num_experts, sizes.width, moe.router_bias);
  return bytes;
}

PartBytes experts_bytes(const model::ModelSpec& spec, const Strategy& strategy, int part,
                        Recompute mode) {
  const model::MoeSpec& moe = moe_of(spec, part);
  const Sizes sizes(spec, strategy);
  // Of one micro-batch, with routing that is even; spread over ranks, rows' weights and their gradients come and go with rows.
  const int64_t ranks = strategy.parallel.ep;
  const int64_t rows = (expert_rows(spec, strategy, part) + ranks - 1) / ranks;
  const int64_t experts = moe.num_experts / ranks;
  const int64_t width = moe.expert.hidden;
  const int64_t in = sizes.matrix(rows, sizes.width);
  const int64_t gate_up = sizes.matrix(rows, 2 * width);
  const int64_t act = sizes.matrix(rows, width);
  const int64_t row_weights = ranks > 1 ? 0 : tensor_bytes(4 * rows);
  const int64_t bias_gradient = moe.expert.bias ? tensor_bytes(4 * experts * sizes.width) : 0;
  const bool selective = mode == Recompute::kSelective;

  PartBytes bytes;
  // Recomputation does without the rows' weights as little as backward does: they always stay.
  bytes.saved_input = row_weights;
  bytes.saved_weight = gate_up + (selective ? 0 : act);
  bytes.delayed = (selective ? act : 0) + bias_gradient;

  const KernelWorkspace& kernels = sizes.kernels;
  HighWater forward;
  forward.hold(row_weights + gate_up);
  forward.pass(kernels.grouped_product(rows, experts, sizes.width, 2 * width, 2, sizes.precision));
  forward.hold(act);
  if (mode == Recompute::kFull) forward.drop(gate_up);
  forward.hold(in);
  forward.pass(kernels.grouped_product(rows, experts, width, sizes.width, 1, sizes.precision));
  bytes.forward_workspace =
      forward.above(in + (mode == Recompute::kFull ? 0 : bytes.saved_input + bytes.saved_weight));
  bytes.recompute_workspace = 0;

  HighWater backward;
  backward.hold(act + row_weights);  // gradients of the activation and of the rows' weights
  backward.pass(kernels.grouped_input(rows, experts, width, sizes.width, 1, sizes.precision));
  if (!selective) backward.drop(act);
  backward.hold(bias_gradient);
  const int64_t choices = ranks > 1 ? 0 : routed_choices_bytes(spec, strategy, part);
  backward.hold(choices);
  backward.drop(2 * row_weights);
  backward.hold(in);
  backward.pass(kernels.grouped_input(rows, experts, sizes.width, 2 * width, 2, sizes.precision));
  bytes.backward_input_workspace = backward.above(in + choices + bytes.delayed);

  HighWater weight;
  weight.pass(sizes.kernels.grouped_weight(rows, experts, width, sizes.width, 1, sizes.precision));
  weight.drop(in + act);
  weight.pass(
      sizes.kernels.grouped_weight(rows, experts, sizes.width, 2 * width, 2, sizes.precision));
  bytes.backward_weight_workspace = weight.above(0);
  return bytes;
}

PartBytes combine_bytes(const model::ModelSpec& spec, const Strategy& strategy, int part,
                        Recompute mode) {
  const model::MoeSpec& moe = moe_of(spec, part);
  PartBytes bytes;
  if (moe.shared_hidden == 0) return bytes;
  const Sizes sizes(spec, strategy);
  const int64_t gate = tensor_bytes(4 * sizes.tokens);
  const int64_t gate_up = sizes.activations(2 * moe.shared_hidden);
  const int64_t act = sizes.activations(moe.shared_hidden);
  const int64_t d_gate = moe.shared_gate ? sizes.activations(1) : 0;
  const bool selective = mode == Recompute::kSelective;
  bytes.saved_input = gate;
  bytes.saved_weight = gate_up + (selective ? 0 : act);
  bytes.delayed = (selective ? act : 0) + d_gate;

  const auto make_saved = [&](HighWater& water) {
    water.hold(gate);
    if (moe.shared_gate) water.pass(gate + sizes.product(1, sizes.width));
    water.hold(gate_up);
    water.pass(sizes.product(2 * moe.shared_hidden, sizes.width));
    water.hold(act);
  };
  const bool full = mode == Recompute::kFull;
  HighWater forward;
  make_saved(forward);
  if (full) forward.drop(gate_up);
  forward.hold(sizes.hidden);
  forward.pass(sizes.product(sizes.width, moe.shared_hidden));
  bytes.forward_workspace =
      forward.above(sizes.hidden + (full ? 0 : bytes.saved_input + bytes.saved_weight));
  HighWater recompute;
  make_saved(recompute);
  bytes.recompute_workspace = recompute.above(bytes.saved_input + bytes.saved_weight);

  const int64_t rows = sizes.matrix(expert_rows(spec, strategy, part), sizes.width);
  HighWater backward;
  backward.hold(act);
  backward.pass(sizes.product(moe.shared_hidden, sizes.width));
  backward.hold(gate);
  if (!selective) backward.drop(act);
  backward.hold(sizes.hidden);
  backward.pass(sizes.product(sizes.width, 2 * moe.shared_hidden));
  backward.hold(d_gate);
  backward.drop(2 * gate);
  backward.hold(rows);
  bytes.backward_input_workspace = backward.above(rows + sizes.hidden + bytes.delayed);

  HighWater weight;
  weight.pass(sizes.weight_product(sizes.width, moe.shared_hidden, false));
  weight.drop(act);
  weight.pass(sizes.weight_product(2 * moe.shared_hidden, sizes.width, false));
  bytes.backward_weight_workspace = weight.above(0);
  return bytes;
}

}  // namespace

int64_t expert_rows(const model::ModelSpec& spec, const Strategy& strategy, int part) {
  const model::MoeSpec& moe = moe_of(spec, part);
  const int64_t choices = strategy.tokens() * moe.top_k;
  if (moe.capacity_factor <= 0.0) return choices;
  const double even = static_cast<double>(choices) / static_cast<double>(moe.num_experts);
  const int64_t most =
      moe.num_experts *
      std::max<int64_t>(1, static_cast<int64_t>(std::ceil(moe.capacity_factor * even)));
  return moe.pad_to_capacity ? most : std::min(choices, most);
}

int64_t row_weights_bytes(const model::ModelSpec& spec, const Strategy& strategy, int part) {
  return tensor_bytes(4 * expert_rows(spec, strategy, part));
}

int64_t routed_choices_bytes(const model::ModelSpec& spec, const Strategy& strategy, int part) {
  const PartKind kind = spec.parts[static_cast<size_t>(part)].kind;
  const bool routed = kind == PartKind::kRouter || kind == PartKind::kDispatch ||
                      kind == PartKind::kExperts || kind == PartKind::kCombine;
  if (!routed) return 0;
  return tensor_bytes(4 * strategy.tokens() * moe_of(spec, part).top_k);
}

PartBytes moe_part_bytes(const model::ModelSpec& spec, const Strategy& strategy, int part,
                         Recompute mode) {
  switch (spec.parts[static_cast<size_t>(part)].kind) {
    case PartKind::kRouter:
      return router_bytes(spec, strategy, part);
    case PartKind::kExperts:
      return experts_bytes(spec, strategy, part, mode);
    case PartKind::kCombine:
      return combine_bytes(spec, strategy, part, mode);
    default:
      return {};
  }
}

}  // namespace trireme::plan
