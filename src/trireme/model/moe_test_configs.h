// Tiny configurations of the families with experts, as the tests of several suites and transformers' own lists use them.
#pragma once

#include <string>
#include <vector>

#include "trireme/base/json.h"

namespace trireme::model {

inline const std::vector<std::string>& moe_families() {
  static const std::vector<std::string> names = {"mixtral",     "qwen3_moe",  "qwen2_moe",
                                                 "olmoe",       "gpt_oss",    "glm4_moe",
                                                 "deepseek_v2", "deepseek_v3"};
  return names;
}

inline Json tiny_moe(const std::string& family) {
  Json config = {{"model_type", family},     {"vocab_size", 64},
                 {"hidden_size", 16},        {"intermediate_size", 24},
                 {"num_hidden_layers", 2},   {"num_attention_heads", 4},
                 {"num_key_value_heads", 2}, {"max_position_embeddings", 64},
                 {"num_experts_per_tok", 2}};
  if (family == "mixtral") config["num_local_experts"] = 3;
  if (family == "qwen3_moe") {
    config.update({{"head_dim", 8},
                   {"moe_intermediate_size", 6},
                   {"num_experts", 4},
                   {"mlp_only_layers", Json::array({0})},
                   {"attention_bias", true}});
  }
  if (family == "qwen2_moe") {
    config.update({{"moe_intermediate_size", 6},
                   {"num_experts", 4},
                   {"shared_expert_intermediate_size", 10}});
  }
  if (family == "olmoe") config["num_experts"] = 4;
  if (family == "gpt_oss") config.update({{"head_dim", 8}, {"num_local_experts", 3}});
  if (family == "glm4_moe") {
    config.update({{"head_dim", 8},
                   {"n_routed_experts", 4},
                   {"moe_intermediate_size", 6},
                   {"use_qk_norm", true},
                   {"attention_bias", true}});
  }
  if (family.starts_with("deepseek")) {
    config.update({{"num_key_value_heads", 4},
                   {"n_routed_experts", 4},
                   {"moe_intermediate_size", 6},
                   {"kv_lora_rank", 8},
                   {"q_lora_rank", family == "deepseek_v2" ? Json(6) : Json(nullptr)},
                   {"qk_nope_head_dim", 4},
                   {"qk_rope_head_dim", 2},
                   {"v_head_dim", 3},
                   {"first_k_dense_replace", 1},
                   {"attention_bias", true}});
  }
  if (family == "deepseek_v3") config.update({{"n_group", 2}, {"topk_group", 1}});
  return config;
}

}  // namespace trireme::model
