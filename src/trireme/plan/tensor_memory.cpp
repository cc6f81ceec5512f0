#include "trireme/plan/tensor_memory.h"

#include "trireme/plan/part_memory.h"

namespace trireme::plan {

namespace {

/// What sum_in_order() holds beside its result.
int64_t sum_workspace(const Sizes& sizes, int64_t rows) {
  return sizes.precision == Precision::kBf16 ? tensor_bytes(4 * rows * sizes.width) : 0;
}

/// Places of tokens in a table, and masks over them.
int64_t places_bytes(int64_t tokens) {
  return tensor_bytes(8 * tokens) + 2 * tensor_bytes(tokens);
}

}  // namespace

model::ModelSpec products_of(const model::ModelSpec& spec) {
  model::ModelSpec products = spec;
  for (model::LayerSpec& layer : products.layers) {
    layer.attention_norm.reset();
    layer.attention_post_norm.reset();
    layer.mlp_norm.reset();
    layer.mlp_post_norm.reset();
  }
  return products;
}

SplitBytes split_bytes(const model::ModelSpec& spec, const model::ModelSpec& products,
                       const Strategy& strategy, int part, Recompute mode) {
  const model::PartSpec& where = spec.parts[static_cast<size_t>(part)];
  const model::LayerSpec& layer = spec.layers[static_cast<size_t>(where.layer)];
  const bool attention = where.kind == model::PartKind::kAttention;
  const auto& before = attention ? layer.attention_norm : layer.mlp_norm;
  const auto& after = attention ? layer.attention_post_norm : layer.mlp_post_norm;
  const Sizes sizes(spec, strategy);
  const int64_t own = spec.tensor.count(sizes.tokens);

  SplitBytes bytes;
  bytes.rows = sizes.matrix(own, sizes.width);
  bytes.all = sizes.hidden;
  bytes.statistics = norm_statistics(before, own);
  bytes.products = part_bytes(products, strategy, part, mode);
  const int64_t sum = sum_workspace(sizes, own);
  if (after) {
    bytes.projected = bytes.rows + norm_statistics(after, own);
    bytes.begin_backward_workspace =
        norm_gradients(after, sizes.width) + sizes.kernels.norm_backward(own, sizes.width, *after);
  }
  HighWater finish;
  finish.hold(bytes.rows);
  finish.pass(sum);
  if (after) finish.hold(bytes.projected);
  bytes.finish_workspace = finish.above(bytes.rows + bytes.projected);

  HighWater finish_backward;
  finish_backward.hold(bytes.rows);
  finish_backward.pass(sum);
  if (before)
    finish_backward.pass(norm_gradients(before, sizes.width) +
                         sizes.kernels.norm_backward(own, sizes.width, *before));
  bytes.finish_backward_workspace = finish_backward.above(bytes.rows);
  return bytes;
}

SplitBytes split_embedding_bytes(const model::ModelSpec& spec, const Strategy& strategy) {
  const Sizes sizes(spec, strategy);
  const int64_t own = spec.tensor.count(sizes.tokens);
  SplitBytes bytes;
  bytes.rows = sizes.matrix(own, sizes.width);
  bytes.all = sizes.hidden;
  bytes.products.forward_workspace = places_bytes(sizes.tokens);
  HighWater finish;
  finish.hold(bytes.rows);
  finish.pass(sum_workspace(sizes, own));
  if (spec.learned_positions) finish.pass(bytes.rows);
  bytes.finish_workspace = finish.above(bytes.rows);
  const int64_t table =
      strategy.kernels.embedding_gradient(sizes.tokens, spec.vocab_size / spec.tensor.ranks);
  bytes.products.backward_weight_workspace = std::max(
      spec.learned_positions ? strategy.kernels.embedding_gradient(sizes.tokens, spec.max_positions)
                             : 0,
      places_bytes(sizes.tokens) + table);
  return bytes;
}

SplitLossBytes split_loss_bytes(const model::ModelSpec& spec, const Strategy& strategy,
                                int64_t rows) {
  const Sizes sizes(spec, strategy);
  const int64_t own = spec.tensor.count(sizes.tokens);
  const int64_t vocabulary = spec.vocab_size / spec.tensor.ranks;
  const bool capped = spec.logit_softcap > 0.0;
  SplitLossBytes bytes;
  bytes.logits = tensor_bytes(4 * rows * vocabulary);
  bytes.statistics = tensor_bytes(4 * 3 * rows);
  bytes.all_statistics = tensor_bytes(4 * 3 * rows * spec.tensor.ranks);
  bytes.norm_statistics = norm_statistics(spec.final_norm, own);

  HighWater measure;
  measure.pass(sizes.kernels.product(rows, vocabulary, sizes.width, sizes.precision));
  measure.hold(places_bytes(rows));
  if (capped) measure.pass(bytes.logits);
  bytes.measure_workspace = measure.above(0);

  HighWater spread;
  if (capped) spread.pass(bytes.logits);  // the cap's slope
  if (sizes.precision == Precision::kBf16)
    spread.hold(tensor_bytes(2 * rows * vocabulary));  // the logits' gradient, rounded
  spread.hold(places_bytes(rows));
  spread.pass(sizes.kernels.product(rows, sizes.width, vocabulary, sizes.precision));
  spread.pass(sizes.kernels.weight_product(rows, vocabulary, sizes.width, sizes.precision));
  bytes.spread_workspace = spread.above(0);

  HighWater finish;
  finish.hold(sizes.matrix(own, sizes.width));
  finish.pass(sum_workspace(sizes, own));
  finish.pass(norm_gradients(spec.final_norm, sizes.width) +
              sizes.kernels.norm_backward(own, sizes.width, spec.final_norm));
  bytes.finish_workspace = finish.above(sizes.matrix(own, sizes.width));
  return bytes;
}

}  // namespace trireme::plan
