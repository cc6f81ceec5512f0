#include "trireme/nn/grouped_attention_part.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>

#include "trireme/base/error.h"
#include "trireme/kernels/ops.h"
#include "trireme/nn/attention_tiles.h"
#include "trireme/nn/gathered_keys.h"
#include "trireme/nn/ring_attention.h"

namespace trireme::nn {

struct GroupedAttentionPart::Saved {
  NormStatistics statistics;
  at::Tensor normed;  ///< [N, d]
  at::Tensor qkv;     ///< [N, W]; rotated unless q and k are normed
  at::Tensor qk;      ///< [N, (Hq + Hkv) head_dim], normed and rotated; undefined without qk_norm
  at::Tensor q_rstd;
  at::Tensor k_rstd;
  at::Tensor attended;   ///< [N, Hq head_dim]
  at::Tensor logsumexp;  ///< [B, Hq, T]
  at::Tensor projected;  ///< [N, d], what the norm after attention reads; undefined without one
  NormStatistics after_statistics;
};

class GroupedAttentionPart::Graph : public ProductsGraph {
 public:
  Graph(const GroupedAttentionPart& part, at::Tensor x, const BatchTensors& batch, Saved saved)
      : part_(part), x_(std::move(x)), batch_(batch), saved_(std::move(saved)) {}

  void recompute() override {
    if (saved_.qkv.defined()) return;
    part_.make_saved(x_.flatten(0, 1), batch_, true, true, true, saved_);
    if (!part_.norms_.after) return;
    saved_.projected = part_.out_.forward(saved_.attended);
    part_.norms_.after->forward(saved_.projected, true, saved_.after_statistics);
  }

  void drop_input() override { x_.reset(); }
  void give_input(at::Tensor input) override { x_ = std::move(input); }

  std::vector<at::Tensor> kept() const override {
    return {saved_.statistics.mean,
            saved_.statistics.rstd,
            saved_.normed,
            saved_.qkv,
            saved_.qk,
            saved_.q_rstd,
            saved_.k_rstd,
            saved_.attended,
            saved_.logsumexp,
            saved_.projected,
            saved_.after_statistics.mean,
            saved_.after_statistics.rstd};
  }

  at::Tensor backward_input(at::Tensor grad_output) override {
    const model::AttentionSpec& spec = part_.attention_;
    const int64_t rows = x_.size(0);
    const int64_t length = x_.size(1);
    at::Tensor d_attended = backward_output(grad_output);
    {
      const Projected in = part_.split(saved_.qkv, saved_.qk, rows, length);
      Projected d = part_.split(d_qkv_, {}, rows, length);
      const std::vector<int64_t> shape = {rows, length, spec.num_heads, spec.head_dim};
      kernels::attention_backward(d_attended.view(shape), in.q, in.k, in.v,
                                  saved_.attended.view(shape), saved_.logsumexp,
                                  part_.options(&batch_), d.q, d.k, d.v, d_sinks_);
    }
    d_attended.reset();
    drop_scored();
    return backward_projection(grad_output);
  }

  void backward_weight(GradientSink& sink) override {
    part_.out_.backward_weight(grad_output_, saved_.attended, sink);
    grad_output_.reset();
    saved_.attended.reset();
    part_.qkv_.backward_weight(d_qkv_, saved_.normed, sink);
    d_qkv_.reset();
    saved_.normed.reset();
    if (part_.norms_.before) part_.norms_.before->add_gradients(norm_gradients_, sink, 0);
    if (part_.norms_.after)
      part_.norms_.after->add_gradients(after_gradients_, sink, part_.norms_.after_place);
    norm_gradients_ = after_gradients_ = {};
    if (d_sinks_.defined()) add_to_sink(sink, part_.place_of_sinks_, d_sinks_);
    d_sinks_.reset();
    if (part_.has_qk_norm()) {
      add_to_sink(sink, part_.place_of_q_norm_, d_q_norm_);
      add_to_sink(sink, part_.place_of_q_norm_ + 1, d_k_norm_);
      d_q_norm_.reset();
      d_k_norm_.reset();
    }
  }

