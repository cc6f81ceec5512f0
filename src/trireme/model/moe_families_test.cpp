// The families with mixtures of experts: sizes of the published models, their options, and what is refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "trireme/base/error.h"
#include "trireme/base/json.h"
#include "trireme/model/flops.h"
#include "trireme/model/model_spec.h"
#include "trireme/model/moe_test_configs.h"
#include "trireme/model/mtp.h"

namespace trireme::model {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

ModelSpec read(const Json& config) {
  return spec_from_config(config.dump(), "config.json");
}

ModelSpec read_with(const std::string& family, const Json& changes) {
  Json config = tiny_moe(family);
  config.update(changes);
  return read(config);
}

// The configurations as they are published, but for keys that do not bear on sizes.
Json published(const std::string& name) {
  static const std::map<std::string, const char*> configs = {
      {"Mixtral-8x7B",
       R"({"model_type": "mixtral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8,
        "num_experts_per_tok": 2, "max_position_embeddings": 32768, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0,
        "output_router_logits": false, "router_aux_loss_coef": 0.02, "sliding_window": null, "attention_dropout": 0.0,
        "architectures": ["MixtralForCausalLM"], "tie_word_embeddings": false})"},
      {"Mixtral-8x22B",
       R"({"model_type": "mixtral", "vocab_size": 32768, "hidden_size": 6144, "intermediate_size": 16384,
        "num_hidden_layers": 56, "num_attention_heads": 48, "num_key_value_heads": 8, "num_local_experts": 8,
        "num_experts_per_tok": 2, "max_position_embeddings": 65536, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0,
        "router_jitter_noise": 0.0, "router_aux_loss_coef": 0.001})"},
      {"Qwen3-30B-A3B",
       R"({"model_type": "qwen3_moe", "attention_bias": false, "decoder_sparse_step": 1, "head_dim": 128,
        "hidden_size": 2048, "intermediate_size": 6144, "max_position_embeddings": 40960, "max_window_layers": 48,
        "mlp_only_layers": [], "moe_intermediate_size": 768, "norm_topk_prob": true, "num_attention_heads": 32,
        "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4,
        "output_router_logits": false, "rope_scaling": null, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001,
        "sliding_window": null, "use_sliding_window": false, "vocab_size": 151936, "tie_word_embeddings": false})"},
      {"Qwen3-235B-A22B",
       R"({"model_type": "qwen3_moe", "attention_bias": false, "decoder_sparse_step": 1,
        "head_dim": 128, "hidden_size": 4096, "intermediate_size": 12288, "max_position_embeddings": 40960,
        "max_window_layers": 94, "mlp_only_layers": [], "moe_intermediate_size": 1536, "norm_topk_prob": true,
        "num_attention_heads": 64, "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 94,
        "num_key_value_heads": 4, "rope_theta": 1000000.0, "sliding_window": null, "vocab_size": 151936})"},
      {"Qwen1.5-MoE-A2.7B",
       R"({"model_type": "qwen2_moe", "decoder_sparse_step": 1, "hidden_size": 2048,
        "intermediate_size": 5632, "max_position_embeddings": 8192, "max_window_layers": 21,
        "moe_intermediate_size": 1408, "norm_topk_prob": false, "num_attention_heads": 16, "num_experts": 60,
        "num_experts_per_tok": 4, "num_hidden_layers": 24, "num_key_value_heads": 16, "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.001, "shared_expert_intermediate_size": 5632, "sliding_window": 32768,
        "use_sliding_window": false, "vocab_size": 151936, "tie_word_embeddings": false})"},
      {"Qwen2-57B-A14B",
       R"({"model_type": "qwen2_moe", "decoder_sparse_step": 1, "hidden_size": 3584,
        "intermediate_size": 18944, "max_position_embeddings": 131072, "max_window_layers": 28, "mlp_only_layers": [],
        "moe_intermediate_size": 2560, "norm_topk_prob": false, "num_attention_heads": 28, "num_experts": 64,
        "num_experts_per_tok": 8, "num_hidden_layers": 28, "num_key_value_heads": 4,
        "shared_expert_intermediate_size": 20480, "sliding_window": 65536, "use_sliding_window": false,
        "vocab_size": 151936})"},
      {"OLMoE-1B-7B",
       R"({"model_type": "olmoe", "attention_bias": false, "clip_qkv": null, "hidden_size": 2048,
        "intermediate_size": 1024, "max_position_embeddings": 4096, "norm_topk_prob": false, "num_attention_heads": 16,
        "num_experts": 64, "num_experts_per_tok": 8, "num_hidden_layers": 16, "num_key_value_heads": 16,
        "output_router_logits": false, "rms_norm_eps": 1e-05, "rope_scaling": null, "rope_theta": 10000.0,
        "router_aux_loss_coef": 0.01, "vocab_size": 50304, "tie_word_embeddings": false})"},
      {"gpt-oss-20b",
       R"({"model_type": "gpt_oss", "attention_bias": true, "experts_per_token": 4, "head_dim": 64,
        "hidden_size": 2880, "initial_context_length": 4096, "intermediate_size": 2880,
        "max_position_embeddings": 131072, "num_attention_heads": 64, "num_experts_per_tok": 4, "num_hidden_layers": 24,
        "num_key_value_heads": 8, "num_local_experts": 32, "rms_norm_eps": 1e-05, "rope_scaling": {"beta_fast": 32.0,
        "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096, "rope_type": "yarn",
        "truncate": false}, "rope_theta": 150000, "router_aux_loss_coef": 0.9, "sliding_window": 128,
        "swiglu_limit": 7.0, "vocab_size": 201088})"},
      {"gpt-oss-120b",
       R"({"model_type": "gpt_oss", "attention_bias": true, "experts_per_token": 4, "head_dim": 64,
        "hidden_size": 2880, "intermediate_size": 2880, "max_position_embeddings": 131072, "num_attention_heads": 64,
        "num_experts_per_tok": 4, "num_hidden_layers": 36, "num_key_value_heads": 8, "num_local_experts": 128,
        "sliding_window": 128, "swiglu_limit": 7.0, "vocab_size": 201088})"},
      {"GLM-4.5",
       R"({"model_type": "glm4_moe", "attention_bias": true, "head_dim": 128, "hidden_size": 5120,
        "partial_rotary_factor": 0.5, "intermediate_size": 12288, "max_position_embeddings": 131072,
        "moe_intermediate_size": 1536, "norm_topk_prob": true, "num_attention_heads": 96, "n_group": 1, "topk_group": 1,
        "n_routed_experts": 160, "n_shared_experts": 1, "routed_scaling_factor": 2.5, "num_experts_per_tok": 8,
        "first_k_dense_replace": 3, "num_hidden_layers": 92, "num_key_value_heads": 8, "num_nextn_predict_layers": 1,
        "rms_norm_eps": 1e-05, "rope_scaling": null, "rope_theta": 1000000, "use_qk_norm": true,
        "vocab_size": 151552})"},
      {"GLM-4.5-Air",
       R"({"model_type": "glm4_moe", "attention_bias": true, "head_dim": 128, "hidden_size": 4096,
        "partial_rotary_factor": 0.5, "intermediate_size": 10944, "max_position_embeddings": 131072,
        "moe_intermediate_size": 1408, "norm_topk_prob": true, "num_attention_heads": 96, "n_group": 1, "topk_group": 1,
        "n_routed_experts": 128, "n_shared_experts": 1, "routed_scaling_factor": 1.0, "num_experts_per_tok": 8,
        "first_k_dense_replace": 1, "num_hidden_layers": 46, "num_key_value_heads": 8, "num_nextn_predict_layers": 1,
        "rope_theta": 1000000, "use_qk_norm": false, "vocab_size": 151552})"},
      {"DeepSeek-V2", R"({"model_type": "deepseek_v2", "architectures": ["DeepseekV2ForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV2Config"}, "attention_bias": false,
        "aux_loss_alpha": 0.001, "bos_token_id": 100000, "eos_token_id": 100001, "ep_size": 1,
        "first_k_dense_replace": 1, "hidden_size": 5120, "intermediate_size": 12288, "kv_lora_rank": 512,
        "max_position_embeddings": 163840, "moe_intermediate_size": 1536, "moe_layer_freq": 1, "n_group": 8,
        "n_routed_experts": 160, "n_shared_experts": 2, "norm_topk_prob": false, "num_attention_heads": 128,
        "num_experts_per_tok": 6, "num_hidden_layers": 60, "num_key_value_heads": 128, "pretraining_tp": 1,
        "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rope_scaling": {"beta_fast": 32,
        "beta_slow": 1, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
        "original_max_position_embeddings": 4096, "type": "yarn"}, "rope_theta": 10000, "routed_scaling_factor": 16.0,
        "scoring_func": "softmax", "seq_aux": true, "topk_group": 3, "topk_method": "group_limited_greedy",
        "v_head_dim": 128, "vocab_size": 102400})"},
      {"DeepSeek-V2-Lite",
       R"({"model_type": "deepseek_v2", "first_k_dense_replace": 1, "hidden_size": 2048,
        "intermediate_size": 10944, "kv_lora_rank": 512, "max_position_embeddings": 163840,
        "moe_intermediate_size": 1408, "moe_layer_freq": 1, "n_group": 1, "n_routed_experts": 64, "n_shared_experts": 2,
        "norm_topk_prob": false, "num_attention_heads": 16, "num_experts_per_tok": 6, "num_hidden_layers": 27,
        "num_key_value_heads": 16, "q_lora_rank": null, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
        "routed_scaling_factor": 1.0, "scoring_func": "softmax", "topk_group": 1, "topk_method": "greedy",
        "v_head_dim": 128, "vocab_size": 102400})"},
      {"DeepSeek-V3", R"({"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"],
        "aux_loss_alpha": 0.001, "ep_size": 1, "first_k_dense_replace": 3, "hidden_act": "silu", "hidden_size": 7168,
        "intermediate_size": 18432, "kv_lora_rank": 512, "max_position_embeddings": 163840,
        "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256,
        "n_shared_experts": 1, "norm_topk_prob": true, "num_attention_heads": 128, "num_experts_per_tok": 8,
        "num_hidden_layers": 61, "num_key_value_heads": 128, "num_nextn_predict_layers": 1, "q_lora_rank": 1536,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40,
        "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096, "type": "yarn"},
        "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "seq_aux": true, "topk_group": 4,
        "topk_method": "noaux_tc", "v_head_dim": 128, "vocab_size": 129280})"},
      {"Kimi-K2", R"({"model_type": "kimi_k2", "architectures": ["DeepseekV3ForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}, "aux_loss_alpha": 0.001, "ep_size": 1,
        "first_k_dense_replace": 1, "hidden_size": 7168, "intermediate_size": 18432, "kv_lora_rank": 512,
        "max_position_embeddings": 131072, "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 1,
        "n_routed_experts": 384, "n_shared_experts": 1, "norm_topk_prob": true, "num_attention_heads": 64,
        "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 64, "num_nextn_predict_layers": 0,
        "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rope_scaling": {"beta_fast": 1.0,
        "beta_slow": 1.0, "factor": 32.0, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096, "type": "yarn"}, "rope_theta": 50000.0,
        "routed_scaling_factor": 2.827, "scoring_func": "sigmoid", "seq_aux": true, "topk_group": 1,
        "topk_method": "noaux_tc", "v_head_dim": 128, "vocab_size": 163840})"},
  };
  return parse_json(configs.at(name), name);
}

