// gemma2 and gemma3_text: norms before and after with weights around one, scaled embeddings, GeGLU, alternating local and
// global attention; gemma2 caps scores and logits, gemma3 norms the heads and has a rotary base of its own for local layers.
#include <cmath>

#include "trireme/model/family.h"

namespace trireme::model {

namespace {

/// A soft cap; a null means none, an absent key the family's default.
double read_softcap(ConfigReader& config, const std::string& key, double default_value) {
  if (config.written(key) && !config.has(key)) {
    config.ignore({key});
    return 0.0;
  }
  return config.number(key, default_value);
}

RotaryFamilyOptions gemma_options(ConfigReader& config) {
  RotaryFamilyOptions options;
  options.qkv_bias = config.flag("attention_bias", false);
  options.out_bias = options.qkv_bias;
  options.head_dim = 256;
  options.post_norms = true;
  options.unit_offset = true;
  options.tied = true;
  options.activation_key = "hidden_activation";
  options.activation = "gelu_pytorch_tanh";
  options.windows = WindowRule::kPeriodic;
  options.window = 4096;
  return options;
}

void finish(ConfigReader& config, double softcap, double logit_cap, ModelSpec& spec) {
  config.require("use_bidirectional_attention", false, "attention to later tokens");
  config.ignore({"hidden_act"});  // an older name that transformers overrides
  spec.embedding_scale = std::sqrt(static_cast<double>(spec.hidden));
  spec.logit_softcap = read_softcap(config, "final_logit_softcapping", logit_cap);
  const double scale = 1.0 / std::sqrt(config.positive_number("query_pre_attn_scalar", 256.0));
  for (LayerSpec& layer : spec.layers) {
    layer.attention.softcap = softcap;
    layer.attention.scale = scale;
  }
}

}  // namespace

void read_gemma2(ConfigReader& config, ModelSpec& spec) {
  RotaryFamilyOptions options = gemma_options(config);
  options.max_positions = 8192;
  options.window_period = 2;
  read_rotary_family(config, options, spec);
  // An older name beside the one that counts.
  if (config.has("sliding_window_size"))
    config.require("sliding_window_size", config.not_negative("sliding_window", options.window),
                   "another window than sliding_window");
  finish(config, read_softcap(config, "attn_logit_softcapping", 50.0), 30.0, spec);
}

void read_gemma3(ConfigReader& config, ModelSpec& spec) {
  RotaryFamilyOptions options = gemma_options(config);
  options.qk_norm = QkNorm::kHead;
  options.max_positions = 131072;
  options.window_period = config.positive("sliding_window_pattern", 6);
  // The pattern under the name that transformers 4 wrote.
  options.window_period = config.positive("_sliding_window_pattern", options.window_period);
  options.own_rotary = true;
  read_rotary_family(config, options, spec);

  RotaryDefaults defaults;
  defaults.head_dim = spec.layers[0].attention.head_dim;
  defaults.max_positions = spec.max_positions;
  RotaryDefaults local = defaults;
  defaults.theta = config.positive_number("rope_theta", 1e6);
  local.theta = config.positive_number("rope_local_base_freq", 1e4);
  RotarySpec global_rotary;
  RotarySpec local_rotary;
  const Json none = Json::object();
  auto rope = config.object("rope_parameters");
  if (rope) {
    const auto read = [&](const char* key, const RotaryDefaults& with) {
      auto object = rope->object(key);
      ConfigReader reader = object ? *object : ConfigReader(none, config.origin(), key);
      return read_rotary_parameters(reader, with, 0);
    };
    global_rotary = read("full_attention", defaults);
    local_rotary = read("sliding_attention", local);
    rope->finish();
    config.require("rope_scaling", nullptr, "a second set of rotary parameters");
  } else {
    auto scaling = config.object("rope_scaling");
    ConfigReader reader = scaling ? *scaling : ConfigReader(none, config.origin(), "rope_scaling");
    global_rotary = read_rotary_parameters(reader, defaults, 0);
    ConfigReader plain(none, config.origin(), "rope_scaling");
    local_rotary = read_rotary_parameters(plain, local, 0);
  }
  for (LayerSpec& layer : spec.layers)
    layer.attention.rotary = layer.attention.window > 0 ? local_rotary : global_rotary;
  config.require("attn_logit_softcapping", nullptr,
                 "a cap of the scores, which transformers ignores,");
  finish(config, 0.0, 0.0, spec);
}

}  // namespace trireme::model
