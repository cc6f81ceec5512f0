// Mirrors nn/latent_attention_part.cpp line by line.
#include "trireme/plan/part_memory.h"

namespace trireme::plan {

PartBytes latent_attention_bytes(const model::ModelSpec& spec, const Strategy& strategy, int layer,
                                 Recompute mode) {
  const model::LayerSpec& where = spec.layers[static_cast<size_t>(layer)];
  const model::AttentionSpec& attention = where.attention;
  const model::LatentSpec& latent = *attention.latent;
  const Sizes sizes(spec, strategy);
  const bool compressed = latent.query_rank > 0;
  const int64_t heads = attention.num_heads;
  const int64_t query_width = heads * attention.head_dim;
  const int64_t query_inner = compressed ? latent.query_rank : spec.hidden;
  const int64_t kv_width = heads * (latent.nope_dim + attention.value_dim);
  const int64_t down_width = latent.query_rank + latent.kv_rank + latent.rope_dim;
  const int64_t attended_width = heads * attention.value_dim;

  const int64_t hidden = sizes.hidden;
  const int64_t normed = where.attention_norm ? hidden : 0;
  const int64_t down = sizes.activations(down_width);
  const int64_t query_latent = sizes.activations(latent.query_rank);
  const int64_t kv_latent = sizes.activations(latent.kv_rank);
  const int64_t q = sizes.activations(query_width);  // and the keys, copied together
  const int64_t kv = sizes.activations(kv_width);
  const int64_t attended = sizes.activations(attended_width);
  const int64_t logsumexp = tensor_bytes(4 * sizes.tokens * heads);
  const int64_t statistics = norm_statistics(where.attention_norm, sizes.tokens);
  const int64_t latent_statistics = tensor_bytes(4 * sizes.tokens);
  const int64_t query_statistics = compressed ? latent_statistics : 0;
  const int64_t latent_gradients = tensor_bytes(4 * latent.kv_rank);
  const int64_t query_gradients = tensor_bytes(4 * latent.query_rank);
  const int64_t before_gradients = norm_gradients(where.attention_norm, spec.hidden);
  const model::NormSpec rms;
  const auto kernel = [&](bool backward) {
    return sizes.kernels.attention(strategy.micro, strategy.seq_len, attention, sizes.precision,
                                   backward);
  };

  PartBytes bytes;
  const bool selective = mode == Recompute::kSelective;
  const int64_t all_normed = normed + query_latent + kv_latent;
  bytes.saved_input = statistics + down + query_statistics + latent_statistics + q + kv + logsumexp;
  bytes.saved_weight = attended + (selective ? 0 : all_normed);
  bytes.delayed = q + kv + down + latent_gradients + query_gradients + before_gradients +
                  (selective ? all_normed : 0);

  // The way from the input to attention's output, keeping what the mode says.
  const auto make_saved = [&](HighWater& water, bool keep, bool keep_normed) {
    water.hold(normed + (keep ? statistics : 0));
    water.hold(down);
    water.pass(sizes.product(down_width, sizes.width));
    if (compressed) {
      if (!keep_normed) water.drop(normed);
      water.hold(query_latent + (keep ? query_statistics : 0));
    }
    water.hold(q);
    water.pass(sizes.product(query_width, query_inner));
    if (!keep_normed) water.drop(compressed ? query_latent : normed);
    water.hold(kv_latent + (keep ? latent_statistics : 0));
    water.hold(kv);
    water.pass(sizes.product(kv_width, latent.kv_rank));
    if (!keep_normed) water.drop(kv_latent);
    water.hold(attended + (keep ? logsumexp : 0));
    water.hold(q);  // the keys
    if (!keep) water.drop(down);
    water.pass(kernel(false));
    water.drop(q);
    if (!keep) water.drop(q + kv);
  };
  const bool kept = mode != Recompute::kFull;
  HighWater forward;
  make_saved(forward, kept, mode == Recompute::kNone);
  forward.hold(hidden);
  forward.pass(sizes.product(sizes.width, attended_width));
  bytes.forward_workspace =
      forward.above(hidden + (kept ? bytes.saved_input + bytes.saved_weight : 0));

  HighWater recompute;
  make_saved(recompute, true, true);
  bytes.recompute_workspace = recompute.above(bytes.saved_input + bytes.saved_weight);

  HighWater backward;
  backward.hold(attended);  // its gradient
  backward.pass(sizes.product(attended_width, sizes.width));
  backward.hold(q);           // the keys
  backward.hold(q + kv + q);  // gradients of queries, keys | values, keys
  backward.pass(kernel(true));
  backward.drop(attended + q + logsumexp + q + kv);
  backward.hold(down);  // its gradient
  backward.drop(q);
  // A compressed vector's gradient, then that of what its norm read, which goes to `down`'s.
  const auto through_norm = [&](int64_t vector, int64_t rank, int64_t out, int64_t gradients) {
    backward.hold(vector);
    backward.pass(sizes.product(rank, out));
    backward.hold(gradients);
    backward.pass(sizes.kernels.norm_backward(sizes.tokens, rank, rms));
    if (!selective) backward.drop(vector);  // else the vector itself, made again
  };
  through_norm(kv_latent, latent.kv_rank, kv_width, latent_gradients);
  if (compressed) through_norm(query_latent, latent.query_rank, query_width, query_gradients);
  backward.drop(down + latent_statistics + query_statistics);
  backward.hold(hidden);  // the gradient of the normed input, then of the input
  backward.pass(sizes.product(sizes.width, down_width));
  if (!compressed) backward.pass(sizes.product(sizes.width, query_width));
  if (where.attention_norm) {
    backward.hold(before_gradients);
    backward.pass(sizes.kernels.norm_backward(sizes.tokens, sizes.width, *where.attention_norm));
  }
  if (selective) backward.hold(normed);
  bytes.backward_input_workspace = backward.above(hidden + bytes.delayed);

  // The largest of the products; each starts when the one before has freed what it read.
  HighWater weight;
  weight.pass(sizes.weight_product(sizes.width, attended_width, attention.out_bias));
  weight.drop(hidden + attended);
  weight.pass(sizes.weight_product(kv_width, latent.kv_rank, false));
  weight.drop(kv + kv_latent);
  weight.pass(sizes.weight_product(query_width, query_inner, false));
  weight.drop(q + query_latent);
  weight.pass(sizes.weight_product(down_width, sizes.width, attention.qkv_bias));
  bytes.backward_weight_workspace = weight.above(0);
  return bytes;
}

}  // namespace trireme::plan
