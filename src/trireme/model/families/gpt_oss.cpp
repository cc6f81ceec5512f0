// gpt_oss: attention sinks, windows in every second layer, a router with a bias, experts with a clamped SwiGLU and biases.
#include "trireme/model/family_moe.h"

namespace trireme::model {

void read_gpt_oss(ConfigReader& config, ModelSpec& spec) {
  RotaryFamilyOptions options;
  options.qkv_bias = config.flag("attention_bias", true);
  options.out_bias = options.qkv_bias;
  options.head_dim = 64;
  options.eps = 1e-5;
  options.theta = 150000.0;
  options.rope =
      R"({"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false,
                     "original_max_position_embeddings": 4096})";
  options.max_positions = 131072;
  options.windows = WindowRule::kPeriodic;
  options.window_period = 2;
  options.window = 128;
  config.require("hidden_act", "silu", "another activation than the clamped SwiGLU");
  config.require("swiglu_alpha", 1.702, "another steepness of the clamped SwiGLU");
  // Its first release's names of num_experts_per_tok and of the rotary scaling's original length.
  config.ignore({"experts_per_token", "initial_context_length"});
  read_rotary_layers(config, options, spec);
  MoeOptions experts;
  experts.hidden = "intermediate_size";
  experts.default_experts = 128;
  experts.default_top_k = 4;
  experts.norm_key = false;
  experts.aux_loss = 0.001;
  MoeSpec moe = read_moe(config, experts, spec);
  moe.expert.bias = true;
  moe.router_bias = true;
  moe.softmax_after_top_k = true;
  moe.clamp_limit = config.positive_number("swiglu_limit", 7.0);
  for (LayerSpec& layer : spec.layers) {
    layer.attention.sinks = true;
    layer.moe = moe;
  }
  add_rotary_family_parameters(spec, {.router = "router", .interleaved_stacks = true});
}

}  // namespace trireme::model
