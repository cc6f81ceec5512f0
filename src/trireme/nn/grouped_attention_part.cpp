#include "trireme/nn/grouped_attention_part.h"

#include <ATen/ops/empty.h>

#include "trireme/base/error.h"
#include "trireme/kernels/ops.h"

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

class GroupedAttentionPart::Graph final : public ProductsGraph {
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
    TRIREME_CHECK(saved_.qkv.defined(), "{}: backward before recompute", part_.spec_.name);
    const model::AttentionSpec& spec = part_.attention_;
    const int64_t rows = x_.size(0);
    const int64_t length = x_.size(1);
    const std::vector<int64_t> sizes = x_.sizes().vec();
    const at::Tensor x = x_.flatten(0, 1);
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
      part_.turn(saved_.qk, batch_.positions, length, false);
    }
    d_qkv_ = at::empty({x.size(0), part_.qkv_.out_features()}, x.options());
    {
      const Projected in = part_.split(saved_.qkv, saved_.qk, rows, length);
      Projected d = part_.split(d_qkv_, {}, rows, length);
      const std::vector<int64_t> shape = {rows, length, spec.num_heads, spec.head_dim};
      if (spec.sinks) d_sinks_ = at::empty({spec.num_heads}, x.options().dtype(at::kFloat));
      kernels::attention_backward(d_attended.view(shape), in.q, in.k, in.v,
                                  saved_.attended.view(shape), saved_.logsumexp,
                                  part_.options(&batch_), d.q, d.k, d.v, d_sinks_);
    }
    d_attended.reset();
    saved_.logsumexp.reset();
    saved_.qk.reset();
    if (!part_.has_qk_norm()) saved_.qkv.reset();
    part_.turn(d_qkv_, batch_.positions, length, true);
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

 private:
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

void GroupedAttentionPart::make_saved(const at::Tensor& x, const BatchTensors& batch,
                                      bool keep_statistics, bool keep_normed, bool keep_qkv,
                                      Saved& saved) const {
  const int64_t rows = batch.tokens.size(0);
  const int64_t length = batch.tokens.size(1);
  saved.normed = norms_.before ? norms_.before->forward(x, keep_statistics, saved.statistics) : x;
  saved.qkv = qkv_.forward(saved.normed);
  if (!keep_normed || !norms_.before) saved.normed.reset();
  if (has_qk_norm()) saved.qk = normed_qk(saved.qkv, keep_statistics, saved.q_rstd, saved.k_rstd);
  turn(has_qk_norm() ? saved.qk : saved.qkv, batch.positions, length, false);

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

ForwardResult GroupedAttentionPart::forward(const at::Tensor& hidden, const BatchTensors& batch,
                                            bool with_graph, SaveMode mode) {
  const at::Tensor x = hidden.flatten(0, 1);
  const bool keep = with_graph && mode != SaveMode::kInputOnly;
  Saved saved;
  make_saved(x, batch, keep, with_graph && mode == SaveMode::kAll, keep, saved);
  ForwardResult result;
  if (norms_.after) {
    saved.projected = out_.forward(saved.attended);
    result.output = norms_.after->forward(saved.projected, keep, saved.after_statistics);
    result.output = result.output.add_(x).view(hidden.sizes());
  } else {
    result.output = project_out(saved.attended, x).view(hidden.sizes());
  }
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
