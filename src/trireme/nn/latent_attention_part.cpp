#include "trireme/nn/latent_attention_part.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "trireme/base/error.h"
#include "trireme/kernels/ops.h"

namespace trireme::nn {
namespace {

std::vector<model::Role> down_roles(const model::LatentSpec& latent) {
  if (latent.query_rank == 0) return {model::Role::kKeyValueDown};
  return {model::Role::kQueryDown, model::Role::kKeyValueDown};
}

/// [N, heads, dim] -> [B, T, heads, dim], a view.
at::Tensor in_rows(const at::Tensor& heads, int64_t rows) {
  return heads.unflatten(0, {rows, heads.size(0) / rows});
}

}  // namespace

struct LatentAttentionPart::Saved {
  NormStatistics statistics;
  at::Tensor normed;        ///< [N, d]
  at::Tensor down;          ///< [N, query_rank + kv_rank + rope_dim]; the rotary key is rotated
  at::Tensor query_latent;  ///< [N, query_rank], normed; undefined where queries are not compressed
  NormStatistics query_statistics;
  at::Tensor latent;  ///< [N, kv_rank], normed
  NormStatistics latent_statistics;
  at::Tensor q;          ///< [N, H head_dim], rotated
  at::Tensor kv;         ///< [N, H (nope_dim + value_dim)]
  at::Tensor attended;   ///< [N, H value_dim]
  at::Tensor logsumexp;  ///< [B, H, T]
};

class LatentAttentionPart::Graph final : public ProductsGraph {
 public:
  Graph(const LatentAttentionPart& part, at::Tensor x, const BatchTensors& batch, Saved saved)
      : part_(part), x_(std::move(x)), batch_(batch), saved_(std::move(saved)) {}

  void recompute() override {
    if (!saved_.down.defined()) part_.make_saved(x_.flatten(0, 1), batch_, true, true, saved_);
  }

  void drop_input() override { x_.reset(); }
  void give_input(at::Tensor input) override { x_ = std::move(input); }

  std::vector<at::Tensor> kept() const override {
    return {saved_.statistics.mean,
            saved_.statistics.rstd,
            saved_.normed,
            saved_.down,
            saved_.query_latent,
            saved_.query_statistics.mean,
            saved_.query_statistics.rstd,
            saved_.latent,
            saved_.latent_statistics.mean,
            saved_.latent_statistics.rstd,
            saved_.q,
            saved_.kv,
            saved_.attended,
            saved_.logsumexp};
  }