 protected:
  /// The gradient of attention's result; makes room for those of queries, keys and values.
  at::Tensor backward_output(const at::Tensor& grad_output) {
    TRIREME_CHECK(saved_.qkv.defined(), "{}: backward before recompute", part_.spec_.name);
    const model::AttentionSpec& spec = part_.attention_;
    const at::Tensor residual = grad_output.flatten(0, 1);
    grad_output_ = residual;
    if (part_.norms_.after) {
      grad_output_ = part_.norms_.after->backward_over_input(
          residual, std::move(saved_.projected), saved_.after_statistics, after_gradients_);
      saved_.after_statistics = {};
    }

    at::Tensor d_attended = part_.out_.backward_input(grad_output_);
    if (part_.has_qk_norm() && !saved_.qk.defined()) {
      saved_.qk = part_.normed_qk(saved_.qkv, false, saved_.q_rstd, saved_.k_rstd);
      part_.turn(saved_.qk, batch_.positions, batch_.length(), false);
    }
    d_qkv_ = at::empty({d_attended.size(0), part_.qkv_.out_features()}, d_attended.options());
    if (spec.sinks) d_sinks_ = at::empty({spec.num_heads}, d_qkv_.options().dtype(at::kFloat));
    return d_attended;
  }

  /// What only attention's backward reads.
  void drop_scored() {
    saved_.logsumexp.reset();
    saved_.qk.reset();
    if (!part_.has_qk_norm()) saved_.qkv.reset();
  }

  /// From the gradients of queries, keys and values on.
  at::Tensor backward_projection(const at::Tensor& grad_output) {
    const model::AttentionSpec& spec = part_.attention_;
    const std::vector<int64_t> sizes = x_.sizes().vec();
    const at::Tensor x = x_.flatten(0, 1);
    const at::Tensor residual = grad_output.flatten(0, 1);
    part_.turn(d_qkv_, batch_.positions, batch_.length(), true);
    if (part_.has_qk_norm()) {
      qk_norm_backward(part_.q_norm_, 0, spec.num_heads, saved_.q_rstd, d_q_norm_);
      qk_norm_backward(part_.k_norm_, spec.num_heads, spec.num_kv_heads, saved_.k_rstd, d_k_norm_);
      saved_.qkv.reset();
      saved_.q_rstd.reset();
      saved_.k_rstd.reset();
    }

    at::Tensor dx = part_.qkv_.backward_input(d_qkv_);
    if (part_.norms_.before) {
      dx = part_.norms_.before->backward(dx, x, saved_.statistics, residual, norm_gradients_);
      NormStatistics unused;
      if (!saved_.normed.defined()) saved_.normed = part_.norms_.before->forward(x, false, unused);
    } else {
      if (part_.scope_ == PartScope::kWhole) dx.add_(residual);
      saved_.normed = x;
    }
    saved_.statistics = {};
    x_.reset();
    return dx.view(sizes);
  }

  /// The norm of query or key heads, backward in place in d_qkv.
  void qk_norm_backward(const at::Tensor& weight, int64_t first, int64_t count,
                        const at::Tensor& rstd, at::Tensor& dweight) {
    const at::Tensor d = part_.normed_heads(d_qkv_, first, count);
    dweight = at::empty({weight.size(0)}, weight.options().dtype(at::kFloat));
    kernels::rms_norm_backward(d, part_.normed_heads(saved_.qkv, first, count), weight, rstd, d,
                               false, dweight, false, part_.qk_norm_offset());
  }

