// Mirrors Context in nn/grouped_attention_part.cpp line by line.
#include "trireme/plan/context_memory.h"

#include "trireme/plan/part_memory.h"

namespace trireme::plan {

namespace {

struct ContextMemory : AttentionSizes {
  using AttentionSizes::AttentionSizes;
  ContextBytes bytes_of(Recompute mode, int64_t index) const;
};

ContextBytes ContextMemory::bytes_of(Recompute mode, int64_t index) const {
  const Sizes& sizes = *this;
  const int64_t cp = strategy.parallel.cp;
  // A rank has two pieces of 2 cp; its queries see those up to its second one, and send gradients back for as many.
  const int64_t piece = sizes.tokens / 2;
  const int64_t seen_pieces = 2 * cp - index;
  const auto keys_of = [&](int64_t rows) { return sizes.matrix(rows, 2 * kv_width); };
  const int64_t seen = keys_of(seen_pieces * piece);
  const int64_t tile_sums = tensor_bytes(4 * piece * attention.num_heads);
  const auto kernel = [&](bool backward) {
    const int64_t wide_sinks = sizes.precision == Precision::kBf16 ? sinks : 0;
    return sizes.kernels.attention(strategy.micro, seen_pieces * strategy.seq_len / (2 * cp),
                                   attention, sizes.precision, backward) +
           wide_sinks;
  };

  const bool kept = mode != Recompute::kFull;
  const bool selective = mode == Recompute::kSelective;
  ContextBytes bytes;
  bytes.between = kept ? (selective ? qk : 0) : qkv + qk;
  // Of normed queries and keys, keys alone where the rest is made again.
  bytes.scored = has_qk_norm ? (selective ? sizes.activations(kv_width) : qk) : qkv;
  bytes.projected = statistics + qk_statistics + (has_qk_norm ? qkv : 0);
  bytes.normed = selective ? 0 : normed;
  bytes.softmax = logsumexp + after_statistics;
  bytes.attended = attended + projected;
  bytes.keys = keys_of(cp * sizes.tokens);
  bytes.sent = seen;
  bytes.received = keys_of((cp + index + 1) * piece);
  bytes.delayed_1 = qkv + after_gradients + sinks;
  bytes.delayed_2 =
      norm_gradients(where.attention_norm, width) + qk_norm_gradients + (selective ? normed : 0);

  const auto project = [&](bool keep_statistics, bool keep_normed) {
    HighWater water;
    water.hold(normed + (keep_statistics ? statistics : 0));
    water.hold(qkv);
    water.pass(sizes.product(qkv_width, sizes.width));
    if (!keep_normed) water.drop(normed);
    water.hold(qk + (keep_statistics ? qk_statistics : 0));
    if (has_qk_norm && selective) water.hold(bytes.scored);
    return water;
  };
  const int64_t of_projection = bytes.scored + bytes.projected + bytes.normed;
  bytes.forward_1 =
      project(kept, kept && !selective).above(bytes.between + (kept ? of_projection : 0));
  bytes.recompute_1 = project(true, true).above(of_projection);

  const auto attend = [&](bool keep_statistics) {
    HighWater water;
    water.hold(attended + (keep_statistics ? logsumexp : 0));
    water.hold(seen);
    water.pass(kernel(false) + (keep_statistics ? tile_sums : 0));
    water.drop(seen);
    return water;
  };
  HighWater forward = attend(kept);
  forward.drop(bytes.between);
  forward.hold(projected);
  forward.hold(hidden + (kept ? after_statistics : 0));
  forward.pass(
      sizes.product(sizes.width, query_width, attention.out_bias && !where.attention_post_norm));
  bytes.forward_2 = forward.above(hidden + (kept ? bytes.softmax + bytes.attended : 0));

  HighWater again = attend(true);
  again.hold(projected);
  again.pass(projected + after_statistics);
  again.hold(after_statistics);
  bytes.recompute_2 = again.above(bytes.softmax + bytes.attended);

  HighWater first;
  if (where.attention_post_norm) {
    first.hold(after_gradients);
    first.pass(sizes.kernels.norm_backward(sizes.tokens, sizes.width, *where.attention_post_norm));
    first.drop(after_statistics);
  }
  first.hold(attended);  // its gradient
  first.pass(sizes.product(query_width, sizes.width));
  if (selective) first.hold(qk);
  first.hold(qkv + sinks);  // their gradients
  first.hold(seen);         // keys and values in order
  first.hold(seen);         // their gradients
  // The keys of the piece from the front are added to what the one from the back has left.
  first.pass(kernel(true) + 2 * tile_sums + keys_of((index + 1) * piece) + sinks);
  first.drop(attended + seen + logsumexp + (has_qk_norm ? qk : qkv));
  first.hold(seen);  // as they are sent
  bytes.backward_1 = first.above(bytes.delayed_1 + bytes.sent);

  const auto projection_backward = [&](HighWater& water) {
    if (has_qk_norm) {
      const model::NormSpec heads{model::NormKind::kRmsNorm, 0.0, false};
      water.hold(qk_norm_gradients);
      water.pass(sizes.kernels.norm_backward(sizes.tokens * q_rows, q_norm_width, heads));
      water.drop(qkv + qk_statistics);
    }
    water.hold(hidden);  // the gradient of the normed input, then of the input
    water.pass(sizes.product(sizes.width, qkv_width));
    if (where.attention_norm) {
      water.hold(norm_gradients(where.attention_norm, width));
      water.pass(sizes.kernels.norm_backward(sizes.tokens, sizes.width, *where.attention_norm));
    }
    if (selective) water.hold(normed);
  };
  HighWater second;
  // Sums in float32, and of one rank's what is added, widened.
  const int64_t wide = tensor_bytes(4 * sizes.tokens * 2 * kv_width);
  second.pass(sizes.precision == Precision::kBf16 ? 2 * wide : wide);
  projection_backward(second);
  bytes.backward_2 = second.above(hidden + bytes.delayed_2);
  if (strategy.parallel.cp_kind != ContextKind::kRing) return bytes;

  // A call of the kernel has a piece of queries and a piece of keys, its results beside it, and what float32 sums of them take.
  const bool low = sizes.precision == Precision::kBf16;
  const auto floats_of = [&](int64_t columns) { return tensor_bytes(4 * piece * columns); };
  const auto piece_kernel = [&](bool backward) {
    return sizes.kernels.attention(strategy.micro, strategy.seq_len / (2 * cp), attention,
                                   sizes.precision, backward);
  };
  bytes.own_keys = keys_of(sizes.tokens);
  bytes.ring_sums = tensor_bytes(4 * sizes.tokens * query_width) + logsumexp;
  const int64_t d_queries = tensor_bytes(4 * sizes.tokens * query_width);
  const int64_t d_keys = tensor_bytes(4 * sizes.tokens * 2 * kv_width);
  bytes.ring_gradients = attended + d_queries + d_keys + (selective ? qk : 0);  // made again
  for (int64_t round = 0; round < cp; ++round) {
    const int64_t to = (index - round + cp) % cp;
    const int64_t from = (index + round) % cp;
    bytes.ring_sent.push_back(keys_of((to >= index ? 2 : 1) * piece));
    bytes.ring_received.push_back(keys_of((index >= from ? 2 : 1) * piece));
  }
  HighWater step;
  step.hold(sizes.matrix(piece, query_width) + tile_sums);
  step.pass(piece_kernel(false));
  step.pass(3 * tile_sums + (low ? floats_of(query_width) : 0));
  bytes.ring_step = step.above(0);

  HighWater last;
  last.pass(bytes.ring_step);
  last.hold(attended);
  last.drop(bytes.ring_sums + bytes.between);
  last.hold(projected);
  last.hold(hidden + (kept ? logsumexp + after_statistics : 0));
  last.pass(
      sizes.product(sizes.width, query_width, attention.out_bias && !where.attention_post_norm));
  bytes.ring_last = last.above(hidden + (kept ? bytes.softmax + bytes.attended : 0));

  HighWater last_again;
  last_again.pass(bytes.ring_step);
  last_again.hold(attended);
  last_again.drop(bytes.ring_sums);
  last_again.hold(logsumexp + projected);
  last_again.pass(projected + after_statistics);
  last_again.hold(after_statistics);
  bytes.ring_last_again = last_again.above(bytes.softmax + bytes.attended);

  const int64_t tile_gradients =
      sizes.matrix(piece, query_width) + keys_of(piece) + tile_sums + sinks +
      std::max(piece_kernel(true), low ? floats_of(std::max(query_width, 2 * kv_width)) : 0);
  HighWater head;
  if (where.attention_post_norm) {
    head.hold(after_gradients);
    head.pass(sizes.kernels.norm_backward(sizes.tokens, sizes.width, *where.attention_post_norm));
    head.drop(after_statistics);
  }
  head.hold(attended);
  head.pass(sizes.product(query_width, sizes.width));
  if (selective) head.hold(qk);
  head.hold(qkv + sinks);
  head.hold(d_queries + d_keys + bytes.own_keys);
  head.pass(tile_gradients);
  bytes.ring_backward_first = head.above(bytes.delayed_1 + bytes.ring_gradients);

  HighWater between;
  between.hold(d_keys);  // sums of one rank's
  between.pass(tile_gradients);
  between.pass(keys_of(2 * piece) + (low ? d_keys : 0));
  bytes.ring_backward_step = between.above(0);

  HighWater end;
  end.pass(low ? d_keys : 0);  // what came last, widened
  end.drop(bytes.ring_gradients + logsumexp + bytes.scored);
  projection_backward(end);
  bytes.backward_2 = end.above(hidden + bytes.delayed_2);
  return bytes;
}

}  // namespace

ContextBytes context_bytes(const model::ModelSpec& spec, const Strategy& strategy, int part,
                           Recompute mode, int64_t index) {
  return ContextMemory(spec, strategy, spec.parts[static_cast<size_t>(part)].layer)
      .bytes_of(mode, index);
}

}  // namespace trireme::plan