struct Size {
  std::string name;
  int64_t total;
  int64_t active;
  double stated_total;   ///< in billions, as the publisher rounds it
  double stated_active;  ///< 0: not stated
  double
      rounding;  ///< half a unit of the stated active number's last digit, or what the publisher's rule leaves
};

TEST(MoeFamilies, PublishedModelsHaveTheirPublishedSizes) {
  // Exact numbers are of transformers 5.23 on meta tensors, selection biases included.
  const std::vector<Size> sizes = {
      {"Mixtral-8x7B", 46702792704, 12879925248, 46.7, 12.9, 0.05},
      {"Mixtral-8x22B", 140630071296, 39161468928, 141, 39, 0.5},
      {"Qwen3-30B-A3B", 30532122624, 3353032704, 30.5, 3.3, 0.06},
      {"Qwen3-235B-A22B", 235093634560, 22190763520, 235, 22, 0.5},
      {"Qwen1.5-MoE-A2.7B", 14315784192, 2689173504, 14.3, 2.7, 0.05},
      {"Qwen2-57B-A14B", 57408658944, 14249270784, 57.4, 14, 0.5},
      {"OLMoE-1B-7B", 6919161856, 1282017280, 6.9, 1.3, 0.05},
      {"gpt-oss-20b", 20914757184, 4187440704, 20.9, 0, 0},
      {"gpt-oss-120b", 116829156672, 5711982912, 116.8, 0, 0},
      {"GLM-4.5", 352797829024, 33632266144, 0, 0, 0},
      {"GLM-4.5-Air", 106852251264, 13424129664, 106.9, 0, 0},
      {"DeepSeek-V2", 235741434880, 21375800320, 236, 21, 0.5},
      {"DeepSeek-V2-Lite", 15706484224, 2661150208, 15.7, 2.4, 0.3},
      {"DeepSeek-V3", 671026419200, 37552297472, 671, 37, 0.6},
      {"Kimi-K2", 1026408232448, 32861500928, 1000, 32, 1.0},
  };
  for (const Size& size : sizes) {
    SCOPED_TRACE(size.name);
    const ModelSpec spec = read(published(size.name));
    EXPECT_EQ(spec.num_parameters() - spec.num_mtp_parameters(), size.total);
    EXPECT_EQ(spec.num_active_parameters(), size.active);
    if (size.stated_total > 0 && size.stated_total < 1000) {
      EXPECT_NEAR(static_cast<double>(size.total) / 1e9, size.stated_total, 0.5);
    }
    if (size.stated_active > 0) {
      EXPECT_NEAR(static_cast<double>(size.active) / 1e9, size.stated_active, size.rounding);
    }
  }
}

