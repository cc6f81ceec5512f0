#include "trireme/plan/memory.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "trireme/base/error.h"
#include "trireme/plan/part_memory.h"
#include "trireme/plan/shards.h"

namespace trireme::plan {

namespace {

using model::MlpKind;
using model::NormSpec;
using model::PartKind;

// Mirrors nn/grouped_attention_part.cpp line by line.
struct AttentionMemory : AttentionSizes {
  using AttentionSizes::AttentionSizes;
  PartBytes bytes(Recompute mode) const;
};

PartBytes AttentionMemory::bytes(Recompute mode) const {
  const Sizes& sizes = *this;
  const int64_t small_gradients =
      norm_gradients(where.attention_norm, width) + after_gradients + qk_norm_gradients + sinks;
  const auto kernel = [&](bool backward) {
    const int64_t wide_sinks = sizes.precision == Precision::kBf16 ? sinks : 0;
    return sizes.kernels.attention(strategy.micro, strategy.seq_len, attention, sizes.precision,
                                   backward) +
           wide_sinks;
  };

  PartBytes bytes;
  const bool selective = mode == Recompute::kSelective;
  bytes.saved_input =
      statistics + qkv + qk_statistics + logsumexp + (selective ? 0 : qk) + after_statistics;
  // The gradient that a norm after attention hands on takes its input's place.
  bytes.saved_weight = attended + (selective ? 0 : normed) + projected;
  bytes.delayed = qkv + small_gradients + (selective ? normed : 0);

  // The way from the input to attention's output, keeping what the mode says.
  const auto make_saved = [&](HighWater& water, bool keep_statistics, bool keep_normed,
                              bool keep_qkv) {
    water.hold(normed + (keep_statistics ? statistics : 0));
    water.hold(qkv);
    water.pass(sizes.product(qkv_width, sizes.width));
    if (!keep_normed) water.drop(normed);
    water.hold(qk + (keep_statistics ? qk_statistics : 0));
    water.hold(attended + (keep_statistics ? logsumexp : 0));
    water.pass(kernel(false));
    if (!keep_normed) water.drop(qk);
    if (!keep_qkv) water.drop(qkv);
  };
  const bool kept = mode != Recompute::kFull;
  HighWater forward;
  make_saved(forward, kept, mode == Recompute::kNone, kept);
  forward.hold(projected);
  forward.hold(hidden + (kept ? after_statistics : 0));
  forward.pass(
      sizes.product(sizes.width, query_width, attention.out_bias && !where.attention_post_norm));
  bytes.forward_workspace =
      forward.above(hidden + (kept ? bytes.saved_input + bytes.saved_weight : 0));

  HighWater recompute;
  make_saved(recompute, true, true, true);
  recompute.hold(projected);
  recompute.pass(projected +
                 after_statistics);  // the norm's result, of which only statistics are kept
  recompute.hold(after_statistics);
  bytes.recompute_workspace = recompute.above(bytes.saved_input + bytes.saved_weight);

  HighWater backward;
  if (where.attention_post_norm) {
    backward.hold(after_gradients);
    backward.pass(
        sizes.kernels.norm_backward(sizes.tokens, sizes.width, *where.attention_post_norm));
    backward.drop(after_statistics);
  }
  backward.hold(attended);  // its gradient
  backward.pass(sizes.product(query_width, sizes.width));
  if (selective) backward.hold(qk);
  backward.hold(qkv + sinks);  // their gradients
  backward.pass(kernel(true));
  backward.drop(attended + logsumexp + qk);
  if (!has_qk_norm) {
    backward.drop(qkv);
  } else {
    const NormSpec heads{model::NormKind::kRmsNorm, 0.0, false};
    backward.hold(qk_norm_gradients);
    backward.pass(sizes.kernels.norm_backward(sizes.tokens * q_rows, q_norm_width, heads));
    backward.drop(qkv + qk_statistics);
  }
  backward.hold(hidden);  // the gradient of the normed input, then of the input
  backward.pass(sizes.product(sizes.width, qkv_width));
  if (where.attention_norm) {
    backward.hold(norm_gradients(where.attention_norm, width));
    backward.pass(sizes.kernels.norm_backward(sizes.tokens, sizes.width, *where.attention_norm));
  }
  if (selective) backward.hold(normed);
  bytes.backward_input_workspace = backward.above(hidden + bytes.delayed);

  // The larger of the two products; the second starts when the first has freed what it read.
  HighWater weight;
  weight.drop(
      projected);  // the part's own gradient: with a norm after it the products read another
  weight.pass(sizes.weight_product(sizes.width, query_width, attention.out_bias));
  weight.drop(hidden + attended);
  weight.pass(sizes.weight_product(qkv_width, sizes.width, attention.qkv_bias));
  bytes.backward_weight_workspace = weight.above(0);
  return bytes;
}

// Mirrors nn/mlp_part.cpp line by line.
PartBytes mlp_bytes(const model::ModelSpec& spec, const Strategy& strategy, int layer,
                    Recompute mode) {
  const model::LayerSpec& where = spec.layers[static_cast<size_t>(layer)];
  const model::MlpSpec& mlp = where.mlp;
  const Sizes sizes(spec, strategy);
  const int64_t hidden = sizes.hidden;
  const int64_t normed = where.mlp_norm ? hidden : 0;
  const int64_t projected = where.mlp_post_norm ? hidden : 0;
  const int64_t up_width = mlp.kind == MlpKind::kGated ? 2 * mlp.hidden : mlp.hidden;
  const int64_t up = sizes.activations(up_width);
  const int64_t act = sizes.activations(mlp.hidden);
  const int64_t statistics = norm_statistics(where.mlp_norm, sizes.tokens);
  const int64_t after_statistics = norm_statistics(where.mlp_post_norm, sizes.tokens);
  const int64_t before_gradients = norm_gradients(where.mlp_norm, spec.hidden);
  const int64_t after_gradients = norm_gradients(where.mlp_post_norm, spec.hidden);

  PartBytes bytes;
  const bool selective = mode == Recompute::kSelective;
  bytes.saved_input = statistics + after_statistics;
  bytes.saved_weight = up + (selective ? 0 : normed + act) + projected;
  bytes.delayed = before_gradients + after_gradients + (selective ? act + normed : 0);

  const auto make_saved = [&](HighWater& water, bool keep_statistics, bool keep_normed) {
    water.hold(normed + (keep_statistics ? statistics : 0));
    water.hold(up);
    water.pass(sizes.product(up_width, sizes.width));
    if (!keep_normed) water.drop(normed);
    water.hold(act);
  };
  const bool kept = mode != Recompute::kFull;
  HighWater forward;
  make_saved(forward, kept, mode == Recompute::kNone);
  if (!kept) forward.drop(up);
  forward.hold(projected);
  forward.hold(hidden + (kept ? after_statistics : 0));
  forward.pass(sizes.product(sizes.width, mlp.hidden, mlp.bias && !where.mlp_post_norm));
  bytes.forward_workspace =
      forward.above(hidden + (kept ? bytes.saved_input + bytes.saved_weight : 0));

  HighWater recompute;
  make_saved(recompute, true, true);
  recompute.hold(projected);
  recompute.pass(projected + after_statistics);
  recompute.hold(after_statistics);
  bytes.recompute_workspace = recompute.above(bytes.saved_input + bytes.saved_weight);

  HighWater backward;
  if (where.mlp_post_norm) {
    backward.hold(after_gradients);
    backward.pass(sizes.kernels.norm_backward(sizes.tokens, sizes.width, *where.mlp_post_norm));
    backward.drop(after_statistics);
  }
  backward.hold(act);  // its gradient; without a kept activation it takes that one's place
  backward.pass(sizes.product(mlp.hidden, sizes.width));
  if (!selective) backward.drop(act);
  backward.hold(hidden);
  backward.pass(sizes.product(sizes.width, up_width));
  if (where.mlp_norm) {
    backward.hold(before_gradients);
    backward.pass(sizes.kernels.norm_backward(sizes.tokens, sizes.width, *where.mlp_norm));
  }
  if (selective) backward.hold(normed);
  bytes.backward_input_workspace = backward.above(hidden + bytes.delayed);

  HighWater weight;
  weight.drop(projected);
  weight.pass(sizes.weight_product(sizes.width, mlp.hidden, mlp.bias));
  weight.drop(hidden + act);
  weight.pass(sizes.weight_product(up_width, sizes.width, mlp.bias));
  bytes.backward_weight_workspace = weight.above(0);
  return bytes;
}

// Mirrors nn/mtp_input_part.cpp line by line.
PartBytes mtp_input_bytes(const model::ModelSpec& spec, const Strategy& strategy) {
  const Sizes sizes(spec, strategy);
  const int64_t width = sizes.width;
  const int64_t statistics = norm_statistics(spec.final_norm, sizes.tokens);
  const int64_t gradients = norm_gradients(spec.final_norm, width);
  const int64_t norm_workspace = sizes.kernels.norm_backward(sizes.tokens, width, spec.final_norm);
  const int64_t joined = sizes.activations(2 * width);

  PartBytes bytes;
  bytes.saved_input = 2 * statistics;
  bytes.saved_weight = joined;
  bytes.delayed = sizes.hidden + 2 * gradients;  // of the embeddings and of the norms

  HighWater forward;
  forward.hold(sizes.hidden);  // embeddings
  forward.hold(joined + 2 * statistics);
  forward.drop(sizes.hidden);
  forward.hold(sizes.hidden);
  forward.pass(sizes.product(width, 2 * width));
  bytes.forward_workspace = forward.above(sizes.hidden + bytes.saved_input + bytes.saved_weight);

  HighWater backward;
  backward.hold(joined);  // its gradient
  backward.pass(sizes.product(2 * width, width));
  backward.hold(sizes.hidden + gradients);  // embeddings, then their gradient
  backward.pass(norm_workspace);
  backward.hold(sizes.hidden + gradients);
  backward.pass(norm_workspace);
  bytes.backward_input_workspace = backward.above(sizes.hidden + bytes.delayed);
  bytes.backward_weight_workspace = sizes.weight_product(width, 2 * width, false);
  return bytes;
}

}  // namespace

int64_t element_bytes(Precision precision) {
  return precision == Precision::kBf16 ? 2 : 4;
}

PartBytes part_bytes(const model::ModelSpec& spec, const Strategy& strategy, int part,
                     Recompute mode) {
  const model::PartSpec& where = spec.parts[static_cast<size_t>(part)];
  if (where.kind == PartKind::kMtpInput) return mtp_input_bytes(spec, strategy);
  if (spec.is_head(part)) {
    PartBytes bytes;
    bytes.saved_input = norm_statistics(spec.final_norm, strategy.tokens());
    return bytes;
  }
  if (where.kind == PartKind::kAttention) {
    const bool latent = spec.layers[static_cast<size_t>(where.layer)].attention.latent.has_value();
    return latent ? latent_attention_bytes(spec, strategy, where.layer, mode)
                  : AttentionMemory(spec, strategy, where.layer).bytes(mode);
  }
  if (where.kind == PartKind::kMlp) return mlp_bytes(spec, strategy, where.layer, mode);
  if (where.layer >= 0) return moe_part_bytes(spec, strategy, part, mode);
  PartBytes bytes;
  if (where.kind == PartKind::kEmbedding)
    bytes.backward_weight_workspace =
        strategy.kernels.embedding_gradient(strategy.tokens(), spec.vocab_size);
  return bytes;
}

int64_t batch_bytes(const model::ModelSpec& spec, const Strategy& strategy) {
  return (3 + 2 * spec.num_mtp_layers) * tensor_bytes(8 * strategy.tokens());
}

int64_t hidden_bytes(const model::ModelSpec& spec, const Strategy& strategy, int part) {
  const Sizes sizes(spec, strategy);
  const PartKind kind = spec.parts[static_cast<size_t>(part)].kind;
  if (kind != PartKind::kDispatch && kind != PartKind::kExperts)
    return sizes.matrix(spec.tensor.count(sizes.tokens), sizes.width);
  return sizes.matrix(expert_rows(spec, strategy, part), sizes.width);
}

int64_t parameter_gradient_bytes(const model::ModelSpec& spec, int part) {
  int64_t sum = 0;
  for (const model::ParameterSpec& parameter : spec.parameters) {
    if (parameter.part == part) sum += parameter.numel();
  }
  return tensor_bytes(4 * sum);
}

int64_t optimizer_state_bytes(const model::ModelSpec& spec, const Strategy& strategy, int part) {
  bool is_cut = false;
  int64_t sum = 0;
  for (size_t i = 0; i < spec.parameters.size(); ++i) {
    const model::ParameterSpec& parameter = spec.parameters[i];
    if (parameter.part != part) continue;
    is_cut = is_cut || parameter.shard.has_value();
    sum += 4 * (strategy.state_floats.empty() ? 2 : strategy.state_floats[i]) * parameter.numel();
  }
  if (is_cut || strategy.optimizer_state_bytes.empty()) return sum;
  return strategy.optimizer_state_bytes[static_cast<size_t>(part)];
}

// Mirrors nn/head_part.cpp.
int64_t loss_workspace_bytes(const model::ModelSpec& spec, const Strategy& strategy,
                             bool with_norm) {
  const Sizes sizes(spec, strategy);
  const int64_t rows = strategy.loss_chunk_rows > 0 ? strategy.loss_chunk_rows
                                                    : choose_loss_chunk_rows(spec, strategy);
  HighWater water;
  if (with_norm) water.hold(sizes.hidden + norm_statistics(spec.final_norm, sizes.tokens));
  water.hold(sizes.hidden);
  water.pass(sizes.kernels.cross_entropy(std::min(rows, sizes.tokens), spec.vocab_size, spec.hidden,
                                         sizes.precision));
  water.hold(norm_gradients(spec.final_norm, spec.hidden));
  water.pass(sizes.kernels.norm_backward(sizes.tokens, spec.hidden, spec.final_norm));
  return water.above(sizes.hidden);
}

namespace {

/// States of elements [first, last) of a part.
int64_t state_bytes_of(const model::ModelSpec& spec, const Strategy& strategy, int part,
                       int64_t first, int64_t last) {
  int64_t bytes = 0;
  int64_t begin = 0;
  for (size_t i = 0; i < spec.parameters.size(); ++i) {
    if (spec.parameters[i].part != part) continue;
    const int64_t end = begin + spec.parameters[i].numel();
    const int64_t floats = strategy.state_floats.empty() ? 2 : strategy.state_floats[i];
    bytes += 4 * floats * std::max<int64_t>(std::min(end, last) - std::max(begin, first), 0);
    begin = end;
  }
  return bytes;
}

}  // namespace

ResidentBytes resident_bytes(const model::ModelSpec& spec, const Strategy& strategy,
                             const Program& program) {
  ResidentBytes bytes;
  const bool copies = strategy.precision == Precision::kBf16;
  const bool shares = strategy.parallel.zero > 0 && !program.slices.empty();
  int64_t parameters = 0;
  for (const model::ParameterSpec& parameter : spec.parameters) {
    if (!program.has(parameter.part)) continue;
    parameters += parameter.numel();
    if (copies && !(shares && gathers_for_use(spec, strategy, parameter.part)))
      bytes.compute_weights += 2 * parameter.numel();
  }
  if (!shares) bytes.master_weights = 4 * parameters;
  for (int part = 0; part < static_cast<int>(spec.parts.size()); ++part) {
    const auto at = static_cast<size_t>(part);
    if (!program.has(part)) continue;
    int64_t all = optimizer_state_bytes(spec, strategy, part);
    if (shares) {
      const std::vector<int64_t>& bounds = program.slices[at];
      const auto slice = static_cast<size_t>(program.slice_of(part));
      const int64_t mine = bounds[slice + 1] - bounds[slice];
      bytes.master_weights += 4 * (shares_masters(spec, strategy, part) ? mine : bounds.back());
      all = state_bytes_of(spec, strategy, part, bounds[slice], bounds[slice + 1]);
    }
    bytes.optimizer_states += all;
  }
  if (strategy.offload_optimizer) std::swap(bytes.optimizer_states, bytes.host_optimizer_states);
  bytes.libraries = strategy.kernels.library_bytes;
  // One table per distinct rotary embedding, shared by its layers: float32 cosines and sines of half
  // the rotated dimensions at every position of a sequence.
  std::vector<model::RotarySpec> tables;
  for (int part = 0; part < static_cast<int>(spec.parts.size()); ++part) {
    const int number = spec.parts[static_cast<size_t>(part)].layer;
    if (number < 0 || !program.has(part)) continue;
    const model::LayerSpec& layer = spec.layers[static_cast<size_t>(number)];
    if (!layer.attention.rotary) continue;
    const model::RotarySpec& rotary = *layer.attention.rotary;
    if (std::ranges::find(tables, rotary) != tables.end()) continue;
    tables.push_back(rotary);
    bytes.tables += 2 * tensor_bytes(strategy.seq_len * rotary.dim / 2 * 4);
  }
  return bytes;
}

}  // namespace trireme::plan
