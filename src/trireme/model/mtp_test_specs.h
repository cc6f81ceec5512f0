// Tiny specs with multi-token prediction, made from ones without. Header only, for tests.
#pragma once

#include <fmt/format.h>

#include <string>

#include "trireme/model/family.h"
#include "trireme/model/model_spec.h"

namespace trireme::model {

/// Appends `modules` layers like the last one of a llama-like spec, each between its input and its head, with `weight` on
/// the mean of their losses.
inline ModelSpec with_mtp(ModelSpec spec, int modules, double weight) {
  const ModelSpec plain = spec;
  const int last = static_cast<int>(plain.layers.size()) - 1;
  spec.num_mtp_layers = modules;
  spec.mtp_loss_weight = weight;
  ParameterTable table(spec);
  const auto norm = [&](const std::string& name) {
    table.norm(name, spec.final_norm, spec.hidden);
    spec.parameters.back().init = {InitKind::kNormal, 1.0};
  };
  for (int number = last + 1; number <= last + modules; ++number) {
    spec.layers.push_back(plain.layers.back());
    const std::string prefix = fmt::format("model.layers.{}.", number);
    table.begin_part(PartKind::kMtpInput, number);
    norm(prefix + "enorm");
    norm(prefix + "hnorm");
    table.matrix(prefix + "eh_proj.weight", Role::kMtpProjection, spec.hidden, 2 * spec.hidden);
    for (size_t part = 0; part < plain.parts.size(); ++part) {
      if (plain.parts[part].layer != last) continue;
      table.begin_part(plain.parts[part].kind, number);
      for (ParameterSpec parameter : plain.parameters) {
        if (parameter.part != static_cast<int>(part)) continue;
        const std::string old = fmt::format("model.layers.{}.", last);
        parameter.name.replace(0, old.size(), prefix);
        parameter.part = static_cast<int>(spec.parts.size()) - 1;
        spec.parameters.push_back(parameter);
      }
    }
    table.begin_part(PartKind::kMtpHead, number);
    norm(prefix + "shared_head.norm");
  }
  return spec;
}

}  // namespace trireme::model