TEST(MoeFamilies, SomePublishersCountWithoutEmbeddings) {
  // gpt-oss's 3.6 and 5.1 billion active parameters leave the input embedding out.
  const double oss_embedding = 201088.0 * 2880 / 1e9;
  const auto active = [](const char* name) {
    return static_cast<double>(read(published(name)).num_active_parameters()) / 1e9;
  };
  EXPECT_NEAR(active("gpt-oss-20b") - oss_embedding, 3.61, 0.005);
  EXPECT_NEAR(active("gpt-oss-120b") - oss_embedding, 5.13, 0.005);
  // GLM-4.5's 355 and 32 leave embedding and head out; the total has the multi-token-prediction layer.
  const ModelSpec glm = read(published("GLM-4.5"));
  const double glm_ends = 2 * 151552.0 * 5120 / 1e9;
  EXPECT_NEAR(static_cast<double>(glm.num_parameters()) / 1e9 - glm_ends, 355, 0.5);
  EXPECT_NEAR(active("GLM-4.5") - glm_ends, 32, 0.5);
}

TEST(MoeFamilies, MultiTokenPredictionIsALayerAndAProjection) {
  const ModelSpec spec = read(published("DeepSeek-V3"));
  ASSERT_EQ(spec.num_mtp_layers, 1);
  ASSERT_EQ(spec.layers.size(), 62u);
  // A layer with experts as the 61st, the projection of [embedding | hidden state], and three norms.
  int64_t layer = 0;
  for (const ParameterSpec& parameter : spec.parameters) {
    if (spec.parts[static_cast<size_t>(parameter.part)].layer == 60) layer += parameter.numel();
  }
  EXPECT_EQ(spec.num_mtp_parameters(), layer + 2LL * 7168 * 7168 + 3 * 7168);
  // The report: 14 billion with its copies of embedding and head.
  EXPECT_NEAR(static_cast<double>(spec.num_mtp_parameters() + 2LL * 129280 * 7168) / 1e9, 14, 0.6);
  EXPECT_EQ(spec.parts.back().name, "layer.61.mtp-head");
}

