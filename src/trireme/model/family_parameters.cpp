// The parameters of every family but gpt2: names, shapes and places of what a composed ModelSpec has.
#include <cmath>

#include "trireme/base/error.h"
#include "trireme/model/family.h"

namespace trireme::model {

namespace {
// Keeps every sum of sizes far from overflow, whatever a config claims.
constexpr int64_t kLargestTensor = int64_t{1} << 40;
}  // namespace

void ParameterTable::begin_part(PartKind kind, int layer) {
  std::string name = to_string(kind);
  if (layer >= 0) name = fmt::format("layer.{}.{}", layer, name);
  spec_.parts.push_back({kind, layer, std::move(name)});
}

ParameterSpec& ParameterTable::matrix(const std::string& name, Role role, int64_t out, int64_t in,
                                      bool residual) {
  TRIREME_USER_CHECK(out <= kLargestTensor / in, kConfig, "check the sizes in the config",
                     "{} would be a matrix of {} x {}", name, out, in);
  ParameterSpec parameter;
  parameter.name = name;
  parameter.shape = {out, in};
  parameter.role = role;
  parameter.init.std = spec_.initializer_range;
  if (residual) {
    parameter.init.std /= std::sqrt(2.0 * static_cast<double>(spec_.layers.size()));
  }
  parameter.part = static_cast<int>(spec_.parts.size()) - 1;
  return spec_.parameters.emplace_back(std::move(parameter));
}

ParameterSpec& ParameterTable::stack(const std::string& name, Role role, int64_t experts,
                                     int64_t out, int64_t in, bool residual) {
  ParameterSpec& parameter = matrix(name, role, out, in, residual);
  TRIREME_USER_CHECK(out * in <= kLargestTensor / experts, kConfig, "check the sizes in the config",
                     "{} would be {} matrices of {} x {}", name, experts, out, in);
  parameter.shape = {experts, out, in};
  return parameter;
}

ParameterSpec& ParameterTable::stacked_bias(const std::string& name, Role role, int64_t experts,
                                            int64_t size) {
  ParameterSpec& parameter = vector(name, role, size);
  parameter.shape = {experts, size};
  return parameter;
}

ParameterSpec& ParameterTable::vector(const std::string& name, Role role, int64_t size) {
  ParameterSpec parameter;
  parameter.name = name;
  parameter.shape = {size};
  parameter.role = role;
  const bool ones = role == Role::kNormWeight || role == Role::kQkNorm || role == Role::kLatentNorm;
  parameter.init = {ones ? InitKind::kOnes : InitKind::kZeros, 0.0};
  parameter.part = static_cast<int>(spec_.parts.size()) - 1;
  return spec_.parameters.emplace_back(std::move(parameter));
}

void ParameterTable::norm(const std::string& name, const NormSpec& norm, int64_t size) {
  ParameterSpec& weight = vector(name + ".weight", Role::kNormWeight, size);
  if (norm.unit_offset) weight.init.kind = InitKind::kZeros;
  if (norm.bias) vector(name + ".bias", Role::kNormBias, size);
}

namespace {

/// DeepSeek's latent attention; the order is told at Role::kSink.
void add_latent_attention(ParameterTable& table, const AttentionSpec& attention,
                          const std::string& attn, int64_t hidden) {
  const LatentSpec& latent = *attention.latent;
  const int64_t query_size = attention.num_heads * attention.head_dim;
  const int64_t kv_size = attention.num_heads * (latent.nope_dim + attention.value_dim);
  const int64_t kv_down = latent.kv_rank + latent.rope_dim;
  const bool compressed = latent.query_rank > 0;
  if (compressed) {
    table.matrix(attn + "q_a_proj.weight", Role::kQueryDown, latent.query_rank, hidden);
  } else {
    table.matrix(attn + "q_proj.weight", Role::kQuery, query_size, hidden);
  }
  table.matrix(attn + "kv_a_proj_with_mqa.weight", Role::kKeyValueDown, kv_down, hidden);
  if (attention.qkv_bias) {
    if (compressed) table.vector(attn + "q_a_proj.bias", Role::kBias, latent.query_rank);
    table.vector(attn + "kv_a_proj_with_mqa.bias", Role::kBias, kv_down);
  }
  if (compressed) table.vector(attn + "q_a_layernorm.weight", Role::kLatentNorm, latent.query_rank);
  table.vector(attn + "kv_a_layernorm.weight", Role::kLatentNorm, latent.kv_rank);
  if (compressed)
    table.matrix(attn + "q_b_proj.weight", Role::kQuery, query_size, latent.query_rank);
  table.matrix(attn + "kv_b_proj.weight", Role::kKeyValueUp, kv_size, latent.kv_rank);
  table.matrix(attn + "o_proj.weight", Role::kAttentionOut, hidden,
               attention.num_heads * attention.value_dim, true);
  if (attention.out_bias) table.vector(attn + "o_proj.bias", Role::kBias, hidden);
}

void add_attention(ParameterTable& table, const LayerSpec& layer, const std::string& prefix,
                   int64_t hidden, double std, bool packed) {
  const AttentionSpec& attention = layer.attention;
  if (layer.attention_norm) table.norm(prefix + "input_layernorm", *layer.attention_norm, hidden);
  if (attention.latent)
    return add_latent_attention(table, attention, prefix + "self_attn.", hidden);
  const int64_t query_size = attention.num_heads * attention.head_dim;
  const int64_t kv_size = attention.num_kv_heads * attention.head_dim;
  const std::string attn = prefix + "self_attn.";
  struct Projection {
    const char* name;
    const char* packed_name;
    Role role;
    int64_t size;
  };
  const Projection projections[] = {{"q_proj", "query", Role::kQuery, query_size},
                                    {"k_proj", "key", Role::kKey, kv_size},
                                    {"v_proj", "value", Role::kValue, kv_size}};
  for (const Projection& p : projections) {
    const std::string name = packed ? fmt::format("{}qkv_proj.{}.weight", attn, p.packed_name)
                                    : fmt::format("{}{}.weight", attn, p.name);
    ParameterSpec& weight = table.matrix(name, p.role, p.size, hidden);
    if (packed) weight.packed_on_disk = attn + "qkv_proj.weight";
  }
  for (const Projection& p : projections) {
    if (attention.qkv_bias)
      table.vector(fmt::format("{}{}.bias", attn, p.name), Role::kBias, p.size);
  }
  if (attention.qk_norm != QkNorm::kNone) {
    const bool all = attention.qk_norm == QkNorm::kAllHeads;
    for (const auto& [name, size] : {std::pair{"q_norm", query_size}, {"k_norm", kv_size}}) {
      ParameterSpec& weight = table.vector(fmt::format("{}{}.weight", attn, name), Role::kQkNorm,
                                           all ? size : attention.head_dim);
      if (attention.qk_norm_spec.unit_offset) weight.init.kind = InitKind::kZeros;
    }
  }
  if (attention.sinks)
    table.vector(attn + "sinks", Role::kSink, attention.num_heads).init = {InitKind::kNormal, std};
  table.matrix(attn + "o_proj.weight", Role::kAttentionOut, hidden, query_size, true);
  if (attention.out_bias) table.vector(attn + "o_proj.bias", Role::kBias, hidden);
  if (layer.attention_post_norm)
    table.norm(prefix + "post_attention_layernorm", *layer.attention_post_norm, hidden);
}

void add_mlp(ParameterTable& table, const LayerSpec& layer, const std::string& prefix,
             int64_t hidden, bool packed) {
  if (layer.mlp_norm) {
    // With post norms the name "post_attention" is taken by attention's own.
    table.norm(prefix + (layer.attention_post_norm ? "pre_feedforward_layernorm"
                                                   : "post_attention_layernorm"),
               *layer.mlp_norm, hidden);
  }
  const std::string mlp = prefix + "mlp.";
  for (const auto& [name, role] : {std::pair{"gate", Role::kGate}, {"up", Role::kUp}}) {
    const std::string full = packed ? fmt::format("{}gate_up_proj.{}.weight", mlp, name)
                                    : fmt::format("{}{}_proj.weight", mlp, name);
    ParameterSpec& weight = table.matrix(full, role, layer.mlp.hidden, hidden);
    if (packed) weight.packed_on_disk = mlp + "gate_up_proj.weight";
  }
  if (layer.mlp.bias) {
    table.vector(mlp + "gate_proj.bias", Role::kBias, layer.mlp.hidden);
    table.vector(mlp + "up_proj.bias", Role::kBias, layer.mlp.hidden);
  }
  table.matrix(mlp + "down_proj.weight", Role::kDown, hidden, layer.mlp.hidden, true);
  if (layer.mlp.bias) table.vector(mlp + "down_proj.bias", Role::kBias, hidden);
  if (layer.mlp_post_norm)
    table.norm(prefix + "post_feedforward_layernorm", *layer.mlp_post_norm, hidden);
}

/// Router, dispatch, experts and combine in place of the MLP.
void add_experts(ParameterTable& table, const LayerSpec& layer, int number,
                 const std::string& prefix, int64_t hidden, const TensorNames& names) {
  const MoeSpec& moe = *layer.moe;
  const int64_t width = moe.expert.hidden;
  const std::string mlp = prefix + "mlp.";
  const std::string in_files = fmt::format("{}{}.", prefix, names.mlp_in_files);
  table.begin_part(PartKind::kRouter, number);
  table.norm(prefix + "post_attention_layernorm", *layer.mlp_norm, hidden);
  const std::string router = fmt::format("{}{}", mlp, names.router);
  const std::string router_in_files = fmt::format("{}{}.weight", in_files, names.router);
  ParameterSpec& scores = table.matrix(router + ".weight", Role::kRouter, moe.num_experts, hidden);
  if (router_in_files != scores.name) scores.name_in_files = router_in_files;
  if (moe.router_bias) table.vector(router + ".bias", Role::kBias, moe.num_experts);
  if (moe.selection_bias) {
    ParameterSpec& bias =
        table.vector(router + ".e_score_correction_bias", Role::kSelectionBias, moe.num_experts);
    bias.trainable = false;
    bias.fp32_on_disk = true;
  }

  table.begin_part(PartKind::kDispatch, number);
  table.begin_part(PartKind::kExperts, number);
  const std::string experts = mlp + "experts.";
  const auto store = [&](ParameterSpec& parameter, const char* packed, const char* file_name) {
    if (packed != nullptr) {
      parameter.packed_on_disk = experts + packed;
      parameter.packed_dim = 1;
      parameter.packed_interleaved = names.interleaved_stacks;
    }
    const bool matrices = parameter.shape.size() == 3;
    parameter.transposed_on_disk = names.interleaved_stacks && matrices;
    if (!names.interleaved_stacks)
      parameter.name_in_files = fmt::format("{}experts.{{}}.{}.weight", in_files, file_name);
  };
  store(table.stack(experts + "gate_proj", Role::kExpertGate, moe.num_experts, width, hidden),
        "gate_up_proj", names.gate);
  store(table.stack(experts + "up_proj", Role::kExpertUp, moe.num_experts, width, hidden),
        "gate_up_proj", names.up);
  if (moe.expert.bias) {
    for (const auto& [name, role] : {std::pair{"gate_proj_bias", Role::kExpertGateBias},
                                     {"up_proj_bias", Role::kExpertUpBias}})
      store(table.stacked_bias(experts + name, role, moe.num_experts, width), "gate_up_proj_bias",
            name);
  }
  store(table.stack(experts + "down_proj", Role::kExpertDown, moe.num_experts, hidden, width, true),
        nullptr, names.down);
  if (moe.expert.bias)
    table.stacked_bias(experts + "down_proj_bias", Role::kExpertDownBias, moe.num_experts, hidden);

  table.begin_part(PartKind::kCombine, number);
  if (moe.shared_hidden > 0) {
    const std::string shared = fmt::format("{}{}.", mlp, names.shared);
    table.matrix(shared + "gate_proj.weight", Role::kGate, moe.shared_hidden, hidden);
    table.matrix(shared + "up_proj.weight", Role::kUp, moe.shared_hidden, hidden);
    table.matrix(shared + "down_proj.weight", Role::kDown, hidden, moe.shared_hidden, true);
    if (moe.shared_gate)
      table.matrix(fmt::format("{}{}_gate.weight", mlp, names.shared), Role::kSharedExpertGate, 1,
                   hidden);
  }
}

void add_layer(ParameterTable& table, const ModelSpec& spec, int number, const TensorNames& names) {
  const LayerSpec& layer = spec.layers[static_cast<size_t>(number)];
  const std::string prefix = fmt::format("model.layers.{}.", number);
  const bool mtp = number >= spec.num_main_layers();
  if (mtp) {
    table.begin_part(PartKind::kMtpInput, number);
    table.norm(prefix + "enorm", spec.final_norm, spec.hidden);
    table.norm(prefix + "hnorm", spec.final_norm, spec.hidden);
    table.matrix(prefix + "eh_proj.weight", Role::kMtpProjection, spec.hidden, 2 * spec.hidden);
  }
  table.begin_part(PartKind::kAttention, number);
  add_attention(table, layer, prefix, spec.hidden, spec.initializer_range, names.packed);
  if (layer.moe) {
    add_experts(table, layer, number, prefix, spec.hidden, names);
  } else {
    table.begin_part(PartKind::kMlp, number);
    add_mlp(table, layer, prefix, spec.hidden, names.packed);
  }
  if (mtp) {
    table.begin_part(PartKind::kMtpHead, number);
    table.norm(prefix + "shared_head.norm", spec.final_norm, spec.hidden);
  }
}

}  // namespace

void add_rotary_family_parameters(ModelSpec& spec, const TensorNames& names) {
  ParameterTable table(spec);
  table.begin_part(PartKind::kEmbedding, -1);
  table.matrix("model.embed_tokens.weight", Role::kTokenEmbedding, spec.vocab_size, spec.hidden);
  const int total = static_cast<int>(spec.layers.size());
  const int main_layers = spec.num_main_layers();
  for (int i = 0; i < main_layers; ++i) add_layer(table, spec, i, names);
  table.begin_part(PartKind::kHead, -1);
  table.norm("model.norm", spec.final_norm, spec.hidden);
  if (!spec.tied_embeddings)
    table.matrix("lm_head.weight", Role::kHead, spec.vocab_size, spec.hidden);
  for (int i = main_layers; i < total; ++i) add_layer(table, spec, i, names);
}

}  // namespace trireme::model
