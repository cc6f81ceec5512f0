// The dense families, and the attention of those with experts, written plainly with ATen in float64 and differentiated by ATen's autograd:
// what the parts' forward and hand-written backward are tested against. Header only, for tests.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numbers>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "trireme/model/model_spec.h"
#include "trireme/nn/parameter_store.h"
#include "trireme/nn/part.h"
#include "trireme/nn/testing/tiny_models.h"

namespace trireme::nn::testing {

class ReferenceModel {
 public:
  /// Copies the store's masters to float64 leaves.
  explicit ReferenceModel(const ParameterStore& store) : spec_(store.spec()) {
    for (int i = 0; i < store.num_parameters(); ++i) {
      leaves_[spec_.parameters[i].name] =
          store.compute(i).to(at::kDouble).detach().clone().requires_grad_(true);
    }
  }

  /// Balancing losses of the batches that loss_sums() has seen, with their coefficients and the batches' shares.
  at::Tensor auxiliary() const { return auxiliary_; }

  const at::Tensor& leaf(const std::string& name) const { return leaves_.at(name); }

  /// [rows, length, vocabulary]
  at::Tensor logits(const BatchTensors& batch) const {
    return project(main_state(batch, allowed(batch)));
  }

  /// Sums of the losses of counted targets: the head's, then those of the modules of multi-token prediction. Experts drop
  /// what goes beyond their capacity, and balancing losses are added up in auxiliary().
  std::vector<at::Tensor> loss_sums(const BatchTensors& batch) const {
    training_ = true;
    share_ = batch.share_of_step;
    const auto loss = [&](const at::Tensor& state, const at::Tensor& targets) {
      return at::cross_entropy_loss(project(state).flatten(0, 1), targets.flatten(), {},
                                    at::Reduction::Sum, -100);
    };
    const at::Tensor mask = allowed(batch);
    at::Tensor state = main_state(batch, mask);
    std::vector<at::Tensor> sums = {loss(state, batch.targets)};
    int part = spec_.head_part() + 1;
    for (const BatchTensors::Ahead& ahead : batch.ahead) {
      const at::Tensor embedded = by_role(0, model::Role::kTokenEmbedding)
                                      .index_select(0, ahead.tokens.flatten())
                                      .view(state.sizes());
      const at::Tensor joined = at::cat(
          {norm(part, spec_.final_norm, embedded, 0), norm(part, spec_.final_norm, state, 1)}, 2);
      state = linear(part, model::Role::kMtpProjection, joined);
      state = through_layers(part + 1, state, batch, mask);
      while (!spec_.is_head(part)) ++part;
      state = norm(part, spec_.final_norm, state);
      sums.push_back(loss(state, ahead.targets));
      ++part;
    }
    return sums;
  }

  /// The same with their weights, means over so many counted targets.
  at::Tensor loss(const std::vector<BatchTensors>& batches,
                  const std::vector<int64_t>& targets) const {
    const std::vector<double> scales = loss_scales(spec_, targets);
    at::Tensor sum = at::zeros({}, at::kDouble);
    for (const BatchTensors& batch : batches) {
      const std::vector<at::Tensor> sums = loss_sums(batch);
      for (size_t depth = 0; depth < sums.size(); ++depth) sum = sum + scales[depth] * sums[depth];
    }
    return sum;
  }

 private:
  /// The state that the head multiplies with: after the final norm.
  at::Tensor main_state(const BatchTensors& batch, const at::Tensor& mask) const {
    at::Tensor x = by_role(0, model::Role::kTokenEmbedding).index_select(0, batch.tokens.flatten());
    if (spec_.learned_positions) {
      x = x +
          by_role(0, model::Role::kPositionEmbedding).index_select(0, batch.positions.flatten());
    }
    x = x.view({batch.rows, batch.seq_len, spec_.hidden}) * spec_.embedding_scale;
    rows_ = batch.rows;
    return norm(spec_.head_part(), spec_.final_norm, through_layers(1, x, batch, mask));
  }
  /// From `part` to the next head.
  at::Tensor through_layers(int part, at::Tensor x, const BatchTensors& batch,
                            const at::Tensor& mask) const {
    for (; !spec_.is_head(part); ++part) {
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
    return x;
  }
  at::Tensor project(const at::Tensor& state) const {
    const at::Tensor& weight = spec_.tied_embeddings
                                   ? by_role(0, model::Role::kTokenEmbedding)
                                   : by_role(spec_.head_part(), model::Role::kHead);
    return cap(state.matmul(weight.t()), spec_.logit_softcap);
  }

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