/// Without its last layers a config says that it has none, and reads back as the same model.
TEST(MoeFamilies, MultiTokenPredictionCanBeLeftOut) {
  const ModelSpec whole = read_with("deepseek_v3", {{"num_nextn_predict_layers", 1}});
  const ModelSpec spec = without_mtp(whole);
  const ModelSpec plain = read_with("deepseek_v3", {{"num_nextn_predict_layers", 0}});
  ASSERT_EQ(spec.parameters.size(), plain.parameters.size());
  for (size_t i = 0; i < plain.parameters.size(); ++i) {
    EXPECT_EQ(spec.parameters[i].name, plain.parameters[i].name);
    EXPECT_EQ(spec.parameters[i].name, whole.parameters[i].name);
  }
  EXPECT_EQ(spec.parts.back().name, "head");
  EXPECT_EQ(spec.layers.size(), plain.layers.size());
  EXPECT_EQ(spec.config_json, plain.config_json);
  EXPECT_LT(spec.parameters.size(), whole.parameters.size());
}

TEST(MoeFlops, OfTheMoePresetAreTheDenseOnesPlusTheRouters) {
  const TokenFlops moe = flops_per_token(spec_from_preset("qwen3moe-32m-a11m"), 256);
  const TokenFlops dense = flops_per_token(spec_from_preset("llama-11m"), 256);
  EXPECT_DOUBLE_EQ(moe.forward, dense.forward + 2.0 * 6 * 8 * 384);
  EXPECT_DOUBLE_EQ(moe.model(), dense.model() + 6.0 * 6 * 8 * 384);
}

