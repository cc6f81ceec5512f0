// The dense families, and the attention of those with experts, written plainly with ATen in float64 and differentiated by ATen's autograd:
// what the parts' forward and hand-written backward are tested against. Header only, for tests.
#pragma once

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numbers>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "trireme/base/error.h"
#include "trireme/base/json.h"
#include "trireme/model/model_spec.h"
#include "trireme/nn/parameter_store.h"
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
  return batch;
}

inline int64_t count_targets(const BatchTensors& batch) {
  return batch.targets.ne(-100).sum().item<int64_t>();
}

class ReferenceModel {
 public:
  /// Copies the store's masters to float64 leaves.
  explicit ReferenceModel(const ParameterStore& store) : spec_(store.spec()) {
    for (int i = 0; i < store.num_parameters(); ++i) {
      leaves_[spec_.parameters[i].name] =
          store.compute(i).to(at::kDouble).detach().clone().requires_grad_(true);
    }
  }

  /// Balancing losses of the batches that loss_sum() has seen, with their coefficients and the batches' shares.
  at::Tensor auxiliary() const { return auxiliary_; }

  const at::Tensor& leaf(const std::string& name) const { return leaves_.at(name); }

  /// [rows, length, vocabulary]
  at::Tensor logits(const BatchTensors& batch) const {
    at::Tensor x = by_role(0, model::Role::kTokenEmbedding).index_select(0, batch.tokens.flatten());
    if (spec_.learned_positions) {
      x = x +
          by_role(0, model::Role::kPositionEmbedding).index_select(0, batch.positions.flatten());
    }
    x = x.view({batch.rows, batch.seq_len, spec_.hidden}) * spec_.embedding_scale;
    const at::Tensor mask = allowed(batch);
    rows_ = batch.rows;
    for (int part = 1; part + 1 < static_cast<int>(spec_.parts.size()); ++part) {
      const model::LayerSpec& layer = spec_.layers[spec_.parts[part].layer];
      switch (spec_.parts[part].kind) {
        case model::PartKind::kAttention:
          x = x + attention(part, layer, x, batch.positions, mask);
          break;
        case model::PartKind::kMlp:
          x = x + mlp(part, layer, x);
          break;
        case model::PartKind::kRouter:
          x = x + experts(part, layer, x);
          break;
        default:  // the router's part has done it
          break;
      }
    }
    const int head = static_cast<int>(spec_.parts.size()) - 1;
    x = norm(head, spec_.final_norm, x);
    const at::Tensor& weight = spec_.tied_embeddings ? by_role(0, model::Role::kTokenEmbedding)
                                                     : by_role(head, model::Role::kHead);
    return cap(x.matmul(weight.t()), spec_.logit_softcap);
  }

  /// Sum of the losses of counted targets. Experts drop what goes beyond their capacity, and balancing losses are
  /// added up in auxiliary().
  at::Tensor loss_sum(const BatchTensors& batch) const {
    training_ = true;
    share_ = batch.share_of_step;
    return at::cross_entropy_loss(logits(batch).flatten(0, 1), batch.targets.flatten(), {},
                                  at::Reduction::Sum, -100);
  }

