#include "trireme/model/family.h"

#include <cmath>

#include "trireme/base/error.h"
#include "trireme/base/suggest.h"

namespace trireme::model {

const std::vector<Family>& families() {
  static const std::vector<Family> table = {
      {"deepseek_v2", "DeepseekV2ForCausalLM", "DeepseekV2Model", read_deepseek_v2},
      {"deepseek_v3", "DeepseekV3ForCausalLM", "DeepseekV3Model", read_deepseek_v3, "kimi_k2"},
      {"gemma2", "Gemma2ForCausalLM", "Gemma2Model", read_gemma2},
      {"gemma3_text", "Gemma3ForCausalLM", "Gemma3TextModel", read_gemma3},
      {"glm4_moe", "Glm4MoeForCausalLM", "Glm4MoeModel", read_glm4_moe},
      {"gpt2", "GPT2LMHeadModel", "GPT2Model", read_gpt2},
      {"gpt_oss", "GptOssForCausalLM", "GptOssModel", read_gpt_oss},
      {"llama", "LlamaForCausalLM", "LlamaModel", read_llama},
      {"mistral", "MistralForCausalLM", "MistralModel", read_mistral},
      {"mixtral", "MixtralForCausalLM", "MixtralModel", read_mixtral},
      {"olmo2", "Olmo2ForCausalLM", "Olmo2Model", read_olmo2},
      {"olmoe", "OlmoeForCausalLM", "OlmoeModel", read_olmoe},
      {"phi3", "Phi3ForCausalLM", "Phi3Model", read_phi3},
      {"qwen2", "Qwen2ForCausalLM", "Qwen2Model", read_qwen2},
      {"qwen2_moe", "Qwen2MoeForCausalLM", "Qwen2MoeModel", read_qwen2_moe},
      {"qwen3", "Qwen3ForCausalLM", "Qwen3Model", read_qwen3},
      {"qwen3_moe", "Qwen3MoeForCausalLM", "Qwen3MoeModel", read_qwen3_moe},
  };
  return table;
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

namespace {

/// YaRN's factor on the attention's logits, through cosines and sines (Peng et al. 2023, arXiv 2309.00071).
double yarn_magnitude(double factor, double mscale) {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

void read_yarn(ConfigReader& rope, const RotaryDefaults& defaults, RotarySpec& rotary) {
  rotary.scaling = RotaryScaling::kYarn;
  rotary.factor = rope.has("factor") ? rope.positive_number("factor")
                                     : static_cast<double>(defaults.max_positions) /
                                           static_cast<double>(rotary.original_max_positions);
  rotary.beta_fast = rope.positive_number("beta_fast", 32.0);
  rotary.beta_slow = rope.positive_number("beta_slow", 1.0);
  rotary.truncate = rope.flag("truncate", true);
  const double mscale = rope.number("mscale", 0.0);
  const double all_dims = rope.number("mscale_all_dim", 0.0);
  rotary.attention_factor =
      mscale != 0.0 && all_dims != 0.0
          ? yarn_magnitude(rotary.factor, mscale) / yarn_magnitude(rotary.factor, all_dims)
          : yarn_magnitude(rotary.factor, 1.0);
  rotary.attention_factor = rope.positive_number("attention_factor", rotary.attention_factor);
  if (all_dims != 0.0) rotary.score_factor = std::pow(yarn_magnitude(rotary.factor, all_dims), 2);
}

/// LongRoPE (Ding et al. 2024, arXiv 2402.13753).
void read_long_rope(ConfigReader& rope, const RotaryDefaults& defaults, RotarySpec& rotary) {
  rotary.scaling = RotaryScaling::kLongRope;
  const double original = static_cast<double>(rotary.original_max_positions);
  rotary.factor =
      rope.positive_number("factor", static_cast<double>(defaults.max_positions) / original);
  rotary.attention_factor =
      rotary.factor <= 1.0 ? 1.0 : std::sqrt(1.0 + std::log(rotary.factor) / std::log(original));
  rotary.attention_factor = rope.positive_number("attention_factor", rotary.attention_factor);
  for (auto* factors : {&rotary.short_factor, &rotary.long_factor}) {
    const char* key = factors == &rotary.short_factor ? "short_factor" : "long_factor";
    *factors = rope.numbers(key);
    if (static_cast<int64_t>(factors->size()) != rotary.dim / 2) {
      rope.fail(
          key,
          fmt::format("has {} entries for {} pairs of dimensions", factors->size(), rotary.dim / 2),
          "write one factor per pair");
    }
    for (const double factor : *factors) {
      if (factor <= 0.0) rope.fail(key, fmt::format("holds {}", factor), "factors are above zero");
    }
  }
}

}  // namespace

RotarySpec read_rotary_parameters(ConfigReader& rope, const RotaryDefaults& defaults,
                                  int64_t outer_original) {
  RotarySpec rotary;
  rotary.theta = rope.positive_number("rope_theta", defaults.theta);
  rotary.dim = defaults.head_dim;
  if (defaults.partial) {
    const double part = rope.positive_number("partial_rotary_factor", defaults.partial_factor);
    rotary.dim = static_cast<int64_t>(static_cast<double>(defaults.head_dim) * part);
    if (part > 1.0 || rotary.dim < 2 || rotary.dim % 2 != 0) {
      rope.fail(
          "partial_rotary_factor",
          fmt::format("= {} rotates {} of {} dimensions", part, rotary.dim, defaults.head_dim),
          "an even number of a head's dimensions can be rotated");
    }
  } else {
    rope.require("partial_rotary_factor", 1.0, "rotating only a part of each head");
  }
  const std::string type_key = rope.has("rope_type") ? "rope_type" : "type";
  const std::string type = rope.text(type_key, "default");
  rope.ignore({"rope_type", "type"});
  const int64_t inner_original =
      rope.positive("original_max_position_embeddings", defaults.max_positions);
  const int64_t original = outer_original > 0 ? outer_original : inner_original;
  if (defaults.long_rope && (type == "longrope" || type == "su" || type == "yarn")) {
    rotary.original_max_positions = original;
    read_long_rope(rope, defaults, rotary);
  } else if (type == "default") {
    rope.ignore({"factor"});  // an inactive scaling may still carry its numbers
  } else if (type == "linear") {
    rotary.scaling = RotaryScaling::kLinear;
    rotary.factor = rope.positive_number("factor");
  } else if (type == "yarn") {
    rotary.original_max_positions = original;
    read_yarn(rope, defaults, rotary);
  } else if (type == "llama3") {
    rotary.scaling = RotaryScaling::kLlama3;
    rotary.factor = rope.positive_number("factor");
    rotary.low_freq_factor = rope.positive_number("low_freq_factor");
    rotary.high_freq_factor = rope.positive_number("high_freq_factor");
    rotary.original_max_positions = original;
    if (rotary.high_freq_factor <= rotary.low_freq_factor) {
      rope.fail("high_freq_factor", "is not above \"low_freq_factor\"", "exchange the two");
    }
  } else {
    rope.fail(type_key, fmt::format("is \"{}\", a rotary scaling that is not covered", type),
              suggestion(type, {"default", "linear", "llama3", "yarn"}));
  }
  rope.finish();
  return rotary;
}

RotarySpec read_rotary(ConfigReader& config, const RotaryDefaults& given) {
  RotaryDefaults defaults = given;
  if (defaults.head_dim % 2 != 0) {
    config.fail(
        "head_dim",
        fmt::format("gives heads of {} dimensions: rotary positions turn pairs", defaults.head_dim),
        "choose an even head dimension");
  }
  defaults.theta = config.positive_number("rope_theta", defaults.theta);
  const bool original_given = config.has("original_max_position_embeddings");
  const int64_t original = config.positive("original_max_position_embeddings", given.max_positions);
  if (config.has("rope_scaling") && config.has("rope_parameters")) {
    config.fail("rope_scaling", "stands beside \"rope_parameters\", its successor",
                "keep one of the two");
  }
  const std::string key = config.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  config.ignore({"rope_scaling", "rope_parameters"});
  // A factor beside the object counts where the object has none.
  if (defaults.partial) {
    defaults.partial_factor =
        config.positive_number("partial_rotary_factor", defaults.partial_factor);
  } else {
    config.require("partial_rotary_factor", 1.0, "rotating only a part of each head");
  }
  auto rope = config.object(key);
  const Json none = defaults.absent.empty() ? Json::object() : parse_json(defaults.absent, key);
  ConfigReader reader = rope ? *rope : ConfigReader(none, config.origin(), key);
  return read_rotary_parameters(reader, defaults, original_given ? original : 0);
}

std::vector<int64_t> read_windows(ConfigReader& config, const RotaryFamilyOptions& options,
                                  int64_t num_layers) {
  const auto layers = static_cast<size_t>(num_layers);
  std::vector<int64_t> windows(layers, 0);
  bool on = true;
  int64_t window = 0;
  if (options.windows == WindowRule::kRefused) {
    config.require("use_sliding_window", false, "sliding-window attention");
    // Without use_sliding_window these two have no effect (transformers sets the window to null).
    config.ignore({"sliding_window", "max_window_layers"});
  } else {
    if (options.windows == WindowRule::kFromLayer || options.windows == WindowRule::kIfUsed ||
        options.windows == WindowRule::kEvenBefore)
      on = config.flag("use_sliding_window", false);
    // A null means none, an absent key the family's default.
    window = config.not_negative("sliding_window",
                                 config.written("sliding_window") ? 0 : options.window);
    if (!on) window = 0;
  }
  const bool bounded = options.windows == WindowRule::kFromLayer ||  //
                       options.windows == WindowRule::kEvenBefore;
  const int64_t bound = bounded ? config.not_negative("max_window_layers", 28) : 0;
  const std::vector<std::string> types = config.texts("layer_types");
  if (!types.empty() && types.size() != layers) {
    config.fail("layer_types",
                fmt::format("has {} entries for {} layers", types.size(), num_layers),
                "write one entry per layer or leave it out");
  }
  for (size_t i = 0; i < layers; ++i) {
    const auto at = static_cast<int64_t>(i);
    bool sliding = window > 0 && at >= bound;
    if (options.windows == WindowRule::kEvenBefore)
      sliding = window > 0 && at % 2 == 0 && at < bound;
    if (options.windows == WindowRule::kPeriodic) sliding = (at + 1) % options.window_period != 0;
    if (!types.empty()) {
      sliding = types[i] == "sliding_attention";
      if ((!sliding && types[i] != "full_attention") || (sliding && window == 0)) {
        config.fail("layer_types", fmt::format("holds \"{}\", which is not covered", types[i]),
                    sliding ? "sliding layers need a sliding_window"
                            : "every layer must be \"full_attention\" or \"sliding_attention\"");
      }
    }
    if (sliding) windows[i] = window;
  }
  return windows;
}

void read_rotary_family(ConfigReader& config, const RotaryFamilyOptions& options, ModelSpec& spec) {
  read_rotary_layers(config, options, spec);
  add_rotary_family_parameters(spec, {.packed = options.packed});
}

void read_rotary_layers(ConfigReader& config, const RotaryFamilyOptions& options, ModelSpec& spec) {
  spec.vocab_size = config.positive("vocab_size");
  spec.hidden = config.positive("hidden_size");
  spec.max_positions = config.positive("max_position_embeddings", options.max_positions);
  spec.tied_embeddings = config.flag("tie_word_embeddings", options.tied);
  spec.initializer_range = config.number("initializer_range", 0.02);
  const int64_t num_layers = config.layers("num_hidden_layers");

  LayerSpec layer;
  const NormSpec norm{NormKind::kRmsNorm, config.positive_number("rms_norm_eps", options.eps),
                      false, options.unit_offset};
  if (options.pre_norms) layer.attention_norm = layer.mlp_norm = norm;
  if (options.post_norms) layer.attention_post_norm = layer.mlp_post_norm = norm;
  AttentionSpec& attention = layer.attention;
  attention.num_heads = config.positive("num_attention_heads");
  attention.num_kv_heads = config.positive("num_key_value_heads", attention.num_heads);
  if (attention.num_heads % attention.num_kv_heads != 0) {
    config.fail("num_key_value_heads",
                fmt::format("= {} does not divide num_attention_heads = {}", attention.num_kv_heads,
                            attention.num_heads),
                "every key-value head serves the same number of query heads");
  }
  const bool head_dim_given = options.head_dim_key && config.has("head_dim");
  if (!head_dim_given && options.head_dim == 0 && spec.hidden % attention.num_heads != 0) {
    config.fail("hidden_size",
                fmt::format("= {} is not a multiple of num_attention_heads = {}", spec.hidden,
                            attention.num_heads),
                options.head_dim_key ? "change one of them or set head_dim" : "change one of them");
  }
  attention.head_dim = options.head_dim > 0 ? options.head_dim : spec.hidden / attention.num_heads;
  if (options.head_dim_key)
    attention.head_dim = config.positive("head_dim", std::max<int64_t>(attention.head_dim, 1));
  attention.value_dim = attention.head_dim;
  attention.qkv_bias = options.qkv_bias;
  attention.out_bias = options.out_bias;
  attention.qk_norm = options.qk_norm;
  attention.qk_norm_spec = norm;
  attention.scale = 1.0 / std::sqrt(static_cast<double>(attention.head_dim));
  RotaryDefaults rotary;
  rotary.head_dim = attention.head_dim;
  rotary.max_positions = spec.max_positions;
  rotary.partial = options.partial_rotary;
  rotary.partial_factor = options.partial_factor;
  rotary.long_rope = options.long_rope;
  rotary.theta = options.theta;
  rotary.absent = options.rope;
  if (!options.own_rotary) attention.rotary = read_rotary(config, rotary);
  layer.mlp.kind = MlpKind::kGated;
  layer.mlp.activation = read_activation(config, options.activation_key, options.activation);
  layer.mlp.hidden = config.positive("intermediate_size");
  layer.mlp.bias = options.mlp_bias;

  spec.layers.assign(static_cast<size_t>(num_layers), layer);
  const std::vector<int64_t> windows = read_windows(config, options, num_layers);
  for (size_t i = 0; i < windows.size(); ++i) spec.layers[i].attention.window = windows[i];
  spec.final_norm = norm;
  config.ignore({"attention_dropout"});  // pre-training here has no dropout
}

}  // namespace trireme::model