TEST(MoeFlops, OfMixtralByHand) {
  const double d = 4096, f = 14336, t = 4096;
  const double layer = 2 * d * d + 2 * d * 1024 + 8 * d + 2 * 3 * d * f;
  const TokenFlops flops = flops_per_token(read(published("Mixtral-8x7B")), 4096);
  EXPECT_DOUBLE_EQ(flops.forward, 2 * (32 * layer + 32000 * d) + 32 * 2 * t * d);
  EXPECT_DOUBLE_EQ(flops.backward(), 2 * flops.forward);
}

TEST(MoeFlops, OfDeepSeekV3ByHand) {
  const double d = 7168, t = 4096;
  const double attention =
      d * 1536 + 1536 * 128.0 * 192 + d * (512 + 64) + 512 * 128.0 * (128 + 128) + 128.0 * 128 * d;
  const double experts = 256 * d + (8 + 1) * 3 * d * 2048;
  const double dense = 3 * d * 18432;
  const double head = 129280 * d;
  const double main = 61 * attention + 58 * experts + 3 * dense + head;
  const double mtp = 2 * d * d + attention + experts + head;
  // Causal scores over T / 2 keys of 192 dimensions and values of 128, each 128 heads.
  const double scores = 62 * 2 * (t / 2) * 128 * (192 + 128);
  const ModelSpec spec = read(published("DeepSeek-V3"));
  EXPECT_DOUBLE_EQ(flops_per_token(spec, 4096).forward, 2 * (main + mtp) + scores);
  EXPECT_DOUBLE_EQ(part_flops(spec, static_cast<int>(spec.parts.size()) - 1, 4096).forward,
                   2 * head);
}

TEST(MoeFamilies, ReadTheirRouters) {
  const MoeSpec mixtral = *read(tiny_moe("mixtral")).layers[0].moe;
  EXPECT_TRUE(mixtral.softmax_after_top_k);
  EXPECT_EQ(mixtral.expert.hidden, 24);
  EXPECT_EQ(mixtral.aux_loss, 0.001);
  EXPECT_FALSE(mixtral.aux_in_loss);
  EXPECT_TRUE(read_with("mixtral", {{"output_router_logits", true}}).layers[1].moe->aux_in_loss);

  const ModelSpec qwen3 = read(tiny_moe("qwen3_moe"));
  EXPECT_FALSE(qwen3.layers[0].moe.has_value());
  EXPECT_FALSE(qwen3.layers[1].moe->normalize);
  EXPECT_TRUE(read_with("qwen3_moe", {{"norm_topk_prob", true}}).layers[1].moe->normalize);
  const ModelSpec sparse = read_with("qwen3_moe", {{"num_hidden_layers", 6},
                                                   {"decoder_sparse_step", 2},
                                                   {"mlp_only_layers", Json::array({3})}});
  std::vector<bool> placed;
  for (const LayerSpec& layer : sparse.layers) placed.push_back(layer.moe.has_value());
  EXPECT_EQ(placed, (std::vector<bool>{false, true, false, false, false, true}));
  EXPECT_FALSE(read_with("qwen3_moe", {{"num_experts", 0}}).layers[1].moe.has_value());

  const MoeSpec qwen2 = *read(tiny_moe("qwen2_moe")).layers[0].moe;
  EXPECT_TRUE(qwen2.shared_gate);
  EXPECT_EQ(qwen2.shared_hidden, 10);

  const ModelSpec oss = read(tiny_moe("gpt_oss"));
  EXPECT_TRUE(oss.layers[0].attention.sinks);
  EXPECT_EQ(oss.layers[0].attention.window, 128);
  EXPECT_EQ(oss.layers[1].attention.window, 0);
  EXPECT_TRUE(oss.layers[0].moe->router_bias && oss.layers[0].moe->softmax_after_top_k);
  EXPECT_EQ(oss.layers[0].moe->clamp_limit, 7.0);
  const RotarySpec& rotary = *oss.layers[0].attention.rotary;
  EXPECT_EQ(rotary.scaling, RotaryScaling::kYarn);
  EXPECT_EQ(rotary.factor, 32.0);
  EXPECT_FALSE(rotary.truncate);
  EXPECT_EQ(rotary.theta, 150000.0);
  EXPECT_EQ(*read(published("gpt-oss-120b")).layers[0].attention.rotary,
            *read(published("gpt-oss-20b")).layers[0].attention.rotary);

  const ModelSpec glm = read(tiny_moe("glm4_moe"));
  EXPECT_EQ(glm.layers[0].attention.rotary->dim, 4);
  EXPECT_TRUE(glm.layers[0].attention.qkv_bias);
  EXPECT_FALSE(glm.layers[0].attention.out_bias);
  EXPECT_EQ(glm.num_mtp_layers, 0);
  EXPECT_EQ(read_with("glm4_moe", {{"rope_parameters", {{"partial_rotary_factor", 1.0}}}})
                .layers[0]
                .attention.rotary->dim,
            8);
}

