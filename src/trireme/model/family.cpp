#include "trireme/model/family.h"

#include <cmath>

#include "trireme/base/error.h"
#include "trireme/base/suggest.h"

namespace trireme::model {

const std::vector<Family>& families() {
  static const std::vector<Family> table = {
      {"gpt2", "GPT2LMHeadModel", "GPT2Model", read_gpt2},
      {"llama", "LlamaForCausalLM", "LlamaModel", read_llama},
      {"qwen2", "Qwen2ForCausalLM", "Qwen2Model", read_qwen2},
      {"qwen3", "Qwen3ForCausalLM", "Qwen3Model", read_qwen3},
  };
  return table;
}

void ParameterTable::begin_part(PartKind kind, int layer) {
  std::string name = to_string(kind);
  if (layer >= 0) name = fmt::format("layer.{}.{}", layer, name);
  spec_.parts.push_back({kind, layer, std::move(name)});
}

ParameterSpec& ParameterTable::matrix(const std::string& name, Role role, int64_t out, int64_t in,
                                      bool residual) {
  // Keeps every sum of sizes far from overflow, whatever a config claims.
  constexpr int64_t kLargestMatrix = int64_t{1} << 40;
  TRIREME_USER_CHECK(out <= kLargestMatrix / in, kConfig, "check the sizes in the config",
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

ParameterSpec& ParameterTable::vector(const std::string& name, Role role, int64_t size) {
  ParameterSpec parameter;
  parameter.name = name;
  parameter.shape = {size};
  parameter.role = role;
  const bool ones = role == Role::kNormWeight || role == Role::kQkNorm;
  parameter.init = {ones ? InitKind::kOnes : InitKind::kZeros, 0.0};
  parameter.part = static_cast<int>(spec_.parts.size()) - 1;
  return spec_.parameters.emplace_back(std::move(parameter));
}

void ParameterTable::norm(const std::string& name, const NormSpec& norm, int64_t size) {
  vector(name + ".weight", Role::kNormWeight, size);
  if (norm.bias) vector(name + ".bias", Role::kNormBias, size);
}

Activation read_activation(ConfigReader& config, const std::string& key,
                           const std::string& default_value) {
  static const std::vector<std::pair<std::string, Activation>> known = {
      {"silu", Activation::kSilu},          {"swish", Activation::kSilu},
      {"gelu_new", Activation::kGeluTanh},  {"gelu_pytorch_tanh", Activation::kGeluTanh},
      {"gelu_tanh", Activation::kGeluTanh}, {"gelu", Activation::kGelu},
      {"relu", Activation::kRelu},
  };
  const std::string name = config.text(key, default_value);
  std::vector<std::string> names;
  for (const auto& [known_name, activation] : known) {
    if (known_name == name) return activation;
    names.push_back(known_name);
  }
  config.fail(key, fmt::format("is \"{}\", an activation that is not covered", name),
              suggestion(name, names));
}

RotarySpec read_rotary(ConfigReader& config, int64_t head_dim, int64_t max_positions) {
  constexpr double kDefaultTheta = 10000.0;
  RotarySpec rotary;
  rotary.dim = head_dim;
  if (head_dim % 2 != 0) {
    config.fail("head_dim",
                fmt::format("gives heads of {} dimensions: rotary positions turn pairs", head_dim),
                "choose an even head dimension");
  }
  rotary.theta = config.positive_number("rope_theta", kDefaultTheta);
  config.require("partial_rotary_factor", 1.0, "rotating only a part of each head");
  const int64_t outer_original = config.positive("original_max_position_embeddings", max_positions);
  const bool outer_original_given = config.has("original_max_position_embeddings");

  const bool both = config.has("rope_scaling") && config.has("rope_parameters");
  if (both) {
    config.fail("rope_scaling", "stands beside \"rope_parameters\", its successor",
                "keep one of the two");
  }
  const std::string key = config.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  config.ignore({"rope_scaling", "rope_parameters"});
  auto rope = config.object(key);
  if (!rope) return rotary;

  rotary.theta = rope->positive_number("rope_theta", rotary.theta);
  rope->require("partial_rotary_factor", 1.0, "rotating only a part of each head");
  const std::string type_key = rope->has("rope_type") ? "rope_type" : "type";
  const std::string type = rope->text(type_key, "default");
  rope->ignore({"rope_type", "type"});
  if (type == "default") {
    // An inactive scaling may still carry its numbers.
    rope->ignore({"factor", "original_max_position_embeddings"});
  } else if (type == "linear") {
    rotary.scaling = RotaryScaling::kLinear;
    rotary.factor = rope->positive_number("factor");
    rope->ignore({"original_max_position_embeddings"});
  } else if (type == "llama3") {
    rotary.scaling = RotaryScaling::kLlama3;
    rotary.factor = rope->positive_number("factor");
    rotary.low_freq_factor = rope->positive_number("low_freq_factor");
    rotary.high_freq_factor = rope->positive_number("high_freq_factor");
    const int64_t inner_original =
        rope->positive("original_max_position_embeddings", max_positions);
    rotary.original_max_positions = outer_original_given ? outer_original : inner_original;
    if (rotary.high_freq_factor <= rotary.low_freq_factor) {
      rope->fail("high_freq_factor", "is not above \"low_freq_factor\"", "exchange the two");
    }
  } else {
    rope->fail(type_key, fmt::format("is \"{}\", a rotary scaling that is not covered", type),
               suggestion(type, {"default", "linear", "llama3"}));
  }
  rope->finish();
  return rotary;
}

void refuse_sliding_window(ConfigReader& config, int64_t num_layers) {
  config.require("use_sliding_window", false, "sliding-window attention");
  // Without use_sliding_window these two have no effect (transformers sets the window to null).
  config.ignore({"sliding_window", "max_window_layers"});
  const std::vector<std::string> types = config.texts("layer_types");
  if (types.empty()) return;
  if (static_cast<int64_t>(types.size()) != num_layers) {
    config.fail("layer_types",
                fmt::format("has {} entries for {} layers", types.size(), num_layers),
                "write one entry per layer or leave it out");
  }
  for (const std::string& type : types) {
    if (type != "full_attention") {
      config.fail("layer_types", fmt::format("holds \"{}\", which is not covered", type),
                  "every layer must be \"full_attention\"");
    }
  }
}

void read_rotary_family(ConfigReader& config, const RotaryFamilyOptions& options, ModelSpec& spec) {
  spec.vocab_size = config.positive("vocab_size");
  spec.hidden = config.positive("hidden_size");
  spec.max_positions = config.positive("max_position_embeddings", 2048);
  spec.tied_embeddings = config.flag("tie_word_embeddings", false);
  spec.initializer_range = config.number("initializer_range", 0.02);
  const int64_t num_layers = config.layers("num_hidden_layers");

  LayerSpec layer;
  layer.attention_norm = {NormKind::kRmsNorm, config.positive_number("rms_norm_eps", 1e-6), false};
  layer.mlp_norm = layer.attention_norm;
  AttentionSpec& attention = layer.attention;
  attention.num_heads = config.positive("num_attention_heads");
  attention.num_kv_heads = config.positive("num_key_value_heads", attention.num_heads);
  if (attention.num_heads % attention.num_kv_heads != 0) {
    config.fail("num_key_value_heads",
                fmt::format("= {} does not divide num_attention_heads = {}", attention.num_kv_heads,
                            attention.num_heads),
                "every key-value head serves the same number of query heads");
  }
  if (!config.has("head_dim") && options.head_dim == 0 && spec.hidden % attention.num_heads != 0) {
    config.fail("hidden_size",
                fmt::format("= {} is not a multiple of num_attention_heads = {}", spec.hidden,
                            attention.num_heads),
                "change one of them or set head_dim");
  }
  attention.head_dim = config.positive(
      "head_dim", options.head_dim > 0 ? options.head_dim : spec.hidden / attention.num_heads);
  attention.qkv_bias = options.qkv_bias;
  attention.out_bias = options.out_bias;
  attention.qk_norm = options.qk_norm;
  attention.scale = 1.0 / std::sqrt(static_cast<double>(attention.head_dim));
  attention.rotary = read_rotary(config, attention.head_dim, spec.max_positions);
  layer.mlp.kind = MlpKind::kGated;
  layer.mlp.activation = read_activation(config, "hidden_act", "silu");
  layer.mlp.hidden = config.positive("intermediate_size");
  layer.mlp.bias = options.mlp_bias;

  spec.layers.assign(static_cast<size_t>(num_layers), layer);
  spec.final_norm = layer.attention_norm;
  config.ignore({"attention_dropout"});  // pre-training here has no dropout
  refuse_sliding_window(config, num_layers);
  add_rotary_family_parameters(spec);
}

void add_rotary_family_parameters(ModelSpec& spec) {
  ParameterTable table(spec);
  const int64_t hidden = spec.hidden;
  table.begin_part(PartKind::kEmbedding, -1);
  table.matrix("model.embed_tokens.weight", Role::kTokenEmbedding, spec.vocab_size, hidden);
  for (size_t i = 0; i < spec.layers.size(); ++i) {
    const LayerSpec& layer = spec.layers[i];
    const AttentionSpec& attention = layer.attention;
    const std::string prefix = fmt::format("model.layers.{}.", i);
    const int64_t query_size = attention.num_heads * attention.head_dim;
    const int64_t kv_size = attention.num_kv_heads * attention.head_dim;

    table.begin_part(PartKind::kAttention, static_cast<int>(i));
    table.norm(prefix + "input_layernorm", layer.attention_norm, hidden);
    table.matrix(prefix + "self_attn.q_proj.weight", Role::kQuery, query_size, hidden);
    table.matrix(prefix + "self_attn.k_proj.weight", Role::kKey, kv_size, hidden);
    table.matrix(prefix + "self_attn.v_proj.weight", Role::kValue, kv_size, hidden);
    if (attention.qkv_bias) {
      table.vector(prefix + "self_attn.q_proj.bias", Role::kBias, query_size);
      table.vector(prefix + "self_attn.k_proj.bias", Role::kBias, kv_size);
      table.vector(prefix + "self_attn.v_proj.bias", Role::kBias, kv_size);
    }
    if (attention.qk_norm) {
      table.vector(prefix + "self_attn.q_norm.weight", Role::kQkNorm, attention.head_dim);
      table.vector(prefix + "self_attn.k_norm.weight", Role::kQkNorm, attention.head_dim);
    }
    table.matrix(prefix + "self_attn.o_proj.weight", Role::kAttentionOut, hidden, query_size, true);
    if (attention.out_bias) table.vector(prefix + "self_attn.o_proj.bias", Role::kBias, hidden);

    table.begin_part(PartKind::kMlp, static_cast<int>(i));
    table.norm(prefix + "post_attention_layernorm", layer.mlp_norm, hidden);
    table.matrix(prefix + "mlp.gate_proj.weight", Role::kGate, layer.mlp.hidden, hidden);
    table.matrix(prefix + "mlp.up_proj.weight", Role::kUp, layer.mlp.hidden, hidden);
    if (layer.mlp.bias) {
      table.vector(prefix + "mlp.gate_proj.bias", Role::kBias, layer.mlp.hidden);
      table.vector(prefix + "mlp.up_proj.bias", Role::kBias, layer.mlp.hidden);
    }
    table.matrix(prefix + "mlp.down_proj.weight", Role::kDown, hidden, layer.mlp.hidden, true);
    if (layer.mlp.bias) table.vector(prefix + "mlp.down_proj.bias", Role::kBias, hidden);
  }
  table.begin_part(PartKind::kHead, -1);
  table.norm("model.norm", spec.final_norm, hidden);
  if (!spec.tied_embeddings) {
    table.matrix("lm_head.weight", Role::kHead, spec.vocab_size, hidden);
  }
}

}  // namespace trireme::model
