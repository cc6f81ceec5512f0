// Whole config.json texts as they are published, with every key that carries no meaning, and the sizes that their publishers
// state: a model that is on the list of families is read as it comes.
#include <gtest/gtest.h>

#include <string>

#include "trireme/base/error.h"
#include "trireme/model/model_spec.h"

namespace trireme::model {
namespace {

struct Published {
  const char* name;
  double total;   ///< billions, as stated; 0: not stated so
  double active;  ///< the same of one token; 0: all
  double half_a_digit;
  const char* config;
};

const Published kPublished[] = {
    {"Gemma-2 27B", 27.2, 0, 0.05,
     R"({"architectures": ["Gemma2ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
         "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1,
         "final_logit_softcapping": 30.0, "head_dim": 128, "hidden_act": "gelu_pytorch_tanh",
         "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 4608, "initializer_range": 0.02, "intermediate_size": 36864,
         "max_position_embeddings": 8192, "model_type": "gemma2", "num_attention_heads": 32, "num_hidden_layers": 46,
         "num_key_value_heads": 16, "pad_token_id": 0, "query_pre_attn_scalar": 144, "rms_norm_eps": 1e-06,
         "rope_theta": 10000.0, "sliding_window": 4096, "sliding_window_size": 4096, "torch_dtype": "bfloat16",
         "transformers_version": "4.42.0.dev0", "use_cache": true, "vocab_size": 256000, "_attn_implementation": "eager"})"},
    {"Gemma-3 1B", 1.0, 0, 0.05,
     R"({"architectures": ["Gemma3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
         "attn_logit_softcapping": null, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": [1, 106],
         "final_logit_softcapping": null, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152,
         "initializer_range": 0.02, "intermediate_size": 6912, "max_position_embeddings": 32768, "model_type": "gemma3_text",
         "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1, "pad_token_id": 0,
         "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000, "rope_scaling": null,
         "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6, "torch_dtype": "bfloat16",
         "transformers_version": "4.50.0.dev0", "use_cache": true, "vocab_size": 262144})"},
    {"Phi-4", 14.7, 0, 0.05,
     R"({"architectures": ["Phi3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 100257,
         "embd_pdrop": 0.0, "eos_token_id": 100265, "hidden_act": "silu", "hidden_size": 5120, "initializer_range": 0.02,
         "intermediate_size": 17920, "max_position_embeddings": 16384, "model_type": "phi3", "num_attention_heads": 40,
         "num_hidden_layers": 40, "num_key_value_heads": 10, "original_max_position_embeddings": 16384,
         "pad_token_id": 100349, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05, "rope_scaling": null, "rope_theta": 250000,
         "sliding_window": null, "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.47.0",
         "use_cache": true, "vocab_size": 100352})"},
    {"OLMo-2 32B", 32.2, 0, 0.05,
     R"({"architectures": ["Olmo2ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "eos_token_id": 100257,
         "hidden_act": "silu", "hidden_size": 5120, "initializer_range": 0.02, "intermediate_size": 27648,
         "max_position_embeddings": 4096, "model_type": "olmo2", "num_attention_heads": 40, "num_hidden_layers": 64,
         "num_key_value_heads": 8, "pad_token_id": 100277, "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 500000,
         "tie_word_embeddings": false, "torch_dtype": "float32", "transformers_version": "4.49.0", "use_cache": false,
         "vocab_size": 100352})"},
    {"Mistral Large", 123, 0, 0.5,
     R"({"architectures": ["MistralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
         "head_dim": 128, "hidden_act": "silu", "hidden_size": 12288, "initializer_range": 0.02, "intermediate_size": 28672,
         "max_position_embeddings": 131072, "model_type": "mistral", "num_attention_heads": 96, "num_hidden_layers": 88,
         "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": null,
         "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.42.3", "use_cache": true,
         "vocab_size": 32768})"},
    {"Qwen2.5-72B", 72.7, 0, 0.05,
     R"({"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643,
         "hidden_act": "silu", "hidden_size": 8192, "initializer_range": 0.02, "intermediate_size": 29568,
         "max_position_embeddings": 131072, "max_window_layers": 80, "model_type": "qwen2", "num_attention_heads": 64,
         "num_hidden_layers": 80, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0,
         "sliding_window": 131072, "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.40.1",
         "use_cache": true, "use_mrope": false, "use_sliding_window": false, "vocab_size": 152064})"},
    {"Qwen3-32B", 32.8, 0, 0.05,
     R"({"architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 151643,
         "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120, "initializer_range": 0.02,
         "intermediate_size": 25600, "max_position_embeddings": 40960, "max_window_layers": 64, "model_type": "qwen3",
         "num_attention_heads": 64, "num_hidden_layers": 64, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
         "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null, "tie_word_embeddings": false,
         "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": true, "use_sliding_window": false,
         "vocab_size": 151936})"},
    {"Qwen3-Coder-480B-A35B", 480, 35, 0.5,
     R"({"architectures": ["Qwen3MoeForCausalLM"], "attention_dropout": 0.0, "decoder_sparse_step": 1, "eos_token_id": 151645,
         "head_dim": 128, "hidden_act": "silu", "hidden_size": 6144, "initializer_range": 0.02, "intermediate_size": 8192,
         "max_position_embeddings": 262144, "max_window_layers": 62, "mlp_only_layers": [], "model_type": "qwen3_moe",
         "moe_intermediate_size": 2560, "norm_topk_prob": true, "num_attention_heads": 96, "num_experts": 160,
         "num_experts_per_tok": 8, "num_hidden_layers": 62, "num_key_value_heads": 8, "output_router_logits": false,
         "qkv_bias": false, "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 10000000, "router_aux_loss_coef": 0.0,
         "shared_expert_intermediate_size": 0, "sliding_window": null, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
         "transformers_version": "4.51.0", "use_cache": true, "use_qk_norm": true, "use_sliding_window": false,
         "vocab_size": 151936})"},
};

