#include "trireme/nn/attention_part.h"

#include <ATen/ops/empty.h>

#include <algorithm>

#include "trireme/base/error.h"
#include "trireme/kernels/ops.h"

namespace trireme::nn {
namespace {

/// Null where every row is one document: plain causal attention.
const kernels::Segments* segments_of(const BatchTensors& batch) {
  const bool cut =
      std::ranges::any_of(batch.segments, [](const auto& row) { return row.size() > 1; });
  return cut ? &batch.segments : nullptr;
}

}  // namespace

struct AttentionPart::Saved {
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

class AttentionPart::Graph final : public PartGraph {
 public:
  Graph(const AttentionPart& part, at::Tensor x, const BatchTensors& batch, Saved saved)
      : part_(part), x_(std::move(x)), batch_(batch), saved_(std::move(saved)) {}

  void recompute() override {
    if (saved_.qkv.defined()) return;
    part_.make_saved(x_.flatten(0, 1), batch_, true, true, true, saved_);
    if (!part_.norms_.after) return;
    saved_.projected = part_.out_.forward(saved_.attended);
    part_.norms_.after->forward(saved_.projected, true, saved_.after_statistics);
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
      part_.rotate(saved_.qk, batch_.positions, length, false);
    }
    d_qkv_ = at::empty({x.size(0), part_.qkv_.out_features()}, x.options());
    {
      const Projected in = part_.split(saved_.qkv, saved_.qk, rows, length);
      Projected d = part_.split(d_qkv_, {}, rows, length);
      const std::vector<int64_t> shape = {rows, length, spec.num_heads, spec.head_dim};
      kernels::attention_backward(d_attended.view(shape), in.q, in.k, in.v,
                                  saved_.attended.view(shape), saved_.logsumexp,
                                  part_.options(segments_of(batch_)), d.q, d.k, d.v);
    }
    d_attended.reset();
    saved_.logsumexp.reset();
    saved_.qk.reset();
    if (!part_.has_qk_norm()) saved_.qkv.reset();
    part_.rotate(d_qkv_, batch_.positions, length, true);
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
      dx.add_(residual);
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
    if (part_.has_qk_norm()) {
      add_to_sink(sink, part_.sink_q_norm_, d_q_norm_);
      add_to_sink(sink, part_.sink_q_norm_ + 1, d_k_norm_);
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

  const AttentionPart& part_;
  at::Tensor x_;
  const BatchTensors& batch_;
  Saved saved_;
  at::Tensor grad_output_;
  at::Tensor d_qkv_;
  NormGradients norm_gradients_;
  NormGradients after_gradients_;
  at::Tensor d_q_norm_;
  at::Tensor d_k_norm_;
};

AttentionPart::AttentionPart(const ParameterStore& store, int part,
                             std::shared_ptr<RotaryTable> rotary)
    : spec_(store.spec().parts[part]),
      attention_(store.spec().layers[spec_.layer].attention),
      parameters_(store.part_parameters(part)),
      norms_(store, store.spec().layers[spec_.layer].attention_norm,
             store.spec().layers[spec_.layer].attention_post_norm, parameters_),
      qkv_(store, parameters_, {model::Role::kQuery, model::Role::kKey, model::Role::kValue}),
      out_(store, parameters_, {model::Role::kAttentionOut}),
      rotary_(std::move(rotary)) {
  TRIREME_CHECK(attention_.rotary.has_value() == (rotary_ != nullptr), "{}: rotary table missing",
                spec_.name);
  for (size_t i = 0; i < parameters_.size() && has_qk_norm(); ++i) {
    if (store.spec().parameters[parameters_[i]].role != model::Role::kQkNorm) continue;
    sink_q_norm_ = static_cast<int>(i);
    q_norm_ = store.compute(parameters_[i]);
    k_norm_ = store.compute(parameters_.at(i + 1));
    break;
  }
  TRIREME_CHECK(!has_qk_norm() || k_norm_.defined(), "{}: norms of the heads missing", spec_.name);
  qk_norm_eps_ = attention_.qk_norm_spec.eps;
}

at::Tensor AttentionPart::heads(const at::Tensor& rows, int64_t first, int64_t count) const {
  const int64_t dim = attention_.head_dim;
  return rows.narrow(1, first * dim, count * dim).view({rows.size(0), count, dim});
}

at::Tensor AttentionPart::normed_heads(const at::Tensor& rows, int64_t first, int64_t count) const {
  const at::Tensor split = heads(rows, first, count);
  if (attention_.qk_norm != model::QkNorm::kAllHeads) return split;
  return rows.narrow(1, first * attention_.head_dim, count * attention_.head_dim).unsqueeze(1);
}

void AttentionPart::rotate(at::Tensor& qk, const at::Tensor& positions, int64_t length,
                           bool inverse) const {
  if (!rotary_) return;
  at::Tensor turned = heads(qk, 0, attention_.num_heads + attention_.num_kv_heads);
  const RotaryTable::Rows& rows = rotary_->rows(length);
  kernels::rotary_(turned, positions.flatten(), rows.cos, rows.sin, inverse);
}

at::Tensor AttentionPart::normed_qk(const at::Tensor& qkv, bool keep, at::Tensor& q_rstd,
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
  kernels::rms_norm(normed_heads(qkv, 0, q_heads), q_norm_, qk_norm_eps_, q,
                    keep ? q_rstd : at::Tensor(), qk_norm_offset());
  kernels::rms_norm(normed_heads(qkv, q_heads, k_heads), k_norm_, qk_norm_eps_, k,
                    keep ? k_rstd : at::Tensor(), qk_norm_offset());
  return qk;
}

AttentionPart::Projected AttentionPart::split(const at::Tensor& qkv, const at::Tensor& qk,
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

void AttentionPart::make_saved(const at::Tensor& x, const BatchTensors& batch, bool keep_statistics,
                               bool keep_normed, bool keep_qkv, Saved& saved) const {
  const int64_t rows = batch.tokens.size(0);
  const int64_t length = batch.tokens.size(1);
  saved.normed = norms_.before ? norms_.before->forward(x, keep_statistics, saved.statistics) : x;
  saved.qkv = qkv_.forward(saved.normed);
  if (!keep_normed || !norms_.before) saved.normed.reset();
  if (has_qk_norm()) saved.qk = normed_qk(saved.qkv, keep_statistics, saved.q_rstd, saved.k_rstd);
  rotate(has_qk_norm() ? saved.qk : saved.qkv, batch.positions, length, false);

  saved.attended = at::empty({x.size(0), attention_.num_heads * attention_.head_dim}, x.options());
  if (keep_statistics) {
    saved.logsumexp =
        at::empty({rows, attention_.num_heads, length}, x.options().dtype(at::kFloat));
  }
  const Projected in = split(saved.qkv, saved.qk, rows, length);
  at::Tensor out = saved.attended.view({rows, length, attention_.num_heads, attention_.head_dim});
  kernels::attention(in.q, in.k, in.v, options(segments_of(batch)), out, saved.logsumexp);
  if (!keep_normed) saved.qk.reset();
  if (!keep_qkv) saved.qkv.reset();
}

ForwardResult AttentionPart::forward(const at::Tensor& hidden, const BatchTensors& batch,
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
    result.output = out_.forward(saved.attended, x).view(hidden.sizes());
  }
  if (!keep) saved = {};
  if (with_graph) result.graph = std::make_unique<Graph>(*this, hidden, batch, std::move(saved));
  return result;
}

AttentionPart::Projected AttentionPart::project(const at::Tensor& hidden,
                                                const at::Tensor& positions) const {
  const at::Tensor x = hidden.flatten(0, 1);
  NormStatistics unused;
  at::Tensor no_rstd;
  at::Tensor qkv = qkv_.forward(norms_.before ? norms_.before->forward(x, false, unused) : x);
  at::Tensor qk = has_qk_norm() ? normed_qk(qkv, false, no_rstd, no_rstd) : at::Tensor();
  // Every row is a sequence of its own, as long as its last position says.
  const int64_t length = hidden.size(1);
  for (int64_t row = 0; row < hidden.size(0); ++row) {
    at::Tensor rows = (has_qk_norm() ? qk : qkv).narrow(0, row * length, length);
    const at::Tensor places = positions[row];
    rotate(rows, places, places.max().item<int64_t>() + 1, false);
  }
  return split(qkv, qk, hidden.size(0), hidden.size(1));
}

kernels::AttentionOptions AttentionPart::options(const kernels::Segments* segments) const {
  kernels::AttentionOptions options;
  options.scale = attention_.scale;
  options.window = attention_.window;
  options.softcap = attention_.softcap;
  options.segments = segments;
  return options;
}

at::Tensor AttentionPart::attend(const at::Tensor& q, const at::Tensor& k,
                                 const at::Tensor& v) const {
  at::Tensor out = at::empty(q.sizes(), q.options());
  kernels::attention(q, k, v, options(nullptr), out, {});
  return out;
}

at::Tensor AttentionPart::finish(const at::Tensor& hidden, const at::Tensor& attended) const {
  const at::Tensor rows = attended.reshape({hidden.size(0) * hidden.size(1), -1});
  const at::Tensor x = hidden.flatten(0, 1);
  if (!norms_.after) return out_.forward(rows, x).view(hidden.sizes());
  NormStatistics unused;
  return norms_.after->forward(out_.forward(rows), false, unused).add_(x).view(hidden.sizes());
}

}  // namespace trireme::nn