  const GroupedAttentionPart& part_;
  at::Tensor x_;
  const BatchTensors& batch_;
  Saved saved_;
  at::Tensor grad_output_;
  at::Tensor d_qkv_;
  NormGradients norm_gradients_;
  NormGradients after_gradients_;
  at::Tensor d_q_norm_;
  at::Tensor d_k_norm_;
  at::Tensor d_sinks_;
};

class GroupedAttentionPart::Context final : public Graph, public ContextGraph {
 public:
  Context(const GroupedAttentionPart& part, at::Tensor x, const BatchTensors& batch, Saved saved,
          SaveMode mode)
      : Graph(part, std::move(x), batch, std::move(saved)),
        mode_(mode),
        sizes_(x_.sizes().vec()),
        options_(x_.options()) {
    // Packed again when the norm's weights may not be there (ZeRO 3).
    if (mode_ == SaveMode::kSelective && part_.has_qk_norm()) normed_keys_ = projected().k.clone();
  }

  ContextGraph* context() override { return this; }

  void recompute() override { part_.make_projection(x_.flatten(0, 1), batch_, true, true, saved_); }

  at::Tensor backward_input(at::Tensor grad_output) override {
    return backward_projection(grad_output);
  }

  int64_t packed_numel() const override { return rows() * length() * width(); }

  void pack_keys(const at::Tensor& keys) const override {
    const Projected in = projected();
    const at::Tensor to = packed(keys, length());
    to.select(2, 0).copy_(normed_keys_.defined() ? normed_keys_ : in.k);
    to.select(2, 1).copy_(in.v);
  }

  at::Tensor attend(const at::Tensor& all) override {
    attention_over(all, mode_ != SaveMode::kInputOnly);
    return output();
  }

  void attend_again(const at::Tensor& all) override {
    attention_over(all, true);
    output_again();
  }

  void begin_ring() override { ring_sums_ = ring().begin(projected().q); }

  void attend_to(const at::Tensor& keys, int64_t rank) override {
    ring().attend(projected().q, keys_of(keys), rank, ring_sums_);
  }

  at::Tensor finish_ring() override {
    take_ring_sums(mode_ != SaveMode::kInputOnly);
    return output();
  }

  void finish_ring_again() override {
    take_ring_sums(true);
    output_again();
  }

  void begin_ring_backward(const at::Tensor& grad_output) override {
    d_attended_ = backward_output(grad_output);
    if (d_sinks_.defined()) d_sinks_.zero_();
    const auto floats = options().dtype(at::kFloat);
    d_queries_ = at::zeros(projected().q.sizes(), floats);
    d_keys_ = at::zeros({rows(), length(), 2, heads(), part_.attention_.head_dim}, floats);
  }

  at::Tensor backward_to(const at::Tensor& keys, int64_t rank) override {
    const int64_t length = this->length();
    const bool own = rank == batch_.context_rank;
    // The whole of them in float32, and of that what is seen is sent.
    const at::Tensor sum = own ? d_keys_ : at::zeros_like(d_keys_);
    const at::Tensor shaped = d_attended_.view(projected().q.sizes());
    ring().backward(shaped, projected().q, keys_of(keys), rank,
                    saved_.attended.view(shaped.sizes()), saved_.logsumexp, d_queries_, sum,
                    d_sinks_);
    if (own) return {};
    const int64_t places =
        cluster::sees_second_piece(batch_.context_rank, rank) ? length : length / 2;
    at::Tensor sent = at::empty({rows() * places * width()}, options());
    packed(sent, places).copy_(sum.narrow(1, 0, places));
    return sent;
  }

  void add_key_gradients(const at::Tensor& received, int64_t rank) override {
    const int64_t length = this->length();
    const int64_t places =
        cluster::sees_second_piece(rank, batch_.context_rank) ? length : length / 2;
    d_keys_.narrow(1, 0, places).add_(packed(received, places));
  }

  void finish_ring_backward() override {
    d_attended_.reset();
    drop_scored();
    normed_keys_.reset();
    const Projected d = part_.split(d_qkv_, {}, rows(), length());
    d.q.copy_(d_queries_);
    d.k.copy_(d_keys_.select(2, 0));
    d.v.copy_(d_keys_.select(2, 1));
    d_queries_.reset();
    d_keys_.reset();
  }

