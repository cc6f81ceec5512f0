// Specs with attention that the dense families do not have, composed by hand: sinks, latent attention. Header only, for
// tests.
#pragma once

#include <fmt/format.h>

#include <cmath>
#include <string>
#include <vector>

#include "trireme/model/family.h"
#include "trireme/model/model_spec.h"

namespace trireme::nn::testing {

/// Gives every layer of a llama-like spec sinks.
inline model::ModelSpec with_sinks(model::ModelSpec spec) {
  std::vector<model::ParameterSpec> parameters;
  for (const model::ParameterSpec& parameter : spec.parameters) {
    const int layer = spec.parts[static_cast<size_t>(parameter.part)].layer;
    if (parameter.role == model::Role::kAttentionOut) {
      model::AttentionSpec& attention = spec.layers[static_cast<size_t>(layer)].attention;
      attention.sinks = true;
      model::ParameterSpec sinks;
      sinks.name = fmt::format("model.layers.{}.self_attn.sinks", layer);
      sinks.shape = {attention.num_heads};
      sinks.role = model::Role::kSink;
      sinks.init.std = 1.0;
      sinks.part = parameter.part;
      parameters.push_back(sinks);
    }
    parameters.push_back(parameter);
  }
  spec.parameters = parameters;
  return spec;
}

/// Puts latent attention in the place of a llama-like spec's (without biases), in the order that Role prescribes. `bias`
/// is deepseek's attention_bias.
inline model::ModelSpec with_latent_attention(model::ModelSpec spec,
                                              const model::LatentSpec& latent, int64_t value_dim,
                                              bool bias) {
  using model::Role;
  for (model::LayerSpec& layer : spec.layers) {
    model::AttentionSpec& attention = layer.attention;
    attention.latent = latent;
    attention.num_kv_heads = attention.num_heads;
    attention.head_dim = latent.nope_dim + latent.rope_dim;
    attention.value_dim = value_dim;
    attention.qkv_bias = attention.out_bias = bias;
    attention.scale = 1.2 / std::sqrt(static_cast<double>(attention.head_dim));
    attention.rotary->dim = latent.rope_dim;
  }
  model::ModelSpec shell = spec;  // what the table writes to, part by part
  const auto begin = [&](int part) {
    shell.parts.assign(spec.parts.begin(), spec.parts.begin() + part + 1);
    shell.parameters.clear();
    return model::ParameterTable(shell);
  };
  std::vector<model::ParameterSpec> parameters;
  for (const model::ParameterSpec& parameter : spec.parameters) {
    const model::PartSpec& part = spec.parts[static_cast<size_t>(parameter.part)];
    const bool replaced =
        part.kind == model::PartKind::kAttention && parameter.role != Role::kNormWeight;
    if (!replaced) parameters.push_back(parameter);
    if (!replaced || parameter.role != Role::kQuery) continue;
    const model::AttentionSpec& attention = spec.layers[static_cast<size_t>(part.layer)].attention;
    const std::string name = fmt::format("model.layers.{}.self_attn.", part.layer);
    const int64_t heads = attention.num_heads;
    const int64_t down = latent.kv_rank + latent.rope_dim;
    model::ParameterTable table = begin(parameter.part);
    if (latent.query_rank > 0) {
      table.matrix(name + "q_a_proj.weight", Role::kQueryDown, latent.query_rank, spec.hidden);
    } else {
      table.matrix(name + "q_proj.weight", Role::kQuery, heads * attention.head_dim, spec.hidden);
    }
    table.matrix(name + "kv_a_proj_with_mqa.weight", Role::kKeyValueDown, down, spec.hidden);
    if (bias && latent.query_rank > 0)
      table.vector(name + "q_a_proj.bias", Role::kBias, latent.query_rank);
    if (bias) table.vector(name + "kv_a_proj_with_mqa.bias", Role::kBias, down);
    if (latent.query_rank > 0)
      table.vector(name + "q_a_layernorm.weight", Role::kLatentNorm, latent.query_rank);
    table.vector(name + "kv_a_layernorm.weight", Role::kLatentNorm, latent.kv_rank);
    if (latent.query_rank > 0) {
      table.matrix(name + "q_b_proj.weight", Role::kQuery, heads * attention.head_dim,
                   latent.query_rank);
    }
    table.matrix(name + "kv_b_proj.weight", Role::kKeyValueUp,
                 heads * (latent.nope_dim + value_dim), latent.kv_rank);
    table.matrix(name + "o_proj.weight", Role::kAttentionOut, spec.hidden, heads * value_dim, true);
    if (bias) table.vector(name + "o_proj.bias", Role::kBias, spec.hidden);
    for (model::ParameterSpec& made : shell.parameters) {
      if (made.role == Role::kLatentNorm) made.init = {model::InitKind::kOnes, 0.0};
      if (made.role == Role::kBias) made.init = {model::InitKind::kNormal, 0.3};
      parameters.push_back(made);
    }
  }
  spec.parameters = parameters;
  return spec;
}

}  // namespace trireme::nn::testing