ModelSpec read(const std::string& config) {
  return spec_from_config(config, "config.json");
}

TEST(PublishedConfigs, AreReadAsTheyComeAndHaveTheirSizes) {
  for (const Published& model : kPublished) {
    SCOPED_TRACE(model.name);
    const ModelSpec spec = read(model.config);
    EXPECT_NEAR(static_cast<double>(spec.num_parameters()) / 1e9, model.total, model.half_a_digit);
    if (model.active > 0) {
      EXPECT_NEAR(static_cast<double>(spec.num_active_parameters()) / 1e9, model.active,
                  model.half_a_digit);
    }
  }
}

/// Phi-4-mini and what its config says in other words.
std::string phi4_mini(const std::string& more) {
  std::string ones = "1.0";
  for (int i = 1; i < 48; ++i) ones += ", 1.0";
  return R"({"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192,
    "num_attention_heads": 24, "num_hidden_layers": 32, "num_key_value_heads": 8, "vocab_size": 200064,
    "max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "partial_rotary_factor": 0.75,
    "rope_scaling": {"type": "longrope", "long_factor": [)" +
         ones + R"(], "short_factor": [)" + ones +
         R"(]}, "sliding_window": 262144, "tie_word_embeddings": true, )" + more + "}";
}

TEST(PublishedConfigs, KeysThatSayWhatIsSoAnywayMayBeThere) {
  const ModelSpec spec = read(phi4_mini(
      R"("full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": false, "mlp_bias": false)"));
  EXPECT_NEAR(static_cast<double>(spec.num_parameters()) / 1e9, 3.8, 0.05);
  for (const char* other : {R"("full_attn_mod": 2)", R"("interpolate_factor": 4)",
                            R"("lm_head_bias": true)", R"("mlp_bias": true)"})
    EXPECT_THROW(read(phi4_mini(other)), Error) << other;
  std::string gemma = kPublished[0].config;
  gemma.replace(gemma.find("\"sliding_window_size\": 4096"), 27, "\"sliding_window_size\": 2048");
  EXPECT_THROW(read(gemma), Error);
}

TEST(PublishedConfigs, AnotherNameOfAFamilyIsThatFamily) {
  const std::string keys = R"("vocab_size": 64, "hidden_size": 16, "intermediate_size": 24,
      "num_hidden_layers": 1, "num_attention_heads": 2, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 4,
      "qk_rope_head_dim": 4, "v_head_dim": 4, "first_k_dense_replace": 0, "n_routed_experts": 4, "num_experts_per_tok": 2,
      "moe_intermediate_size": 12, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "num_nextn_predict_layers": 0})";
  EXPECT_EQ(read(R"({"model_type": "kimi_k2", )" + keys).family, "deepseek_v3");
  try {
    read(R"({"model_type": "gemma3", "text_config": {}})");
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(error.hint().find("text_config"), std::string::npos) << error.hint();
  }
}

}  // namespace
}  // namespace trireme::model