TEST(MoeFamilies, DeepSeekHasLatentAttentionAndGroups) {
  const ModelSpec v3 = read(published("DeepSeek-V3"));
  const AttentionSpec& attention = v3.layers[0].attention;
  ASSERT_TRUE(attention.latent.has_value());
  EXPECT_EQ(attention.latent->query_rank, 1536);
  EXPECT_EQ(attention.head_dim, 192);
  EXPECT_EQ(attention.value_dim, 128);
  EXPECT_TRUE(attention.rotary->interleaved);
  EXPECT_EQ(attention.rotary->dim, 64);
  // mscale = mscale_all_dim: cosines as they are, scores with (0.1 ln 40 + 1)^2.
  EXPECT_DOUBLE_EQ(attention.rotary->attention_factor, 1.0);
  EXPECT_NEAR(attention.scale, std::pow(0.1 * std::log(40.0) + 1.0, 2) / std::sqrt(192.0), 1e-15);
  EXPECT_FALSE(v3.layers[2].moe.has_value());
  const MoeSpec& moe = *v3.layers[3].moe;
  EXPECT_EQ(moe.score, ScoreFunction::kSigmoid);
  EXPECT_TRUE(moe.selection_bias && moe.group_score_top2 && moe.normalize && moe.sequence_aux);
  EXPECT_EQ(moe.num_groups, 8);
  EXPECT_EQ(moe.top_groups, 4);
  EXPECT_EQ(moe.scaling, 2.5);
  EXPECT_EQ(moe.shared_hidden, 2048);

  const ModelSpec v2 = read(published("DeepSeek-V2"));
  const MoeSpec& old = *v2.layers[1].moe;
  EXPECT_EQ(old.score, ScoreFunction::kSoftmax);
  EXPECT_FALSE(old.selection_bias || old.group_score_top2 || old.normalize);
  EXPECT_EQ(old.num_groups, 8);
  EXPECT_EQ(old.top_groups, 3);
  EXPECT_EQ(old.scaling, 16.0);
  EXPECT_NEAR(v2.layers[0].attention.scale,
              std::pow(0.0707 * std::log(40.0) + 1.0, 2) / std::sqrt(192.0), 1e-15);
  const ModelSpec lite = read(published("DeepSeek-V2-Lite"));
  EXPECT_EQ(lite.layers[0].attention.latent->query_rank, 0);
  EXPECT_EQ(lite.layers[1].moe->num_groups, 1);
  EXPECT_FALSE(read_with("deepseek_v3", {{"rope_interleave", false}})
                   .layers[0]
                   .attention.rotary->interleaved);
}

TEST(MoeFamilies, WindowsFollowTheirRules) {
  const auto windows = [](const std::string& family, const Json& changes) {
    std::vector<int64_t> found;
    for (const LayerSpec& layer : read_with(family, changes).layers)
      found.push_back(layer.attention.window);
    return found;
  };
  using Windows = std::vector<int64_t>;
  EXPECT_EQ(windows("mixtral", Json::object()), (Windows{0, 0}));
  EXPECT_EQ(windows("mixtral", {{"sliding_window", 8}}), (Windows{8, 8}));
  EXPECT_EQ(windows("qwen3_moe", {{"sliding_window", 8}}), (Windows{0, 0}));
  EXPECT_EQ(windows("qwen3_moe", {{"sliding_window", 8}, {"use_sliding_window", true}}),
            (Windows{8, 8}));
  const Json on = {{"num_hidden_layers", 5},
                   {"use_sliding_window", true},
                   {"sliding_window", 8},
                   {"max_window_layers", 3}};
  EXPECT_EQ(windows("qwen2_moe", on), (Windows{8, 0, 8, 0, 0}));
  EXPECT_EQ(windows("qwen2_moe", {{"sliding_window", 0}}), (Windows{0, 0}));
}

TEST(MoeFamilies, AVariantLoadsAsTheFamilyThatItDeclares) {
  const ModelSpec kimi = read(published("Kimi-K2"));
  EXPECT_EQ(kimi.family, "deepseek_v3");
  const Json config = parse_json(kimi.config_json, "test");
  EXPECT_EQ(config.at("model_type"), "deepseek_v3");
  EXPECT_FALSE(config.contains("auto_map"));
  EXPECT_EQ(kimi.num_mtp_layers, 0);
  EXPECT_EQ(read_with("mixtral", {{"model_type", "another"},
                                  {"architectures", Json::array({"MixtralForCausalLM"})}})
                .family,
            "mixtral");
}