  at::Tensor backward_attention(const at::Tensor& grad_output, const at::Tensor& all) override {
    const model::AttentionSpec& spec = part_.attention_;
    const int64_t rows = this->rows();
    const int64_t length = this->length();
    at::Tensor d_attended = backward_output(grad_output);
    at::Tensor keys = in_order(all);
    const at::Tensor d_keys = at::zeros(keys.sizes(), options());
    bool first = true;
    const Projected in = projected();
    const Projected d = part_.split(d_qkv_, {}, rows, length);
    const std::vector<int64_t> shape = {rows, length, spec.num_heads, spec.head_dim};
    const at::Tensor d_sinks = spec.sinks ? at::empty_like(d_sinks_) : at::Tensor();
    // What the piece from the back sees first: its tiles have no key in common, and those from the front are added.
    std::vector<AttentionTile> all_tiles = tiles();
    std::ranges::stable_partition(all_tiles, [&](const AttentionTile& tile) {
      return tile.query >= batch_.pieces.front().count();
    });
    for (const AttentionTile& tile : all_tiles) {
      const bool adds = tile.query < batch_.pieces.front().count();
      const auto queries = [&](const at::Tensor& x) {
        return x.narrow(0, tile.row, tile.rows).narrow(1, tile.query, tile.queries);
      };
      const auto seen = [&](const at::Tensor& x) {
        return x.narrow(0, tile.row, tile.rows).narrow(1, tile.key, tile.keys);
      };
      at::Tensor dq = queries(d.q);
      const at::Tensor d_seen = adds ? at::empty(seen(keys).sizes(), keys.options()) : seen(d_keys);
      at::Tensor dk = d_seen.select(2, 0);
      at::Tensor dv = d_seen.select(2, 1);
      kernels::attention_backward(queries(d_attended.view(shape)), queries(in.q),
                                  seen(keys).select(2, 0), seen(keys).select(2, 1),
                                  queries(saved_.attended.view(shape)), sums_of(tile).contiguous(),
                                  tile_options(), dq, dk, dv, first ? d_sinks_ : d_sinks);
      if (spec.sinks && !first) d_sinks_.add_(d_sinks);
      first = false;
      if (adds) seen(d_keys).add_(d_seen);
    }
    d_attended.reset();
    keys.reset();
    normed_keys_.reset();
    drop_scored();
    return gradients_by_owner(batch_, d_keys);
  }

  void take_key_gradients(const at::Tensor& received) override {
    const int64_t rows = this->rows();
    const int64_t length = this->length();
    const int64_t piece = length / 2;
    const at::Tensor sum = at::zeros({rows, length, 2, heads(), part_.attention_.head_dim},
                                     options().dtype(at::kFloat));
    int64_t at = 0;
    for (int64_t rank = 0; rank < batch_.context_ranks; ++rank) {
      const int64_t places = cluster::sees_second_piece(rank, batch_.context_rank) ? length : piece;
      const at::Tensor part = packed(received.narrow(0, at, rows * places * width()), places);
      sum.narrow(1, 0, places).add_(part);
      at += part.numel();
    }
    const Projected d = part_.split(d_qkv_, {}, rows, length);
    d.k.copy_(sum.select(2, 0));
    d.v.copy_(sum.select(2, 1));
  }

 private:
  int64_t heads() const { return part_.attention_.num_kv_heads; }
  int64_t width() const { return 2 * heads() * part_.attention_.head_dim; }
  // The input may be away meanwhile.
  int64_t rows() const { return sizes_[0]; }
  int64_t length() const { return sizes_[1]; }
  const at::TensorOptions& options() const { return options_; }
  at::Tensor packed(const at::Tensor& flat, int64_t places) const {
    return flat.view({rows(), places, 2, heads(), part_.attention_.head_dim});
  }
  Projected projected() const { return part_.split(saved_.qkv, saved_.qk, rows(), length()); }
  std::vector<AttentionTile> tiles() const {
    return attention_tiles(rows(), batch_.pieces, is_cut(batch_) ? &batch_.segments : nullptr,
                           part_.attention_.window);
  }
  kernels::AttentionOptions tile_options() const { return part_.options(nullptr); }
  /// Keys that have come; undefined: the own ones.
  at::Tensor keys_of(const at::Tensor& keys) const {
    if (keys.defined()) return packed(keys, length());
    const at::Tensor own = at::empty({packed_numel()}, options());
    pack_keys(own);
    return packed(own, length());
  }
  RingAttention ring() const { return {batch_, is_cut(batch_), tile_options()}; }