 private:
  // Parameters of a part with a role, in order: biases are told apart by their place.
  std::vector<at::Tensor> all_of(int part, model::Role role) const {
    std::vector<at::Tensor> found;
    for (const auto& parameter : spec_.parameters) {
      if (parameter.part == part && parameter.role == role)
        found.push_back(leaves_.at(parameter.name));
    }
    return found;
  }
  const at::Tensor& by_role(int part, model::Role role) const {
    for (const auto& parameter : spec_.parameters) {
      if (parameter.part == part && parameter.role == role) return leaves_.at(parameter.name);
    }
    throw std::runtime_error("no such role");
  }
  // The parameter called like `weight_role`'s but with .bias; undefined if absent.
  at::Tensor bias_of(int part, model::Role weight_role) const {
    for (const auto& parameter : spec_.parameters) {
      if (parameter.part != part || parameter.role != weight_role) continue;
      std::string name = parameter.name;
      name.replace(name.rfind(".weight"), 7, ".bias");
      const auto found = leaves_.find(name);
      return found == leaves_.end() ? at::Tensor() : found->second;
    }
    return {};
  }
  at::Tensor linear(int part, model::Role role, const at::Tensor& x) const {
    at::Tensor y = x.matmul(by_role(part, role).t());
    const at::Tensor bias = bias_of(part, role);
    return bias.defined() ? y + bias : y;
  }
  static at::Tensor cap(const at::Tensor& x, double softcap) {
    return softcap > 0 ? (x / softcap).tanh() * softcap : x;
  }
  // Norm number `place` of a part; none leaves x as it is.
  at::Tensor norm(int part, const std::optional<model::NormSpec>& given, const at::Tensor& x,
                  size_t place = 0) const {
    if (!given) return x;
    const model::NormSpec& spec = *given;
    const at::Tensor weight =
        all_of(part, model::Role::kNormWeight).at(place) + (spec.unit_offset ? 1.0 : 0.0);
    if (spec.kind == model::NormKind::kRmsNorm) return rms(x, weight, spec.eps);
    const at::Tensor centred = x - x.mean(-1, true);
    const at::Tensor y = centred / (centred.square().mean(-1, true) + spec.eps).sqrt() * weight;
    return spec.bias ? y + by_role(part, model::Role::kNormBias) : y;
  }
  static at::Tensor rms(const at::Tensor& x, const at::Tensor& weight, double eps) {
    return x / (x.square().mean(-1, true) + eps).sqrt() * weight;
  }
  static at::Tensor activate(model::Activation activation, const at::Tensor& x) {
    switch (activation) {
      case model::Activation::kSilu:
        return x * x.sigmoid();
      case model::Activation::kGeluTanh:
        return 0.5 * x *
               (1.0 + (std::sqrt(2.0 / std::numbers::pi) * (x + 0.044715 * x.pow(3))).tanh());
      case model::Activation::kGelu:
        return 0.5 * x * (1.0 + (x / std::sqrt(2.0)).erf());
      case model::Activation::kRelu:
        return x.clamp_min(0.0);
    }
    return x;
  }
  static at::Tensor rotate(const model::RotarySpec& spec, const at::Tensor& whole,
                           const at::Tensor& positions) {
    const int64_t half = spec.dim / 2;
    const at::Tensor x = whole.narrow(-1, 0, spec.dim);
    const bool long_sequence = positions.size(1) > spec.original_max_positions;
    at::Tensor frequency = at::empty({half}, at::kDouble);
    for (int64_t i = 0; i < half; ++i) {
      double value =
          std::pow(spec.theta, -2.0 * static_cast<double>(i) / static_cast<double>(spec.dim));
      if (spec.scaling == model::RotaryScaling::kLinear) value /= spec.factor;
      if (spec.scaling == model::RotaryScaling::kLlama3) {
        const double turns =
            static_cast<double>(spec.original_max_positions) * value / (2.0 * std::numbers::pi);
        const double blend = std::clamp(
            (turns - spec.low_freq_factor) / (spec.high_freq_factor - spec.low_freq_factor), 0.0,
            1.0);
        value = value * blend + value / spec.factor * (1.0 - blend);
      }
      if (spec.scaling == model::RotaryScaling::kYarn) {
        // Dimension at which a wave turns `rotations` times over the original context.
        const auto dimension = [&](double rotations) {
          return static_cast<double>(half) *
                 std::log(static_cast<double>(spec.original_max_positions) /
                          (2.0 * std::numbers::pi * rotations)) /
                 std::log(spec.theta);
        };
        const double first = dimension(spec.beta_fast), last = dimension(spec.beta_slow);
        const double low = std::max(spec.truncate ? std::floor(first) : first, 0.0);
        double high =
            std::min(spec.truncate ? std::ceil(last) : last, static_cast<double>(spec.dim - 1));
        if (high == low) high += 1e-3;
        const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
        value = value * (1.0 - ramp) + value / spec.factor * ramp;
      }
      if (spec.scaling == model::RotaryScaling::kLongRope)
        value /= (long_sequence ? spec.long_factor : spec.short_factor).at(static_cast<size_t>(i));
      frequency.data_ptr<double>()[i] = value;
    }
    const at::Tensor angle = positions.to(at::kDouble).unsqueeze(-1) * frequency;  // [B, T, half]
    const at::Tensor cos = angle.cos().unsqueeze(2) * spec.attention_factor;
    const at::Tensor sin = angle.sin().unsqueeze(2) * spec.attention_factor;
    const at::Tensor rest = whole.narrow(-1, spec.dim, whole.size(-1) - spec.dim);
    if (spec.interleaved) {
      const at::Tensor pairs = x.unflatten(-1, {half, 2});
      const at::Tensor a = pairs.select(-1, 0);
      const at::Tensor b = pairs.select(-1, 1);
      return at::cat({at::stack({a * cos - b * sin, b * cos + a * sin}, -1).flatten(-2), rest}, -1);
    }
    const at::Tensor a = x.narrow(-1, 0, half);
    const at::Tensor b = x.narrow(-1, half, half);
    return at::cat({a * cos - b * sin, b * cos + a * sin, rest}, -1);
  }
  static at::Tensor allowed(const BatchTensors& batch) {
    at::Tensor mask = at::zeros({batch.rows, 1, batch.seq_len, batch.seq_len}, at::kBool);
    for (int64_t row = 0; row < batch.rows; ++row) {
      const auto& starts = batch.segments[row];
      for (int64_t q = 0; q < batch.seq_len; ++q) {
        int64_t start = 0;
        for (const int32_t candidate : starts) {
          if (candidate <= q) start = candidate;
        }
        mask[row][0][q].narrow(0, start, q - start + 1).fill_(true);
      }
    }
    return mask;
  }
  struct Heads {
    at::Tensor q, k, v;  // [B, T, heads, dim]
  };
  Heads grouped_heads(int part, const model::AttentionSpec& spec, const at::Tensor& x,
                      const at::Tensor& positions) const {
    const int64_t rows = x.size(0), length = x.size(1);
    at::Tensor q =
        linear(part, model::Role::kQuery, x).view({rows, length, spec.num_heads, spec.head_dim});
    at::Tensor k =
        linear(part, model::Role::kKey, x).view({rows, length, spec.num_kv_heads, spec.head_dim});
    at::Tensor v =
        linear(part, model::Role::kValue, x).view({rows, length, spec.num_kv_heads, spec.head_dim});
    if (spec.qk_norm != model::QkNorm::kNone) {
      const std::vector<at::Tensor> weights = all_of(part, model::Role::kQkNorm);
      const double offset = spec.qk_norm_spec.unit_offset ? 1.0 : 0.0;
      const auto normed = [&](const at::Tensor& all, const at::Tensor& weight) {
        const bool together = spec.qk_norm == model::QkNorm::kAllHeads;
        const at::Tensor in = together ? all.flatten(2) : all;
        return rms(in, weight + offset, spec.qk_norm_spec.eps).view(all.sizes());
      };
      q = normed(q, weights.at(0));
      k = normed(k, weights.at(1));
    }
    if (spec.rotary) {
      q = rotate(*spec.rotary, q, positions);
      k = rotate(*spec.rotary, k, positions);
    }
    return {q, k, v};
  }
  // Latent attention: the keys' and values' heads written out from the compressed vector.
  Heads latent_heads(int part, const model::AttentionSpec& spec, const at::Tensor& x,
                     const at::Tensor& positions) const {
    const model::LatentSpec& latent = *spec.latent;
    const std::vector<at::Tensor> norms = all_of(part, model::Role::kLatentNorm);
    at::Tensor query = x;
    if (latent.query_rank > 0)
      query = rms(linear(part, model::Role::kQueryDown, x), norms.at(0), latent.norm_eps);
    const auto parts_of = [&](const at::Tensor& all, int64_t second) {
      return all.unflatten(2, {spec.num_heads, -1}).split_with_sizes({latent.nope_dim, second}, 3);
    };
    const auto q = parts_of(linear(part, model::Role::kQuery, query), latent.rope_dim);
    const auto down = linear(part, model::Role::kKeyValueDown, x)
                          .split_with_sizes({latent.kv_rank, latent.rope_dim}, 2);
    const at::Tensor compressed = rms(down[0], norms.back(), latent.norm_eps);
    const auto kv = parts_of(linear(part, model::Role::kKeyValueUp, compressed), spec.value_dim);
    const at::Tensor shared = rotate(*spec.rotary, down[1].unsqueeze(2), positions);
    return {at::cat({q[0], rotate(*spec.rotary, q[1], positions)}, 3),
            at::cat({kv[0], shared.expand({-1, -1, spec.num_heads, -1})}, 3), kv[1]};
  }
  at::Tensor attention(int part, const model::LayerSpec& layer, const at::Tensor& input,
                       const at::Tensor& positions, const at::Tensor& mask) const {
    const model::AttentionSpec& spec = layer.attention;
    const at::Tensor x = norm(part, layer.attention_norm, input);
    const int64_t rows = x.size(0), length = x.size(1);
    const Heads heads = spec.latent ? latent_heads(part, spec, x, positions)
                                    : grouped_heads(part, spec, x, positions);
    const int64_t group = spec.num_heads / spec.num_kv_heads;
    const at::Tensor keys = heads.k.repeat_interleave(group, 2).transpose(1, 2);
    const at::Tensor values = heads.v.repeat_interleave(group, 2).transpose(1, 2);
    const at::Tensor scores =
        cap(heads.q.transpose(1, 2).matmul(keys.transpose(2, 3)) * spec.scale, spec.softcap);
    at::Tensor visible = mask;
    if (spec.window > 0)
      visible = mask & at::ones({length, length}, at::kBool).triu(1 - spec.window);
    at::Tensor logits = scores.masked_fill(visible.logical_not(), -INFINITY);
    if (spec.sinks) {
      const at::Tensor sinks = by_role(part, model::Role::kSink).view({1, -1, 1, 1});
      logits = at::cat({logits, sinks.expand({rows, -1, length, 1})}, 3);
    }
    const at::Tensor weights = logits.softmax(-1).narrow(3, 0, length);
    const at::Tensor out = weights.matmul(values).transpose(1, 2).reshape({rows, length, -1});
    return norm(part, layer.attention_post_norm, linear(part, model::Role::kAttentionOut, out),
                layer.attention_norm ? 1 : 0);
  }
  at::Tensor mlp(int part, const model::LayerSpec& layer, const at::Tensor& input) const {
    const at::Tensor x = norm(part, layer.mlp_norm, input);
    at::Tensor up = linear(part, model::Role::kUp, x);
    if (layer.mlp.kind == model::MlpKind::kGated) {
      up = activate(layer.mlp.activation, linear(part, model::Role::kGate, x)) * up;
    } else {
      up = activate(layer.mlp.activation, up);
    }
    return norm(part, layer.mlp_post_norm, linear(part, model::Role::kDown, up),
                layer.mlp_norm ? 1 : 0);
  }

