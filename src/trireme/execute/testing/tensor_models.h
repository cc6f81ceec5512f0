// Tiny models of several families that two and four tensor parallel ranks can share. Header only, for tests.
#pragma once

#include <string>
#include <vector>

#include "trireme/base/error.h"
#include "trireme/base/json.h"
#include "trireme/nn/testing/tiny_models.h"

namespace trireme::execute {

/// Families that differ in what ranks share: biases and learned positions (gpt2), untied ("llama"), tied with biases, norms of heads
/// (qwen3), norms before and after with capped logits (gemma2), sinks, latent attention, and one key and value head.
inline std::vector<std::string> tensor_model_names() {
  return {"gpt2",  "llama",  "biased",         "qwen3",      "gemma2",
          "sinks", "latent", "latent_queries", "one_kv_head"};
}

inline model::ModelSpec tensor_model(const std::string& name, int layers = 2, int64_t vocab = 64) {
  Json config = {{"model_type", name},
                 {"vocab_size", vocab},
                 {"hidden_size", 32},
                 {"intermediate_size", 48},
                 {"num_hidden_layers", layers},
                 {"num_attention_heads", 4},
                 {"num_key_value_heads", 2},
                 {"head_dim", 8},
                 {"max_position_embeddings", 64},
                 {"initializer_range", 0.2},
                 {"tie_word_embeddings", name != "llama"}};
  const auto spec = [&] { return model::spec_from_config(config.dump(), "tensor.json"); };
  if (name == "gpt2") {
    config = {{"model_type", "gpt2"}, {"vocab_size", vocab},     {"n_embd", 32},
              {"n_inner", 48},        {"n_layer", layers},       {"n_head", 4},
              {"n_positions", 64},    {"initializer_range", 0.2}};
    return spec();
  }
  if (name == "gemma2") {
    config.update({{"sliding_window", 5},
                   {"query_pre_attn_scalar", 3},
                   {"attn_logit_softcapping", 2.0},
                   {"final_logit_softcapping", 1.5}});
    return spec();
  }
  if (name == "qwen3") return spec();
  config["model_type"] = "llama";
  if (name == "biased") config.update({{"attention_bias", true}, {"mlp_bias", true}});
  if (name == "one_kv_head") config["num_key_value_heads"] = 1;
  if (name == "sinks") return nn::testing::with_sinks(spec());
  if (name.starts_with("latent")) {
    model::LatentSpec latent;
    latent.query_rank = name == "latent" ? 0 : 12;
    latent.kv_rank = 10;
    latent.nope_dim = 6;
    latent.rope_dim = 4;
    return nn::testing::with_latent_attention(spec(), latent, 8, name == "latent");
  }
  TRIREME_CHECK(name == "llama" || name == "biased" || name == "one_kv_head", "no model {}", name);
  return spec();
}

}  // namespace trireme::execute
