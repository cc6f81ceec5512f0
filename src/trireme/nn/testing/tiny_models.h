// Tiny models of every family with all their options, and random batches for them. Header only, for tests.
#pragma once

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <random>
#include <string>
#include <vector>

#include "trireme/base/error.h"
#include "trireme/base/json.h"
#include "trireme/model/model_spec.h"
#include "trireme/model/mtp_test_specs.h"
#include "trireme/nn/part.h"
#include "trireme/nn/testing/attention_specs.h"
#include "trireme/nn/testing/moe_specs.h"

namespace trireme::nn::testing {

inline Json model_json(const std::string& text) {
  return parse_json(text, "tiny.json", ErrorCode::kInternal);
}

/// Tiny configurations of every family with all their options; `seed` draws the shapes.
inline std::vector<std::string> tiny_configs(uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto pick = [&random](std::vector<int> values) { return values[random() % values.size()]; };
  const auto config = [&](const std::string& type, const std::string& more) {
    const int kv_heads = pick({1, 2});
    const int heads = kv_heads * pick({1, 2, 3});
    const int head_dim = pick({4, 8, 16});
    return fmt::format(
        R"({{"model_type":"{}","vocab_size":{},"hidden_size":{},"intermediate_size":{},"num_hidden_layers":2,)"
        R"("num_attention_heads":{},"num_key_value_heads":{},"head_dim":{},"max_position_embeddings":64,)"
        R"("rms_norm_eps":1e-5,"initializer_range":0.2,{}}})",
        type, pick({29, 50, 67}), heads * head_dim, pick({16, 24, 40}), heads, kv_heads, head_dim,
        more);
  };
  const int gpt2_heads = pick({1, 2, 4});
  std::vector<std::string> configs;
  for (const char* activation : {"gelu_new", "gelu", "relu"}) {
    configs.push_back(fmt::format(
        R"({{"model_type":"gpt2","vocab_size":{},"n_embd":{},"n_layer":2,"n_head":{},"n_positions":48,)"
        R"("initializer_range":0.2,"activation_function":"{}","n_inner":{},"scale_attn_by_inverse_layer_idx":{}}})",
        pick({31, 64}), gpt2_heads * pick({8, 12}), gpt2_heads, activation, pick({32, 44}),
        activation[0] == 'r' ? "true" : "false"));
  }
  configs.push_back(config("llama", R"("tie_word_embeddings":false)"));
  configs.push_back(
      config("llama", R"("tie_word_embeddings":true,"attention_bias":true,"mlp_bias":true)"));
  configs.push_back(config(
      "llama",
      R"("rope_scaling":{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,)"
      R"("high_freq_factor":4.0,"original_max_position_embeddings":16},"rope_theta":500.0)"));
  configs.push_back(config("llama", R"("rope_scaling":{"rope_type":"linear","factor":4.0})"));
  configs.push_back(config("qwen2", R"("tie_word_embeddings":true)"));
  configs.push_back(config("llama", R"("rope_scaling":{"rope_type":"yarn","factor":4.0,)"
                                    R"("original_max_position_embeddings":16},"rope_theta":50.0)"));
  configs.push_back(config("mistral", R"("sliding_window":6)"));
  configs.push_back(
      config("qwen3", R"("use_sliding_window":true,"sliding_window":3,"max_window_layers":1)"));
  configs.push_back(config(
      "gemma2", R"("sliding_window":5,"query_pre_attn_scalar":3,"attn_logit_softcapping":2.0,)"
                R"("final_logit_softcapping":1.5)"));
  configs.push_back(
      config("gemma3_text",
             R"("sliding_window":4,"query_pre_attn_scalar":9,"rope_local_base_freq":50.0,)"
             R"("layer_types":["sliding_attention","full_attention"],"attention_bias":true)"));
  // These two have no head_dim of their own.
  const auto without_head_dim = [&](std::string text) {
    const size_t begin = text.find("\"head_dim\"");
    return text.erase(begin, text.find("\"max_position", begin) - begin);
  };
  configs.push_back(without_head_dim(config("olmo2", R"("attention_bias":true)")));
  for (const char* original : {"32", "12"}) {  // rows of 17 and 19 tokens: short, and long
    std::string text = without_head_dim(config("phi3", R"("sliding_window":7)"));
    const auto json = model_json(text);
    const int64_t head_dim =
        json.at("hidden_size").get<int64_t>() / json.at("num_attention_heads").get<int64_t>();
    std::string short_factors;
    std::string long_factors;
    for (int64_t i = 0; i < head_dim / 4; ++i) {
      long_factors += fmt::format("{}{}", i > 0 ? "," : "", 2.0 + static_cast<double>(i));
      short_factors += fmt::format("{}{}", i > 0 ? "," : "", 1.0 + 0.25 * static_cast<double>(i));
    }
    text.pop_back();
    configs.push_back(fmt::format(
        R"({},"partial_rotary_factor":0.5,"original_max_position_embeddings":{},"rope_scaling":{{"type":"longrope",)"
        R"("short_factor":[{}],"long_factor":[{}]}}}})",
        text, original, short_factors, long_factors));
  }
  configs.push_back(config("qwen3", R"("tie_word_embeddings":false)"));
  configs.push_back(config("qwen3", R"("tie_word_embeddings":true,"attention_bias":true)"));
  return configs;
}

/// All of tiny_configs(), the attention of the families with experts on dense layers, and every kind of experts.
inline std::vector<model::ModelSpec> tiny_specs(uint64_t seed) {
  std::vector<model::ModelSpec> specs;
  for (const std::string& config : tiny_configs(seed))
    specs.push_back(model::spec_from_config(config, "tiny.json"));
  std::mt19937_64 random(seed);
  const auto pick = [&random](std::vector<int64_t> values) {
    return values[random() % values.size()];
  };
  const auto llama = [&](int64_t kv_heads, const std::string& more) {
    return model::spec_from_config(
        fmt::format(
            R"({{"model_type":"llama","vocab_size":50,"hidden_size":{},"intermediate_size":24,)"
            R"("num_hidden_layers":2,"num_attention_heads":{},"num_key_value_heads":{},"head_dim":{},)"
            R"("max_position_embeddings":64,"initializer_range":0.2{}}})",
            pick({24, 32}), kv_heads * pick({1, 2}), kv_heads, pick({4, 8}), more),
        "tiny.json");
  };
  // gpt_oss: sinks, every other layer with a window, YaRN without rounded ends, biases.
  model::ModelSpec sinks = with_sinks(llama(
      pick({1, 2}), R"(,"attention_bias":true,"rope_scaling":{"rope_type":"yarn","factor":8.0,)"
                    R"("original_max_position_embeddings":16,"truncate":false})"));
  sinks.layers[0].attention.window = 5;
  specs.push_back(sinks);
  const std::string yarn =
      R"(,"rope_scaling":{"rope_type":"yarn","factor":4.0,"original_max_position_embeddings":12,)"
      R"("mscale":1.0,"mscale_all_dim":0.7})";
  for (const bool compressed : {false, true}) {
    for (const bool bias : {false, true}) {
      model::LatentSpec latent;
      latent.query_rank = compressed ? pick({6, 16}) : 0;
      latent.kv_rank = pick({5, 12});
      latent.nope_dim = pick({3, 8});
      latent.rope_dim = pick({4, 6});
      model::ModelSpec spec = llama(pick({1, 2, 3}), compressed ? yarn : "");
      for (model::LayerSpec& layer : spec.layers) layer.attention.rotary->interleaved = !bias;
      specs.push_back(with_latent_attention(spec, latent, pick({4, 7}), bias));
    }
  }
  // A llama with every kind of experts.
  constexpr size_t kLlama = 3;
  for (const MoeVariant& variant : moe_variants())
    specs.push_back(with_experts(specs[kLlama], variant.moe, variant.first));
  // Multi-token prediction: own and tied head, dense, experts, latent attention; one module or more.
  const size_t with_all_experts = specs.size();
  specs.push_back(model::with_mtp(specs[kLlama], 1, 0.3));
  specs.push_back(model::with_mtp(specs[kLlama + 1], 2, 0.5));
  for (size_t i = with_all_experts - moe_variants().size(); i < with_all_experts; i += 2)
    specs.push_back(model::with_mtp(specs[i], 1 + static_cast<int>(i % 3), 0.7));
  specs.push_back(model::with_mtp(specs[with_all_experts - moe_variants().size() - 1], 2, 1.0));
  return specs;
}

/// A random batch; with `documents` rows are cut into segments with positions of their own. Some
/// targets are ignored.
inline BatchTensors random_batch(const model::ModelSpec& spec, int64_t rows, int64_t length,
                                 bool documents, uint64_t seed) {
  std::mt19937_64 random(seed);
  BatchTensors batch;
  batch.rows = rows;
  batch.seq_len = length;
  for (at::Tensor* tensor : {&batch.tokens, &batch.targets, &batch.positions}) {
    *tensor = at::empty({rows, length}, at::kLong);
  }
  for (int64_t row = 0; row < rows; ++row) {
    std::vector<int32_t> starts = {0};
    for (int64_t i = 0; i < length; ++i) {
      if (documents && i > 0 && random() % 5 == 0) starts.push_back(static_cast<int32_t>(i));
      const auto at = row * length + i;
      batch.tokens.data_ptr<int64_t>()[at] = static_cast<int64_t>(random() % spec.vocab_size);
      batch.targets.data_ptr<int64_t>()[at] =
          random() % 6 == 0 ? -100 : static_cast<int64_t>(random() % spec.vocab_size);
      batch.positions.data_ptr<int64_t>()[at] = i - starts.back();
    }
    batch.segments.push_back(starts);
  }
  // What lies ahead is drawn anew: to the parts it is only other tokens and other targets.
  for (int depth = 0; depth < spec.num_mtp_layers; ++depth) {
    BatchTensors::Ahead ahead;
    for (at::Tensor* tensor : {&ahead.tokens, &ahead.targets}) {
      *tensor = at::empty({rows, length}, at::kLong);
      for (int64_t i = 0; i < rows * length; ++i)
        tensor->data_ptr<int64_t>()[i] = static_cast<int64_t>(random() % spec.vocab_size);
    }
    ahead.targets.narrow(1, length - 1 - depth, 1 + depth).fill_(-100);
    batch.ahead.push_back(ahead);
  }
  return batch;
}

/// Of the head, then of the modules of multi-token prediction.
inline std::vector<int64_t> count_targets(const BatchTensors& batch) {
  std::vector<int64_t> counts = {batch.targets.ne(-100).sum().item<int64_t>()};
  for (const auto& ahead : batch.ahead)
    counts.push_back(ahead.targets.ne(-100).sum().item<int64_t>());
  return counts;
}

/// What the loss of every head is multiplied with, for so many counted targets.
inline std::vector<double> loss_scales(const model::ModelSpec& spec,
                                       const std::vector<int64_t>& targets) {
  std::vector<double> scales;
  for (size_t depth = 0; depth < targets.size(); ++depth) {
    const double weight = depth == 0 ? 1.0 : spec.mtp_loss_weight / spec.num_mtp_layers;
    scales.push_back(weight / static_cast<double>(targets[depth]));
  }
  return scales;
}

}  // namespace trireme::nn::testing