  // Experts by their definition: each computes every token, and the weights of those not chosen are zero.
  at::Tensor experts(int router, const model::LayerSpec& layer, const at::Tensor& input) const {
    const model::MoeSpec& moe = layer.moe.value();
    const at::Tensor h = norm(router, layer.mlp_norm, input).flatten(0, 1);
    at::Tensor logits = h.matmul(by_role(router, model::Role::kRouter).t());
    if (moe.router_bias) logits = logits + by_role(router, model::Role::kBias);
    const bool sigmoid = moe.score == model::ScoreFunction::kSigmoid;
    const at::Tensor scores = sigmoid ? logits.sigmoid() : logits.softmax(-1);
    at::Tensor values = scores.detach();
    if (moe.selection_bias) values = values + by_role(router, model::Role::kSelectionBias).detach();
    if (moe.num_groups > 1) {
      const at::Tensor groups = values.view({h.size(0), moe.num_groups, -1});
      const at::Tensor best = moe.group_score_top2 ? std::get<0>(groups.topk(2, -1)).sum(-1)
                                                   : std::get<0>(groups.max(-1));
      const at::Tensor kept =
          at::zeros_like(best).scatter(1, std::get<1>(best.topk(moe.top_groups, -1)), 1.0);
      values = values.masked_fill(
          kept.repeat_interleave(moe.num_experts / moe.num_groups, 1).eq(0.0), -INFINITY);
    }
    const at::Tensor choice = std::get<1>(values.topk(moe.top_k, -1));
    at::Tensor weights =
        moe.softmax_after_top_k ? logits.gather(1, choice).softmax(-1) : scores.gather(1, choice);
    if (moe.normalize) weights = weights / weights.sum(-1, true);
    at::Tensor dense = at::zeros_like(scores).scatter(1, choice, weights * moe.scaling);
    const at::Tensor chosen = at::zeros_like(scores).detach().scatter(1, choice, 1.0);
    if (training_) {
      balance(moe, logits, sigmoid ? scores / scores.sum(-1, true) : scores, chosen);
      dense = dense * kept_of(moe, dense.detach(), chosen);
    }

    const int part = router + 2;
    at::Tensor sum = at::zeros_like(h);
    for (int64_t e = 0; e < moe.num_experts; ++e) {
      const auto of = [&](model::Role role) { return by_role(part, role)[e]; };
      at::Tensor gate = h.matmul(of(model::Role::kExpertGate).t());
      at::Tensor up = h.matmul(of(model::Role::kExpertUp).t());
      if (moe.expert.bias) {
        gate = gate + of(model::Role::kExpertGateBias);
        up = up + of(model::Role::kExpertUpBias);
      }
      if (moe.clamp_limit > 0) {
        gate = gate.clamp_max(moe.clamp_limit);
        up = (up.clamp(-moe.clamp_limit, moe.clamp_limit) + 1) * gate * (1.702 * gate).sigmoid();
      } else {
        up = activate(moe.expert.activation, gate) * up;
      }
      at::Tensor y = up.matmul(of(model::Role::kExpertDown).t());
      if (moe.expert.bias) y = y + of(model::Role::kExpertDownBias);
      sum = sum + dense.narrow(1, e, 1) * y;
    }
    if (moe.shared_hidden > 0) {
      const int combine = router + 3;
      const at::Tensor act =
          activate(moe.expert.activation, linear(combine, model::Role::kGate, h)) *
          linear(combine, model::Role::kUp, h);
      at::Tensor y = linear(combine, model::Role::kDown, act);
      if (moe.shared_gate)
        y = y * h.matmul(by_role(combine, model::Role::kSharedExpertGate).t()).sigmoid();
      sum = sum + y;
    }
    return sum.view(input.sizes());
  }
  // 1 where an expert keeps a token: the heaviest choices, up to its capacity.
  static at::Tensor kept_of(const model::MoeSpec& moe, const at::Tensor& dense,
                            const at::Tensor& chosen) {
    if (moe.capacity_factor <= 0.0) return at::ones_like(dense);
    const auto capacity = static_cast<int64_t>(
        std::ceil(moe.capacity_factor * static_cast<double>(dense.size(0) * moe.top_k) /
                  static_cast<double>(moe.num_experts)));
    const at::Tensor order =
        at::argsort(dense.masked_fill(chosen.eq(0.0), -1.0), /*stable=*/true, /*dim=*/0,
                    /*descending=*/true);
    at::Tensor kept = at::zeros_like(dense);
    return kept.scatter(0, order.narrow(0, 0, std::min(capacity, dense.size(0))), 1.0);
  }
  void balance(const model::MoeSpec& moe, const at::Tensor& logits, const at::Tensor& shares,
               const at::Tensor& chosen) const {
    const int64_t sets = moe.sequence_aux ? rows_ : 1;
    const at::Tensor f = chosen.view({sets, -1, moe.num_experts}).mean(1);
    const at::Tensor p = shares.view({sets, -1, moe.num_experts}).mean(1);
    const at::Tensor loss = (f * p).sum(-1).mean() * static_cast<double>(moe.num_experts) /
                            static_cast<double>(moe.top_k);
    auxiliary_ = auxiliary_ +
                 share_ * (moe.aux_loss * loss + moe.z_loss * logits.logsumexp(-1).square().mean());
  }

  model::ModelSpec spec_;
  std::map<std::string, at::Tensor> leaves_;
  mutable bool training_ = false;
  mutable double share_ = 1.0;
  mutable int64_t rows_ = 1;
  mutable at::Tensor auxiliary_ = at::zeros({}, at::kDouble);
};

}  // namespace trireme::nn::testing