struct Expected {
  std::string name;
  std::vector<int64_t> shape;
  Role role;
  std::string part;
};

void expect_tail(const ModelSpec& spec, const std::string& first,
                 const std::vector<Expected>& expected) {
  const int begin = spec.parameter_index(first);
  ASSERT_GE(begin, 0);
  ASSERT_LE(static_cast<size_t>(begin) + expected.size(), spec.parameters.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    const ParameterSpec& parameter = spec.parameters[static_cast<size_t>(begin) + i];
    EXPECT_EQ(parameter.name, expected[i].name);
    EXPECT_EQ(parameter.shape, expected[i].shape) << parameter.name;
    EXPECT_EQ(to_string(parameter.role), std::string(to_string(expected[i].role)))
        << parameter.name;
    EXPECT_EQ(spec.parts[static_cast<size_t>(parameter.part)].name, expected[i].part)
        << parameter.name;
  }
}

TEST(MoeParameters, OfGptOssHaveBiasesAndSinks) {
  const ModelSpec spec = read(tiny_moe("gpt_oss"));
  const std::string layer = "model.layers.1.";
  const std::string experts = layer + "mlp.experts.";
  expect_tail(
      spec, layer + "self_attn.v_proj.bias",
      {{layer + "self_attn.v_proj.bias", {16}, Role::kBias, "layer.1.attention"},
       {layer + "self_attn.sinks", {4}, Role::kSink, "layer.1.attention"},
       {layer + "self_attn.o_proj.weight", {16, 32}, Role::kAttentionOut, "layer.1.attention"},
       {layer + "self_attn.o_proj.bias", {16}, Role::kBias, "layer.1.attention"},
       {layer + "post_attention_layernorm.weight", {16}, Role::kNormWeight, "layer.1.router"},
       {layer + "mlp.router.weight", {3, 16}, Role::kRouter, "layer.1.router"},
       {layer + "mlp.router.bias", {3}, Role::kBias, "layer.1.router"},
       {experts + "gate_proj", {3, 24, 16}, Role::kExpertGate, "layer.1.experts"},
       {experts + "up_proj", {3, 24, 16}, Role::kExpertUp, "layer.1.experts"},
       {experts + "gate_proj_bias", {3, 24}, Role::kExpertGateBias, "layer.1.experts"},
       {experts + "up_proj_bias", {3, 24}, Role::kExpertUpBias, "layer.1.experts"},
       {experts + "down_proj", {3, 16, 24}, Role::kExpertDown, "layer.1.experts"},
       {experts + "down_proj_bias", {3, 16}, Role::kExpertDownBias, "layer.1.experts"},
       {"model.norm.weight", {16}, Role::kNormWeight, "head"}});
}