  /// The part's output, and away with what the backward does not read.
  at::Tensor output() {
    const bool keep = mode_ != SaveMode::kInputOnly;
    if (mode_ != SaveMode::kAll) saved_.qk.reset();
    if (!keep) saved_.qkv.reset();
    const at::Tensor residual = x_.defined() ? x_.flatten(0, 1) : at::Tensor();
    at::Tensor output = part_.output_of(residual, keep, saved_).view(sizes_);
    if (!keep) saved_ = {};
    return output;
  }

  void output_again() {
    if (!part_.norms_.after) return;
    saved_.projected = part_.out_.forward(saved_.attended);
    part_.norms_.after->forward(saved_.projected, true, saved_.after_statistics);
  }

  void take_ring_sums(bool keep) {
    saved_.attended = at::empty({rows() * length(), d_width()}, options());
    saved_.attended.view(ring_sums_.out.sizes()).copy_(ring_sums_.out);
    if (keep) saved_.logsumexp = ring_sums_.logsumexp;
    ring_sums_ = {};
  }
  int64_t d_width() const { return part_.attention_.num_heads * part_.attention_.head_dim; }
  at::Tensor sums_of(const AttentionTile& tile) const {
    return saved_.logsumexp.narrow(0, tile.row, tile.rows).narrow(2, tile.query, tile.queries);
  }

  at::Tensor in_order(const at::Tensor& all) const {
    return keys_in_order(batch_, all, heads(), part_.attention_.head_dim);
  }

  void attention_over(const at::Tensor& all, bool keep_sums) {
    const model::AttentionSpec& spec = part_.attention_;
    const int64_t rows = this->rows();
    const int64_t length = this->length();
    saved_.attended = at::empty({rows * length, spec.num_heads * spec.head_dim}, options());
    if (keep_sums) {
      saved_.logsumexp = at::empty({rows, spec.num_heads, length}, options().dtype(at::kFloat));
    }
    const at::Tensor keys = in_order(all);
    const Projected in = projected();
    const at::Tensor out = saved_.attended.view({rows, length, spec.num_heads, spec.head_dim});
    for (const AttentionTile& tile : tiles()) {
      const auto queries = [&](const at::Tensor& x) {
        return x.narrow(0, tile.row, tile.rows).narrow(1, tile.query, tile.queries);
      };
      const at::Tensor seen = keys.narrow(0, tile.row, tile.rows).narrow(1, tile.key, tile.keys);
      at::Tensor result = queries(out);
      at::Tensor sums;
      if (keep_sums)
        sums = at::empty({tile.rows, spec.num_heads, tile.queries}, saved_.logsumexp.options());
      kernels::attention(queries(in.q), seen.select(2, 0), seen.select(2, 1), tile_options(),
                         result, sums);
      if (keep_sums) sums_of(tile).copy_(sums);
    }
  }