  at::Tensor backward_input(at::Tensor grad_output) override {
    TRIREME_CHECK(saved_.down.defined(), "{}: backward before recompute", part_.spec_.name);
    const int64_t length = x_.size(1);
    const std::vector<int64_t> sizes = x_.sizes().vec();
    const at::Tensor x = x_.flatten(0, 1);
    grad_output_ = grad_output.flatten(0, 1);
    attention_backward();
    part_.turn(d_q_, d_down_, batch_.positions, length, true);

    part_.latent_norm_->backward_into(part_.up_.backward_input(d_kv_), part_.latent(saved_.down),
                                      saved_.latent_statistics, part_.latent(d_down_),
                                      latent_gradients_);
    NormStatistics unused;
    if (!saved_.latent.defined())
      saved_.latent = part_.latent_norm_->forward(part_.latent(saved_.down), false, unused);
    if (part_.compressed()) {
      const at::Tensor raw = part_.query_latent(saved_.down);
      part_.query_norm_->backward_into(part_.query_.backward_input(d_q_), raw,
                                       saved_.query_statistics, part_.query_latent(d_down_),
                                       query_gradients_);
      if (!saved_.query_latent.defined())
        saved_.query_latent = part_.query_norm_->forward(raw, false, unused);
    }
    saved_.down.reset();
    saved_.latent_statistics = saved_.query_statistics = {};

    at::Tensor dx = part_.down_.backward_input(d_down_);
    if (!part_.compressed()) part_.query_.add_backward_input(d_q_, dx);
    if (part_.norms_.before) {
      dx = part_.norms_.before->backward(dx, x, saved_.statistics, grad_output_, norm_gradients_);
      if (!saved_.normed.defined()) saved_.normed = part_.norms_.before->forward(x, false, unused);
    } else {
      if (part_.scope_ == PartScope::kWhole) dx.add_(grad_output_);
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
    part_.up_.backward_weight(d_kv_, saved_.latent, sink);
    d_kv_.reset();
    saved_.latent.reset();
    part_.query_.backward_weight(d_q_, part_.compressed() ? saved_.query_latent : saved_.normed,
                                 sink);
    d_q_.reset();
    saved_.query_latent.reset();
    part_.down_.backward_weight(d_down_, saved_.normed, sink);
    d_down_.reset();
    saved_.normed.reset();
    int place = part_.place_of_norms_;
    if (part_.compressed()) part_.query_norm_->add_gradients(query_gradients_, sink, place++);
    part_.latent_norm_->add_gradients(latent_gradients_, sink, place);
    if (part_.norms_.before) part_.norms_.before->add_gradients(norm_gradients_, sink, 0);
    norm_gradients_ = query_gradients_ = latent_gradients_ = {};
  }

 private:
  /// From the output's gradient to those of q, k | v and the shared key, positions still on.
  void attention_backward() {
    const int64_t rows = x_.size(0);
    at::Tensor d_attended = part_.out_.backward_input(grad_output_);
    at::Tensor k = part_.joined_keys(saved_.kv, part_.shared_key(saved_.down));
    d_q_ = at::empty_like(saved_.q);
    d_kv_ = at::empty_like(saved_.kv);
    at::Tensor dk = at::empty_like(k);
    {
      const auto heads = [&](const at::Tensor& of) {
        return in_rows(of.unflatten(1, {part_.attention_.num_heads, -1}), rows);
      };
      at::Tensor dq = heads(d_q_);
      at::Tensor dk_rows = in_rows(dk, rows);
      at::Tensor dv = in_rows(part_.values(d_kv_), rows);
      kernels::attention_backward(heads(d_attended), heads(saved_.q), in_rows(k, rows),
                                  in_rows(part_.values(saved_.kv), rows), heads(saved_.attended),
                                  saved_.logsumexp, part_.options(&batch_), dq, dk_rows, dv);
    }
    d_attended.reset();
    k.reset();
    saved_.logsumexp.reset();
    saved_.q.reset();
    saved_.kv.reset();
    d_down_ = at::empty_like(saved_.down);
    at::Tensor d_own = part_.own_keys(d_kv_);
    at::Tensor d_shared = part_.shared_key(d_down_);
    kernels::join_shared_key_backward(dk, d_own, d_shared);
  }

  const LatentAttentionPart& part_;
  at::Tensor x_;
  const BatchTensors& batch_;
  Saved saved_;
  at::Tensor grad_output_;
  at::Tensor d_q_;
  at::Tensor d_kv_;
  at::Tensor d_down_;
  NormGradients norm_gradients_;
  NormGradients query_gradients_;
  NormGradients latent_gradients_;
};

LatentAttentionPart::LatentAttentionPart(const ParameterStore& store, int part,
                                         std::shared_ptr<RotaryTable> rotary, PartScope scope)
    : AttentionPart(store, part, std::move(rotary), scope),
      latent_(attention_.latent.value()),
      down_(store, parameters_, down_roles(latent_)),
      query_(store, parameters_, {model::Role::kQuery}),
      up_(store, parameters_, {model::Role::kKeyValueUp}),
      place_of_norms_(place_of(store, model::Role::kLatentNorm)) {
  // No family has these with latent attention.
  TRIREME_CHECK(!norms_.after && !attention_.sinks && attention_.qk_norm == model::QkNorm::kNone,
                "{}: latent attention has no norm after it, no sinks and no norms of heads",
                spec_.name);
  TRIREME_CHECK(attention_.num_kv_heads == attention_.num_heads &&
                    attention_.head_dim == latent_.nope_dim + latent_.rope_dim && rotary_ &&
                    rotary_->spec().dim <= latent_.rope_dim && place_of_norms_ >= 0,
                "{}: not the shapes of latent attention", spec_.name);
  const model::NormSpec norm{model::NormKind::kRmsNorm, latent_.norm_eps, false, false};
  auto place = static_cast<size_t>(place_of_norms_);
  if (compressed()) query_norm_.emplace(norm, store.compute(parameters_[place++]), at::Tensor());
  latent_norm_.emplace(norm, store.compute(parameters_.at(place)), at::Tensor());
}

at::Tensor LatentAttentionPart::query_latent(const at::Tensor& down) const {
  return down.narrow(1, 0, latent_.query_rank);
}

at::Tensor LatentAttentionPart::latent(const at::Tensor& down) const {
  return down.narrow(1, latent_.query_rank, latent_.kv_rank);
}

at::Tensor LatentAttentionPart::shared_key(const at::Tensor& down) const {
  return down.narrow(1, latent_.query_rank + latent_.kv_rank, latent_.rope_dim).unsqueeze(1);
}

at::Tensor LatentAttentionPart::own_keys(const at::Tensor& kv) const {
  return kv.unflatten(1, {attention_.num_heads, -1}).narrow(2, 0, latent_.nope_dim);
}

at::Tensor LatentAttentionPart::values(const at::Tensor& kv) const {
  return kv.unflatten(1, {attention_.num_heads, -1})
      .narrow(2, latent_.nope_dim, attention_.value_dim);
}

at::Tensor LatentAttentionPart::joined_keys(const at::Tensor& kv, const at::Tensor& shared) const {
  at::Tensor k = at::empty({kv.size(0), attention_.num_heads, attention_.head_dim}, kv.options());
  kernels::join_shared_key(own_keys(kv), shared, k);
  return k;
}

at::Tensor LatentAttentionPart::turning(const at::Tensor& q) const {
  return q.unflatten(1, {attention_.num_heads, -1}).narrow(2, latent_.nope_dim, latent_.rope_dim);
}

void LatentAttentionPart::turn(const at::Tensor& q, const at::Tensor& down,
                               const at::Tensor& positions, int64_t length, bool inverse) const {
  rotary_->turn(turning(q), positions, length, inverse);
  rotary_->turn(shared_key(down), positions, length, inverse);
}

void LatentAttentionPart::make_saved(const at::Tensor& x, const BatchTensors& batch, bool keep,
                                     bool keep_normed, Saved& saved) const {
  const int64_t rows = batch.tokens.size(0);
  const int64_t length = batch.tokens.size(1);
  saved.normed = norms_.before ? norms_.before->forward(x, keep, saved.statistics) : x;
  saved.down = down_.forward(saved.normed);
  if (compressed()) {
    if (!keep_normed) saved.normed.reset();
    saved.query_latent =
        query_norm_->forward(query_latent(saved.down), keep, saved.query_statistics);
    saved.q = query_.forward(saved.query_latent);
    if (!keep_normed) saved.query_latent.reset();
  } else {
    saved.q = query_.forward(saved.normed);
    if (!keep_normed) saved.normed.reset();
  }
  turn(saved.q, saved.down, batch.positions, length, false);
  saved.latent = latent_norm_->forward(latent(saved.down), keep, saved.latent_statistics);
  saved.kv = up_.forward(saved.latent);
  if (!keep_normed) saved.latent.reset();

  const auto floats = x.options().dtype(at::kFloat);
  saved.attended = at::empty({x.size(0), attention_.num_heads * attention_.value_dim}, x.options());
  if (keep) saved.logsumexp = at::empty({rows, attention_.num_heads, length}, floats);
  const at::Tensor k = joined_keys(saved.kv, shared_key(saved.down));
  if (!keep) saved.down.reset();
  at::Tensor out = in_rows(saved.attended.unflatten(1, {attention_.num_heads, -1}), rows);
  kernels::attention(in_rows(saved.q.unflatten(1, {attention_.num_heads, -1}), rows),
                     in_rows(k, rows), in_rows(values(saved.kv), rows), options(&batch), out,
                     saved.logsumexp);
  if (keep) return;
  saved.q.reset();
  saved.kv.reset();
}

ForwardResult LatentAttentionPart::forward(const at::Tensor& hidden, const BatchTensors& batch,
                                           bool with_graph, SaveMode mode) {
  const at::Tensor x = hidden.flatten(0, 1);
  const bool keep = with_graph && mode != SaveMode::kInputOnly;
  Saved saved;
  make_saved(x, batch, keep, with_graph && mode == SaveMode::kAll, saved);
  ForwardResult result;
  result.output = project_out(saved.attended, x).view(hidden.sizes());
  if (!keep) saved = {};
  if (with_graph) result.graph = std::make_unique<Graph>(*this, hidden, batch, std::move(saved));
  return result;
}

AttentionPart::Projected LatentAttentionPart::project(const at::Tensor& hidden,
                                                      const at::Tensor& positions) const {
  const at::Tensor x = hidden.flatten(0, 1);
  NormStatistics unused;
  const at::Tensor normed = norms_.before ? norms_.before->forward(x, false, unused) : x;
  const at::Tensor down = down_.forward(normed);
  const at::Tensor q = query_.forward(
      compressed() ? query_norm_->forward(query_latent(down), false, unused) : normed);
  rotary_->turn_rows(turning(q), positions);
  rotary_->turn_rows(shared_key(down), positions);
  latent(down).copy_(latent_norm_->forward(latent(down), false, unused));
  const int64_t rows = hidden.size(0);
  const at::Tensor cached =
      down.narrow(1, latent_.query_rank, latent_.kv_rank + latent_.rope_dim).unsqueeze(1);
  return {in_rows(q.unflatten(1, {attention_.num_heads, -1}), rows), in_rows(cached, rows),
          in_rows(cached.narrow(2, 0, 0), rows)};
}

at::Tensor LatentAttentionPart::attend(const at::Tensor& q, const at::Tensor& k,
                                       const at::Tensor& /*v*/) const {
  const int64_t rows = k.size(0);
  const at::Tensor cached = k.reshape({rows * k.size(1), k.size(3)});
  const at::Tensor kv = up_.forward(cached.narrow(1, 0, latent_.kv_rank));
  const at::Tensor keys =
      joined_keys(kv, cached.narrow(1, latent_.kv_rank, latent_.rope_dim).unsqueeze(1));
  at::Tensor out = at::empty({rows, q.size(1), q.size(2), attention_.value_dim}, q.options());
  kernels::attention(q, in_rows(keys, rows), in_rows(values(kv), rows), options(nullptr), out, {});
  return out;
}

}  // namespace trireme::nn