TEST(MoeParameters, OfDeepSeekV3) {
  const ModelSpec spec = read_with(
      "deepseek_v3",
      {{"q_lora_rank", 6}, {"num_nextn_predict_layers", 1}, {"tie_word_embeddings", true}});
  const std::string layer = "model.layers.2.";
  const std::string attn = layer + "self_attn.";
  const std::string mlp = layer + "mlp.";
  const std::string a = "layer.2.attention";
  expect_tail(
      spec, "model.norm.weight",
      {{"model.norm.weight", {16}, Role::kNormWeight, "head"},
       {layer + "enorm.weight", {16}, Role::kNormWeight, "layer.2.mtp-input"},
       {layer + "hnorm.weight", {16}, Role::kNormWeight, "layer.2.mtp-input"},
       {layer + "eh_proj.weight", {16, 32}, Role::kMtpProjection, "layer.2.mtp-input"},
       {layer + "input_layernorm.weight", {16}, Role::kNormWeight, a},
       {attn + "q_a_proj.weight", {6, 16}, Role::kQueryDown, a},
       {attn + "kv_a_proj_with_mqa.weight", {10, 16}, Role::kKeyValueDown, a},
       {attn + "q_a_proj.bias", {6}, Role::kBias, a},
       {attn + "kv_a_proj_with_mqa.bias", {10}, Role::kBias, a},
       {attn + "q_a_layernorm.weight", {6}, Role::kLatentNorm, a},
       {attn + "kv_a_layernorm.weight", {8}, Role::kLatentNorm, a},
       {attn + "q_b_proj.weight", {24, 6}, Role::kQuery, a},
       {attn + "kv_b_proj.weight", {28, 8}, Role::kKeyValueUp, a},
       {attn + "o_proj.weight", {16, 12}, Role::kAttentionOut, a},
       {attn + "o_proj.bias", {16}, Role::kBias, a},
       {layer + "post_attention_layernorm.weight", {16}, Role::kNormWeight, "layer.2.router"},
       {mlp + "gate.weight", {4, 16}, Role::kRouter, "layer.2.router"},
       {mlp + "gate.e_score_correction_bias", {4}, Role::kSelectionBias, "layer.2.router"},
       {mlp + "experts.gate_proj", {4, 6, 16}, Role::kExpertGate, "layer.2.experts"},
       {mlp + "experts.up_proj", {4, 6, 16}, Role::kExpertUp, "layer.2.experts"},
       {mlp + "experts.down_proj", {4, 16, 6}, Role::kExpertDown, "layer.2.experts"},
       {mlp + "shared_experts.gate_proj.weight", {6, 16}, Role::kGate, "layer.2.combine"},
       {mlp + "shared_experts.up_proj.weight", {6, 16}, Role::kUp, "layer.2.combine"},
       {mlp + "shared_experts.down_proj.weight", {16, 6}, Role::kDown, "layer.2.combine"},
       {layer + "shared_head.norm.weight", {16}, Role::kNormWeight, "layer.2.mtp-head"}});
  for (const ParameterSpec& parameter : spec.parameters) {
    const bool bias = parameter.role == Role::kSelectionBias;
    EXPECT_EQ(parameter.trainable, !bias) << parameter.name;
    EXPECT_FALSE(bias && parameter.decays());
    EXPECT_TRUE(parameter.role != Role::kLatentNorm || parameter.init.kind == InitKind::kOnes);
  }
}

struct Refusal {
  std::string family;
  Json changes;
  std::string message;
};

TEST(MoeFamilies, RefuseWhatIsNotCoveredByName) {
  const std::vector<Refusal> refusals = {
      {"mixtral", {{"router_jitter_noise", 0.1}}, "router_jitter_noise"},
      {"mixtral", {{"num_experts_per_tok", 4}}, "chooses more than all 3 experts"},
      {"mixtral", {{"num_local_experts", 0}}, "is 0"},
      {"mixtral", {{"num_experts", 5}}, "another name of"},
      {"mixtral", {{"norm_topk_prob", true}}, "norm_topk_prob"},
      {"olmoe", {{"clip_qkv", 8.0}}, "clip_qkv"},
      {"gpt_oss", {{"swiglu_alpha", 1.0}}, "swiglu_alpha"},
      {"gpt_oss", {{"hidden_act", "gelu"}}, "hidden_act"},
      {"deepseek_v2", {{"norm_topk_prob", true}}, "norm_topk_prob"},
      {"deepseek_v2", {{"topk_method", "noaux_tc"}}, "topk_method"},
      {"deepseek_v2", {{"scoring_func", "sigmoid"}}, "scoring_func"},
      {"deepseek_v2", {{"moe_layer_freq", 2}}, "moe_layer_freq"},
      {"deepseek_v2", {{"mlp_bias", true}}, "mlp_bias"},
      {"deepseek_v3", {{"scoring_func", "softmax"}}, "scoring_func"},
      {"deepseek_v3", {{"n_group", 3}}, "does not divide 4 experts"},
      {"deepseek_v3", {{"num_experts_per_tok", 3}}, "leaves no 3 experts"},
      {"deepseek_v3", {{"num_key_value_heads", 2}}, "num_key_value_heads"},
      {"deepseek_v3", {{"num_nextn_predict_layers", 100}}, "more than 16"},
      {"glm4_moe", {{"rope_interleave", true}}, "rope_interleave"},
      {"qwen3_moe", {{"shared_expert_intermediate_size", 4}}, "shared_expert_intermediate_size"},
      {"mixtral", {{"model_type", "maxtral"}}, "maxtral"},
  };
  for (const Refusal& refusal : refusals) {
    SCOPED_TRACE(refusal.family + " " + refusal.changes.dump());
    try {
      read_with(refusal.family, refusal.changes);
      ADD_FAILURE() << "accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kConfig);
      EXPECT_THAT(error.what(), AllOf(HasSubstr("config.json"), HasSubstr(refusal.message)));
    }
  }
}

}  // namespace
}  // namespace trireme::model