  const SaveMode mode_;
  const std::vector<int64_t> sizes_;  ///< of the input
  const at::TensorOptions options_;
  at::Tensor normed_keys_;  ///< [rows, places, kv heads, head_dim]
  RingAttention::Sums ring_sums_;
  // Of a ring's backward: the gradient of attention's result, and float32 sums of those of queries and this rank's keys.
  at::Tensor d_attended_;
  at::Tensor d_queries_;
  at::Tensor d_keys_;
};

std::unique_ptr<PartGraph> GroupedAttentionPart::begin(const at::Tensor& hidden,
                                                       const BatchTensors& batch, SaveMode mode) {
  Saved saved;
  make_projection(hidden.flatten(0, 1), batch, mode != SaveMode::kInputOnly, mode == SaveMode::kAll,
                  saved);
  return std::make_unique<Context>(*this, hidden, batch, std::move(saved), mode);
}

GroupedAttentionPart::GroupedAttentionPart(const ParameterStore& store, int part,
                                           std::shared_ptr<RotaryTable> rotary, PartScope scope)
    : AttentionPart(store, part, std::move(rotary), scope),
      qkv_(store, parameters_, {model::Role::kQuery, model::Role::kKey, model::Role::kValue}) {
  if (!has_qk_norm()) return;
  place_of_q_norm_ = place_of(store, model::Role::kQkNorm);
  TRIREME_CHECK(place_of_q_norm_ >= 0, "{}: norms of the heads missing", spec_.name);
  q_norm_ = store.compute(parameters_[static_cast<size_t>(place_of_q_norm_)]);
  k_norm_ = store.compute(parameters_.at(static_cast<size_t>(place_of_q_norm_) + 1));
}

at::Tensor GroupedAttentionPart::heads(const at::Tensor& rows, int64_t first, int64_t count) const {
  const int64_t dim = attention_.head_dim;
  return rows.narrow(1, first * dim, count * dim).view({rows.size(0), count, dim});
}

at::Tensor GroupedAttentionPart::normed_heads(const at::Tensor& rows, int64_t first,
                                              int64_t count) const {
  const at::Tensor split = heads(rows, first, count);
  if (attention_.qk_norm != model::QkNorm::kAllHeads) return split;
  return rows.narrow(1, first * attention_.head_dim, count * attention_.head_dim).unsqueeze(1);
}

void GroupedAttentionPart::turn(const at::Tensor& qk, const at::Tensor& positions, int64_t length,
                                bool inverse) const {
  if (!rotary_) return;
  rotary_->turn(heads(qk, 0, attention_.num_heads + attention_.num_kv_heads), positions, length,
                inverse);
}

at::Tensor GroupedAttentionPart::normed_qk(const at::Tensor& qkv, bool keep, at::Tensor& q_rstd,
                                           at::Tensor& k_rstd) const {
  const int64_t q_heads = attention_.num_heads;
  const int64_t k_heads = attention_.num_kv_heads;
  const auto floats = qkv.options().dtype(at::kFloat);
  at::Tensor qk =
      at::empty({qkv.size(0), (q_heads + k_heads) * attention_.head_dim}, qkv.options());
  at::Tensor q = normed_heads(qk, 0, q_heads);
  at::Tensor k = normed_heads(qk, q_heads, k_heads);
  if (keep) {
    q_rstd = at::empty({qkv.size(0), q.size(1)}, floats);
    k_rstd = at::empty({qkv.size(0), k.size(1)}, floats);
  }
  kernels::rms_norm(normed_heads(qkv, 0, q_heads), q_norm_, attention_.qk_norm_spec.eps, q,
                    keep ? q_rstd : at::Tensor(), qk_norm_offset());
  kernels::rms_norm(normed_heads(qkv, q_heads, k_heads), k_norm_, attention_.qk_norm_spec.eps, k,
                    keep ? k_rstd : at::Tensor(), qk_norm_offset());
  return qk;
}

AttentionPart::Projected GroupedAttentionPart::split(const at::Tensor& qkv, const at::Tensor& qk,
                                                     int64_t batch, int64_t length) const {
  const int64_t q_heads = attention_.num_heads;
  const int64_t k_heads = attention_.num_kv_heads;
  const auto rows_of = [&](const at::Tensor& rows, int64_t first, int64_t count) {
    return heads(rows, first, count).view({batch, length, count, attention_.head_dim});
  };
  const at::Tensor& source = qk.defined() ? qk : qkv;
  return {rows_of(source, 0, q_heads), rows_of(source, q_heads, k_heads),
          rows_of(qkv, q_heads + k_heads, k_heads)};
}

void GroupedAttentionPart::make_projection(const at::Tensor& x, const BatchTensors& batch,
                                           bool keep_statistics, bool keep_normed,
                                           Saved& saved) const {
  saved.normed = norms_.before ? norms_.before->forward(x, keep_statistics, saved.statistics) : x;
  saved.qkv = qkv_.forward(saved.normed);
  if (!keep_normed || !norms_.before) saved.normed.reset();
  if (has_qk_norm()) saved.qk = normed_qk(saved.qkv, keep_statistics, saved.q_rstd, saved.k_rstd);
  turn(has_qk_norm() ? saved.qk : saved.qkv, batch.positions, batch.length(), false);
}

void GroupedAttentionPart::make_saved(const at::Tensor& x, const BatchTensors& batch,
                                      bool keep_statistics, bool keep_normed, bool keep_qkv,
                                      Saved& saved) const {
  const int64_t rows = batch.tokens.size(0);
  const int64_t length = batch.tokens.size(1);
  make_projection(x, batch, keep_statistics, keep_normed, saved);

  saved.attended = at::empty({x.size(0), attention_.num_heads * attention_.head_dim}, x.options());
  if (keep_statistics) {
    saved.logsumexp =
        at::empty({rows, attention_.num_heads, length}, x.options().dtype(at::kFloat));
  }
  const Projected in = split(saved.qkv, saved.qk, rows, length);
  at::Tensor out = saved.attended.view({rows, length, attention_.num_heads, attention_.head_dim});
  kernels::attention(in.q, in.k, in.v, options(&batch), out, saved.logsumexp);
  if (!keep_normed) saved.qk.reset();
  if (!keep_qkv) saved.qkv.reset();
}

at::Tensor GroupedAttentionPart::output_of(const at::Tensor& x, bool keep_statistics,
                                           Saved& saved) const {
  if (!norms_.after) return project_out(saved.attended, x);
  saved.projected = out_.forward(saved.attended);
  return norms_.after->forward(saved.projected, keep_statistics, saved.after_statistics).add_(x);
}

ForwardResult GroupedAttentionPart::forward(const at::Tensor& hidden, const BatchTensors& batch,
                                            bool with_graph, SaveMode mode) {
  const at::Tensor x = hidden.flatten(0, 1);
  const bool keep = with_graph && mode != SaveMode::kInputOnly;
  Saved saved;
  make_saved(x, batch, keep, with_graph && mode == SaveMode::kAll, keep, saved);
  ForwardResult result;
  result.output = output_of(x, keep, saved).view(hidden.sizes());
  if (!keep) saved = {};
  if (with_graph) result.graph = std::make_unique<Graph>(*this, hidden, batch, std::move(saved));
  return result;
}

AttentionPart::Projected GroupedAttentionPart::project(const at::Tensor& hidden,
                                                       const at::Tensor& positions) const {
  const at::Tensor x = hidden.flatten(0, 1);
  NormStatistics unused;
  at::Tensor no_rstd;
  at::Tensor qkv = qkv_.forward(norms_.before ? norms_.before->forward(x, false, unused) : x);
  at::Tensor qk = has_qk_norm() ? normed_qk(qkv, false, no_rstd, no_rstd) : at::Tensor();
  if (rotary_) {
    const at::Tensor& turning = has_qk_norm() ? qk : qkv;
    rotary_->turn_rows(heads(turning, 0, attention_.num_heads + attention_.num_kv_heads),
                       positions);
  }
  return split(qkv, qk, hidden.size(0), hidden.size(1));
}

at::Tensor GroupedAttentionPart::attend(const at::Tensor& q, const at::Tensor& k,
                                        const at::Tensor& v) const {
  at::Tensor out = at::empty(q.sizes(), q.options());
  kernels::attention(q, k, v, options(nullptr), out, {});
  return out;
}

}  // namespace trireme::nn
