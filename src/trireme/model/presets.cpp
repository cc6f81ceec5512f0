// Named presets: the config.json of well-known models and of the shapes our benchmarks use.
#include <utility>
#include <vector>

#include "trireme/base/error.h"
#include "trireme/base/json.h"
#include "trireme/base/suggest.h"
#include "trireme/model/model_spec.h"

namespace trireme::model {

namespace {

struct Preset {
  const char* name;
  const char* config;
};

constexpr Preset kPresets[] = {
    // The model of `make train`: 5.5 million parameters with 4096 tokens, small enough that two
    // cores
    // show it some two million tokens in a few minutes. Head dimension 64, four query heads on two
    // key-value heads.
    {"trireme-default", R"({"model_type": "llama", "vocab_size": 4096, "hidden_size": 256,
      "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 4,
      "num_key_value_heads": 2, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
      "rope_theta": 10000.0, "tie_word_embeddings": true})"},
    // Its mixture of experts: quarters of the dense width, one that every token uses and 3 of 16 that the router chooses.
    // Their weights sum to 3, so that four quarters add up to what a dense MLP of four quarters is. 15 million parameters
    // in the blocks, three times as many.
    {"trireme-moe", R"({"model_type": "glm4_moe", "vocab_size": 4096, "hidden_size": 256,
      "intermediate_size": 704, "moe_intermediate_size": 176, "num_hidden_layers": 6,
      "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "n_routed_experts": 16,
      "num_experts_per_tok": 3, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
      "norm_topk_prob": true, "routed_scaling_factor": 3.0, "first_k_dense_replace": 0,
      "partial_rotary_factor": 1.0, "use_qk_norm": false, "attention_bias": false,
      "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
      "tie_word_embeddings": true, "num_nextn_predict_layers": 0})"},
    // Benchmark shape at 256 tokens: 10.6 million parameters in the blocks, 3.1 million in the tied
    // embedding of 8192 tokens.
    {"llama-11m", R"({"model_type": "llama", "vocab_size": 8192, "hidden_size": 384,
      "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6,
      "num_key_value_heads": 6, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
      "rope_theta": 10000.0, "tie_word_embeddings": true})"},
    // The same with experts: 8 of half the dense width, of which a token uses 2, so that its products are those of llama-11m
    // but for the router's. 31.9 million parameters in the blocks.
    {"qwen3moe-32m-a11m", R"({"model_type": "qwen3_moe", "vocab_size": 8192, "hidden_size": 384,
      "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6,
      "num_key_value_heads": 6, "head_dim": 64, "num_experts": 8, "num_experts_per_tok": 2,
      "moe_intermediate_size": 512, "norm_topk_prob": true, "router_aux_loss_coef": 0.01,
      "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
      "tie_word_embeddings": true})"},
    // All that DeepSeek-V3 has, small: latent attention with a compressed query, the first layer dense, groups of experts
    // and a shared one, multi-token prediction.
    {"deepseek-tiny", R"({"model_type": "deepseek_v3", "vocab_size": 4096, "hidden_size": 256,
      "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4,
      "q_lora_rank": 96, "kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 32,
      "v_head_dim": 64, "first_k_dense_replace": 1, "n_routed_experts": 16,
      "num_experts_per_tok": 3, "moe_intermediate_size": 176, "n_shared_experts": 1, "n_group": 4,
      "topk_group": 2, "routed_scaling_factor": 2.5, "norm_topk_prob": true,
      "num_nextn_predict_layers": 1, "max_position_embeddings": 512, "rms_norm_eps": 1e-6,
      "rope_theta": 10000.0, "tie_word_embeddings": true})"},
    // Benchmark shape at 1024 tokens, llama2.c's stories110M: 84.9 million parameters in the
    // blocks,
    // 24.6 million in the tied embedding.
    {"llama-110m", R"({"model_type": "llama", "vocab_size": 32000, "hidden_size": 768,
      "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12,
      "num_key_value_heads": 12, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5,
      "rope_theta": 10000.0, "tie_word_embeddings": true})"},
    // Benchmark shape of accelerators at 4096 tokens: 1.44 billion parameters in the blocks, 131 million in the embedding and
    // the head; widths are multiples of 128.
    {"llama-1.6b", R"({"model_type": "llama", "vocab_size": 32000, "hidden_size": 2048,
      "intermediate_size": 5632, "num_hidden_layers": 28, "num_attention_heads": 16,
      "num_key_value_heads": 16, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
      "rope_theta": 10000.0})"},
    {"gpt2-124m", R"({"model_type": "gpt2", "vocab_size": 50257, "n_embd": 768, "n_layer": 12,
      "n_head": 12, "n_positions": 1024, "bos_token_id": 50256, "eos_token_id": 50256})"},
    {"gpt2-355m", R"({"model_type": "gpt2", "vocab_size": 50257, "n_embd": 1024, "n_layer": 24,
      "n_head": 16, "n_positions": 1024, "bos_token_id": 50256, "eos_token_id": 50256})"},
    {"gpt2-774m", R"({"model_type": "gpt2", "vocab_size": 50257, "n_embd": 1280, "n_layer": 36,
      "n_head": 20, "n_positions": 1024, "bos_token_id": 50256, "eos_token_id": 50256})"},
    {"gpt2-1558m", R"({"model_type": "gpt2", "vocab_size": 50257, "n_embd": 1600, "n_layer": 48,
      "n_head": 25, "n_positions": 1024, "bos_token_id": 50256, "eos_token_id": 50256})"},
    {"llama2-7b", R"({"model_type": "llama", "vocab_size": 32000, "hidden_size": 4096,
      "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
      "num_key_value_heads": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
      "rope_theta": 10000.0, "bos_token_id": 1, "eos_token_id": 2})"},
    {"llama3-8b", R"({"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096,
      "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
      "num_key_value_heads": 8, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
      "rope_theta": 500000.0, "bos_token_id": 128000, "eos_token_id": 128001})"},
    {"llama3.1-8b", R"({"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096,
      "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
      "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
      "rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
      "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
      "bos_token_id": 128000, "eos_token_id": 128001})"},
    {"llama3.1-70b", R"({"model_type": "llama", "vocab_size": 128256, "hidden_size": 8192,
      "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
      "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
      "rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
      "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
      "bos_token_id": 128000, "eos_token_id": 128001})"},
    {"llama3.2-1b", R"({"model_type": "llama", "vocab_size": 128256, "hidden_size": 2048,
      "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
      "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 131072,
      "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3",
      "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
      "original_max_position_embeddings": 8192}, "tie_word_embeddings": true,
      "bos_token_id": 128000, "eos_token_id": 128001})"},
    {"qwen2-0.5b", R"({"model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896,
      "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
      "num_key_value_heads": 2, "max_position_embeddings": 131072, "rms_norm_eps": 1e-6,
      "rope_theta": 1000000.0, "tie_word_embeddings": true, "use_sliding_window": false,
      "bos_token_id": 151643, "eos_token_id": 151643})"},
    {"qwen2.5-7b", R"({"model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584,
      "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
      "num_key_value_heads": 4, "max_position_embeddings": 131072, "rms_norm_eps": 1e-6,
      "rope_theta": 1000000.0, "tie_word_embeddings": false, "use_sliding_window": false,
      "bos_token_id": 151643, "eos_token_id": 151643})"},
    {"qwen3-0.6b", R"({"model_type": "qwen3", "vocab_size": 151936, "hidden_size": 1024,
      "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
      "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40960,
      "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": true,
      "bos_token_id": 151643, "eos_token_id": 151645})"},
    {"qwen3-8b", R"({"model_type": "qwen3", "vocab_size": 151936, "hidden_size": 4096,
      "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
      "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40960,
      "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": false,
      "bos_token_id": 151643, "eos_token_id": 151645})"},
};

}  // namespace

std::vector<std::string> preset_names() {
  std::vector<std::string> names;
  for (const Preset& preset : kPresets) names.emplace_back(preset.name);
  return names;
}

ModelSpec spec_from_preset(const std::string& name, int64_t vocab_size) {
  for (const Preset& preset : kPresets) {
    if (name != preset.name) continue;
    const std::string origin = "preset " + name;
    Json config = parse_json(preset.config, origin, ErrorCode::kInternal);
    if (vocab_size > 0) config["vocab_size"] = vocab_size;
    // A smaller vocabulary has other special tokens: whoever chose it sets them.
    for (const char* key : {"bos_token_id", "eos_token_id"}) {
      if (config.contains(key) && config[key] >= config["vocab_size"]) config[key] = nullptr;
    }
    return spec_from_config(config.dump(), origin);
  }
  throw Error(ErrorCode::kConfig, fmt::format("there is no model preset \"{}\"", name),
              suggestion(name, preset_names()));
}

}  // namespace trireme::model
