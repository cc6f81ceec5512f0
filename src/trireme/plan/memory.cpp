#include "trireme/plan/memory.h"

#include <algorithm>
#include <set>
#include <tuple>

#include "trireme/base/error.h"
#include "trireme/plan/kernel_workspace.h"

namespace trireme::plan {

namespace {

using model::MlpKind;
using model::NormKind;
using model::NormSpec;
using model::PartKind;

int64_t norm_stats(const NormSpec& norm, int64_t tokens) {
  return (norm.kind == NormKind::kLayerNorm ? 8 : 4) * tokens;
}

int64_t norm_gradients(const NormSpec& norm, int64_t size) {
  return (norm.bias ? 8 : 4) * size;
}

PartBytes attention_bytes(const model::ModelSpec& spec, const Strategy& strategy, int layer,
                          Recompute mode) {
  const model::LayerSpec& where = spec.layers[static_cast<size_t>(layer)];
  const model::AttentionSpec& attention = where.attention;
  const int64_t e = element_bytes(strategy.precision);
  const int64_t n = strategy.micro * strategy.seq_len;
  const int64_t hidden = n * spec.hidden * e;
  const int64_t query_size = attention.num_heads * attention.head_dim;
  const int64_t kv_size = attention.num_kv_heads * attention.head_dim;
  const int64_t out = n * query_size * e;
  const int64_t qkv = n * (query_size + 2 * kv_size) * e;
  const int64_t logsumexp = 4 * n * attention.num_heads;
  // With a norm on queries and keys, their normed and rotated copies stand beside qkv.
  const int64_t qk = attention.qk_norm ? n * (query_size + kv_size) * e : 0;
  const int64_t qk_stats =
      attention.qk_norm ? 4 * n * (attention.num_heads + attention.num_kv_heads) : 0;
  const int64_t stats = norm_stats(where.attention_norm, n);
  const int64_t small_gradients = norm_gradients(where.attention_norm, spec.hidden) +
                                  (attention.qk_norm ? 8 * attention.head_dim : 0);
  const auto kernel = [&](bool backward) {
    return attention_workspace_bytes(strategy.micro, strategy.seq_len, attention.num_heads,
                                     attention.num_kv_heads, attention.head_dim, strategy.precision,
                                     backward);
  };
  const int64_t in_product =
      product_workspace_bytes(n, query_size + 2 * kv_size, spec.hidden, strategy.precision);
  const int64_t out_product =
      product_workspace_bytes(n, spec.hidden, query_size, strategy.precision);
  const int64_t product = std::max(in_product, out_product);
  const int64_t norm_workspace =
      norm_backward_workspace_bytes(spec.hidden, where.attention_norm.kind);

  PartBytes bytes;
  const bool selective = mode == Recompute::kSelective;
  bytes.saved_input = stats + qkv + qk_stats + logsumexp + (selective ? 0 : qk);
  bytes.saved_weight = out + (selective ? 0 : hidden);
  bytes.delayed = qkv + small_gradients + (selective ? hidden : 0);
  switch (mode) {
    case Recompute::kNone:
      bytes.forward_workspace = std::max(kernel(false) - hidden, product);
      break;
    case Recompute::kSelective:
      bytes.forward_workspace =
          std::max({product - out - logsumexp, qk + kernel(false) - hidden, product});
      break;
    case Recompute::kFull:
      // Nothing stays: normed, then qkv and what follows from it, then the output.
      bytes.forward_workspace = std::max({stats + hidden + qkv + in_product,
                                          stats + qkv + qk + qk_stats + out + kernel(false),
                                          stats + out + hidden + out_product}) -
                                hidden;
      break;
  }
  bytes.recompute_workspace = std::max(kernel(false), product);
  bytes.backward_input_workspace =
      std::max({out + kernel(true) + (selective ? qk : 0) - hidden - (selective ? hidden : 0),
                product, norm_workspace});
  bytes.backward_weight_workspace = product;
  return bytes;
}

PartBytes mlp_bytes(const model::ModelSpec& spec, const Strategy& strategy, int layer,
                    Recompute mode) {
  const model::LayerSpec& where = spec.layers[static_cast<size_t>(layer)];
  const model::MlpSpec& mlp = where.mlp;
  const int64_t e = element_bytes(strategy.precision);
  const int64_t n = strategy.micro * strategy.seq_len;
  const int64_t hidden = n * spec.hidden * e;
  const int64_t width_in = mlp.kind == MlpKind::kGated ? 2 * mlp.hidden : mlp.hidden;
  const int64_t gate_up = n * width_in * e;
  const int64_t act = n * mlp.hidden * e;
  const int64_t stats = norm_stats(where.mlp_norm, n);
  const int64_t small_gradients = norm_gradients(where.mlp_norm, spec.hidden);
  const int64_t in_product = product_workspace_bytes(n, width_in, spec.hidden, strategy.precision);
  const int64_t out_product =
      product_workspace_bytes(n, spec.hidden, mlp.hidden, strategy.precision);
  const int64_t product = std::max(in_product, out_product);
  const int64_t norm_workspace = norm_backward_workspace_bytes(spec.hidden, where.mlp_norm.kind);

  PartBytes bytes;
  const bool selective = mode == Recompute::kSelective;
  bytes.saved_input = stats;
  bytes.saved_weight = gate_up + (selective ? 0 : hidden + act);
  bytes.delayed = small_gradients + (selective ? act + hidden : 0);
  switch (mode) {
    case Recompute::kNone:
      bytes.forward_workspace = product;
      break;
    case Recompute::kSelective:
      bytes.forward_workspace = std::max(act + out_product, in_product);
      break;
    case Recompute::kFull:
      bytes.forward_workspace =
          std::max({stats + hidden + gate_up + in_product, stats + gate_up + act,
                    stats + act + hidden + out_product}) -
          hidden;
      break;
  }
  bytes.recompute_workspace = in_product;
  bytes.backward_input_workspace =
      selective ? std::max(product, norm_workspace)
                : std::max({act + product - hidden, product, norm_workspace});
  bytes.backward_weight_workspace = product;
  return bytes;
}

}  // namespace

int64_t element_bytes(Precision precision) {
  return precision == Precision::kBf16 ? 2 : 4;
}

PartBytes part_bytes(const model::ModelSpec& spec, const Strategy& strategy, int part,
                     Recompute mode) {
  const model::PartSpec& where = spec.parts[static_cast<size_t>(part)];
  const int64_t tokens = strategy.micro * strategy.seq_len;
  switch (where.kind) {
    case PartKind::kAttention:
      return attention_bytes(spec, strategy, where.layer, mode);
    case PartKind::kMlp:
      return mlp_bytes(spec, strategy, where.layer, mode);
    case PartKind::kEmbedding: {
      // The tokens sorted by row of the table, so that every row has one writer.
      PartBytes bytes;
      const int64_t rows =
          std::max(spec.vocab_size, spec.learned_positions ? spec.max_positions : 0);
      bytes.backward_weight_workspace = 8 * (tokens + rows);
      return bytes;
    }
    case PartKind::kHead:
      break;
  }
  TRIREME_CHECK(false, "part {} has no bytes of its own: see loss_workspace_bytes", where.name);
}

int64_t batch_bytes(const Strategy& strategy) {
  return 3 * 8 * strategy.micro * strategy.seq_len;
}

int64_t hidden_bytes(const model::ModelSpec& spec, const Strategy& strategy) {
  return strategy.micro * strategy.seq_len * spec.hidden * element_bytes(strategy.precision);
}

int64_t parameter_gradient_bytes(const model::ModelSpec& spec, int part) {
  int64_t sum = 0;
  for (const model::ParameterSpec& parameter : spec.parameters) {
    if (parameter.part == part) sum += parameter.numel();
  }
  return 4 * sum;
}

int64_t loss_workspace_bytes(const model::ModelSpec& spec, const Strategy& strategy) {
  const int64_t rows = strategy.loss_chunk_rows > 0 ? strategy.loss_chunk_rows
                                                    : choose_loss_chunk_rows(spec, strategy);
  const int64_t loss =
      cross_entropy_workspace_bytes(rows, spec.vocab_size, spec.hidden, strategy.precision);
  const int64_t norm = norm_backward_workspace_bytes(spec.hidden, spec.final_norm.kind);
  return hidden_bytes(spec, strategy) +
         norm_stats(spec.final_norm, strategy.micro * strategy.seq_len) + std::max(loss, norm);
}

ResidentBytes resident_bytes(const model::ModelSpec& spec, const Strategy& strategy) {
  ResidentBytes bytes;
  const int64_t parameters = spec.num_parameters();
  bytes.master_weights = 4 * parameters;
  bytes.compute_weights = strategy.precision == Precision::kBf16 ? 2 * parameters : 0;
  bytes.optimizer_states = 8 * parameters;
  if (!strategy.optimizer_state_bytes.empty()) {
    bytes.optimizer_states = 0;
    for (const int64_t state : strategy.optimizer_state_bytes) bytes.optimizer_states += state;
  }
  // One table per distinct rotary embedding, shared by its layers: float32 cosines and sines of
  // half the rotated dimensions at every position of a sequence.
  std::set<std::tuple<double, int64_t, int, double, double, double, int64_t>> tables;
  for (const model::LayerSpec& layer : spec.layers) {
    if (!layer.attention.rotary) continue;
    const model::RotarySpec& rotary = *layer.attention.rotary;
    const bool fresh = tables
                           .insert({rotary.theta, rotary.dim, static_cast<int>(rotary.scaling),
                                    rotary.factor, rotary.low_freq_factor, rotary.high_freq_factor,
                                    rotary.original_max_positions})
                           .second;
    if (fresh) bytes.tables += strategy.seq_len * rotary.dim * 4;
  }
  return bytes;
}

}  // namespace trireme::plan
