// Tiny specs with every kind of router and expert, made from a dense one. Header only, for tests.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "trireme/model/model_spec.h"

namespace trireme::nn::testing {

/// `dense` with experts in place of the MLP of every layer from `first` on. Rebuilds parts and parameters in their order.
inline model::ModelSpec with_experts(const model::ModelSpec& dense, const model::MoeSpec& moe,
                                     int first) {
  using model::ParameterSpec;
  using model::PartKind;
  using model::Role;
  model::ModelSpec spec = dense;
  spec.parts.clear();
  spec.parameters.clear();
  const int64_t d = spec.hidden;
  const int64_t e = moe.num_experts;
  const int64_t f = moe.expert.hidden;
  const auto add = [&](const std::string& name, Role role, std::vector<int64_t> shape) {
    ParameterSpec parameter;
    parameter.name = name;
    parameter.shape = std::move(shape);
    parameter.role = role;
    parameter.init = {model::InitKind::kNormal, 0.2};
    parameter.trainable = role != Role::kSelectionBias;
    parameter.part = static_cast<int>(spec.parts.size()) - 1;
    spec.parameters.push_back(std::move(parameter));
  };
  for (size_t old = 0; old < dense.parts.size(); ++old) {
    const model::PartSpec& part = dense.parts[old];
    const bool experts = part.kind == PartKind::kMlp && part.layer >= first;
    if (!experts) spec.parts.push_back(part);
    if (experts) {
      spec.layers[static_cast<size_t>(part.layer)].moe = moe;
      spec.parts.push_back(
          {PartKind::kRouter, part.layer, "layer." + std::to_string(part.layer) + ".router"});
    }
    for (const ParameterSpec& parameter : dense.parameters) {
      if (parameter.part != static_cast<int>(old)) continue;
      if (experts && parameter.role != Role::kNormWeight) continue;
      spec.parameters.push_back(parameter);
      spec.parameters.back().part = static_cast<int>(spec.parts.size()) - 1;
    }
    if (!experts) continue;
    const std::string prefix = "model.layers." + std::to_string(part.layer) + ".mlp.";
    add(prefix + "gate.weight", Role::kRouter, {e, d});
    if (moe.router_bias) add(prefix + "gate.bias", Role::kBias, {e});
    if (moe.selection_bias) add(prefix + "gate.e_score_correction_bias", Role::kSelectionBias, {e});
    const std::string layer = "layer." + std::to_string(part.layer);
    spec.parts.push_back({PartKind::kDispatch, part.layer, layer + ".dispatch"});
    spec.parts.push_back({PartKind::kExperts, part.layer, layer + ".experts"});
    add(prefix + "experts.gate_proj", Role::kExpertGate, {e, f, d});
    add(prefix + "experts.up_proj", Role::kExpertUp, {e, f, d});
    if (moe.expert.bias) {
      add(prefix + "experts.gate_bias", Role::kExpertGateBias, {e, f});
      add(prefix + "experts.up_bias", Role::kExpertUpBias, {e, f});
    }
    add(prefix + "experts.down_proj", Role::kExpertDown, {e, d, f});
    if (moe.expert.bias) add(prefix + "experts.down_bias", Role::kExpertDownBias, {e, d});
    spec.parts.push_back({PartKind::kCombine, part.layer, layer + ".combine"});
    if (moe.shared_hidden == 0) continue;
    add(prefix + "shared.gate_proj.weight", Role::kGate, {moe.shared_hidden, d});
    add(prefix + "shared.up_proj.weight", Role::kUp, {moe.shared_hidden, d});
    add(prefix + "shared.down_proj.weight", Role::kDown, {d, moe.shared_hidden});
    if (moe.shared_gate) add(prefix + "shared_gate.weight", Role::kSharedExpertGate, {1, d});
  }
  return spec;
}

struct MoeVariant {
  std::string name;
  model::MoeSpec moe;
  int first = 0;
};

/// Every kind of router, balance and expert that the families have, and those only a run file asks for.
inline std::vector<MoeVariant> moe_variants() {
  model::MoeSpec base;
  base.num_experts = 6;
  base.top_k = 2;
  base.expert.hidden = 12;
  std::vector<MoeVariant> all;
  const auto variant = [&](const char* name, auto change, int first = 0) {
    model::MoeSpec moe = base;
    change(moe);
    all.push_back({name, moe, first});
  };
  variant("every expert chosen", [](model::MoeSpec& m) { m.top_k = m.num_experts; });
  variant("softmax", [](model::MoeSpec&) {});
  variant("renormalised, dense layer first", [](model::MoeSpec& m) { m.normalize = true; }, 1);
  variant("gated shared expert", [](model::MoeSpec& m) {
    m.shared_hidden = 20;
    m.shared_gate = true;
  });
  variant("clamped with biases", [](model::MoeSpec& m) {
    m.softmax_after_top_k = true;
    m.router_bias = true;
    m.expert.bias = true;
    m.clamp_limit = 0.4;
  });
  variant("sigmoid in groups with selection bias", [](model::MoeSpec& m) {
    m.score = model::ScoreFunction::kSigmoid;
    m.normalize = true;
    m.scaling = 2.5;
    m.num_groups = 3;
    m.top_groups = 2;
    m.group_score_top2 = true;
    m.selection_bias = true;
    m.shared_hidden = 8;
    m.aux_loss = 0.05;
    m.sequence_aux = true;
  });
  variant("balanced", [](model::MoeSpec& m) {
    m.aux_loss = 0.1;
    m.z_loss = 0.02;
  });
  variant("capacity", [](model::MoeSpec& m) { m.capacity_factor = 0.8; });
  variant("padded capacity", [](model::MoeSpec& m) {
    m.capacity_factor = 1.1;
    m.pad_to_capacity = true;
    m.shared_hidden = 8;
  });
  return all;
}

}  // namespace trireme::nn::testing
