// deepseek_v2 and deepseek_v3: latent attention, shared experts, groups of experts, first layers dense. v2 has a softmax
// router; v3 sigmoid scores with a bias for the choice, and multi-token prediction.
#include <cmath>

#include "trireme/model/family_moe.h"

namespace trireme::model {

namespace {

void read_latent_layers(ConfigReader& config, int64_t max_positions, bool interleaved,
                        ModelSpec& spec) {
  LatentSpec latent;
  const bool uncompressed = config.written("q_lora_rank") && !config.has("q_lora_rank");
  latent.query_rank = config.positive("q_lora_rank", uncompressed ? 0 : 1536);
  latent.kv_rank = config.positive("kv_lora_rank", 512);
  latent.nope_dim = config.positive("qk_nope_head_dim", 128);
  latent.rope_dim = config.positive("qk_rope_head_dim", 64);
  RotaryFamilyOptions options;
  options.qkv_bias = config.flag("attention_bias", false);
  options.out_bias = options.qkv_bias;
  options.head_dim_key = false;
  options.head_dim = latent.nope_dim + latent.rope_dim;
  options.max_positions = max_positions;
  options.own_rotary = true;
  config.ignore({
      "head_dim", "qk_head_dim",  // transformers computes both
      "pretraining_tp",           // the same products in another order of summation
      "ep_size",                  // how the publisher's servers spread experts
  });
  config.require("moe_layer_freq", 1, "layers without experts among those with them");
  read_rotary_layers(config, options, spec);

  RotaryDefaults defaults;
  defaults.head_dim = latent.rope_dim;
  defaults.max_positions = spec.max_positions;
  RotarySpec rotary = read_rotary(config, defaults);
  rotary.interleaved = interleaved;
  const int64_t value_dim = config.positive("v_head_dim", 128);
  for (LayerSpec& layer : spec.layers) {
    AttentionSpec& attention = layer.attention;
    if (attention.num_kv_heads != attention.num_heads) {
      config.fail("num_key_value_heads",
                  fmt::format("= {} is not num_attention_heads = {}", attention.num_kv_heads,
                              attention.num_heads),
                  "latent attention makes keys and values of every head");
    }
    attention.latent = latent;
    attention.value_dim = value_dim;
    attention.rotary = rotary;
    attention.scale *= rotary.score_factor;
  }
}

/// The publisher's own balancing loss, which transformers does not have.
void read_balance(ConfigReader& config, MoeSpec& moe) {
  moe.aux_loss = config.number("aux_loss_alpha", 0.0);
  moe.sequence_aux = config.flag("seq_aux", false);
}

}  // namespace

void read_deepseek_v2(ConfigReader& config, ModelSpec& spec) {
  read_latent_layers(config, 2048, true, spec);
  config.require("mlp_bias", false, "biases of the MLPs");
  config.require("scoring_func", "softmax", "another function of the router");
  config.require("norm_topk_prob", false,
                 "renormalised probabilities, which transformers ignores,");
  MoeOptions experts;
  experts.num_experts = {"n_routed_experts", "num_experts"};
  experts.default_experts = 64;
  experts.default_hidden = 1407;
  experts.norm_key = false;
  MoeSpec moe = read_moe(config, experts, spec);
  moe.scaling = config.number("routed_scaling_factor", 1.0);
  const std::string method = config.text("topk_method", "greedy");
  if (method == "group_limited_greedy") {
    read_groups(config, 1, 1, moe);
  } else if (method == "greedy") {
    config.ignore({"n_group", "topk_group"});
  } else {
    config.fail("topk_method", fmt::format("is \"{}\", which is not covered", method),
                "\"greedy\" and \"group_limited_greedy\" are");
  }
  read_balance(config, moe);
  read_shared_experts(config, 2, moe);
  place_experts_after(config, 0, moe, spec);
  add_rotary_family_parameters(spec, {});
}

void read_deepseek_v3(ConfigReader& config, ModelSpec& spec) {
  read_latent_layers(config, 4096, config.flag("rope_interleave", true), spec);
  config.require("scoring_func", "sigmoid", "another function of the router");
  config.require("topk_method", "noaux_tc", "another choice of experts");
  MoeOptions experts;
  experts.num_experts = {"n_routed_experts", "num_local_experts"};
  experts.default_experts = 256;
  experts.default_hidden = 2048;
  experts.default_top_k = 8;
  experts.normalize = true;
  MoeSpec moe = read_moe(config, experts, spec);
  moe.score = ScoreFunction::kSigmoid;
  moe.selection_bias = true;
  moe.group_score_top2 = true;
  moe.scaling = config.number("routed_scaling_factor", 2.5);
  read_groups(config, 8, 4, moe);
  read_balance(config, moe);
  read_shared_experts(config, 1, moe);
  place_experts_after(config, 3, moe, spec);
  read_mtp_layers(config, moe, spec);
  add_rotary_family_parameters(spec, {});
}

}  // namespace trireme::model
