// Attention with all its scores at once: every restriction of what a query sees is a mask.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/logaddexp.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <limits>

#include "trireme/base/error.h"
#include "trireme/kernels/aten/accumulation.h"
#include "trireme/kernels/aten/aten_kernels.h"

namespace trireme::kernels::aten {

namespace {

/// [B, T, H, D] -> [B, heads, T, D], every key-value head repeated for its query heads.
at::Tensor by_head(const at::Tensor& tensor, int64_t heads) {
  const at::Tensor transposed = wide(tensor).transpose(1, 2);
  return transposed.repeat_interleave(heads / tensor.size(2), 1);
}

/// Where a query does not see a key: [B or 1, 1, Tq, Tk].
at::Tensor hidden_keys(const at::Tensor& q, int64_t keys, const AttentionOptions& options) {
  const auto integers = q.options().dtype(at::kLong);
  const int64_t queries = q.size(1);
  const int64_t past = options.past >= 0 ? options.past : keys - queries;
  const at::Tensor own = at::arange(past, past + queries, integers).unsqueeze(1);
  const at::Tensor key = at::arange(keys, integers).unsqueeze(0);
  at::Tensor hidden = key.gt(own);
  if (options.window > 0) hidden = hidden.logical_or(key.le(own - options.window));
  hidden = hidden.unsqueeze(0).unsqueeze(0);
  if (options.segments == nullptr) return hidden;
  // Where the document of every place begins.
  std::vector<int64_t> begins;
  for (const std::vector<int32_t>& starts : *options.segments) {
    TRIREME_CHECK(!starts.empty() && starts[0] == 0, "a row's first document must start at 0");
    size_t document = 0;
    for (int64_t i = 0; i < keys; ++i) {
      while (document + 1 < starts.size() && starts[document + 1] <= i) ++document;
      begins.push_back(starts[document]);
    }
  }
  const at::Tensor begin = at::tensor(begins).view({-1, 1, keys}).to(q.device());
  return hidden.logical_or(begin.unsqueeze(3).ne(begin.unsqueeze(2)));
}

/// The logits of visible keys, minus infinity elsewhere, and their derivative by the product of query and key.
struct Logits {
  at::Tensor value;
  at::Tensor slope;  ///< undefined: `scale` everywhere
};

Logits logits_of(const at::Tensor& q, const at::Tensor& k, const AttentionOptions& options) {
  const int64_t heads = q.size(2);
  const at::Tensor scores =
      at::matmul(by_head(q, heads), by_head(k, heads).transpose(2, 3)) * options.scale;
  const at::Tensor hidden = hidden_keys(q, k.size(1), options);
  const double minus_infinity = -std::numeric_limits<double>::infinity();
  if (options.softcap <= 0.0) return {scores.masked_fill(hidden, minus_infinity), {}};
  const at::Tensor t = (scores / options.softcap).tanh();
  return {(t * options.softcap).masked_fill(hidden, minus_infinity),
          (1.0 - t.square()) * options.scale};
}

/// Sinks [Hq] beside [B, Hq, Tq].
at::Tensor beside_queries(const at::Tensor& sinks) {
  return sinks.view({1, -1, 1});
}

/// [B, Hq, T, D] -> [B, T, heads, D], the query heads of a key-value head summed.
at::Tensor sum_to_heads(const at::Tensor& tensor, int64_t heads) {
  const at::Tensor grouped = tensor.unflatten(1, {heads, tensor.size(1) / heads});
  return grouped.sum(2).transpose(1, 2);
}

}  // namespace

void attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
               const AttentionOptions& options, at::Tensor& out, at::Tensor logsumexp) {
  if (q.numel() == 0) return;
  const at::Tensor logits = logits_of(q, k, options).value;
  at::Tensor lse = logits.logsumexp(-1);
  if (options.sinks.defined()) lse = at::logaddexp(lse, beside_queries(options.sinks));
  const at::Tensor p = (logits - lse.unsqueeze(3)).exp();
  put(out, at::matmul(p, by_head(v, q.size(2))).transpose(1, 2));
  if (logsumexp.defined()) put(logsumexp, lse);
}

void attention_backward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k,
                        const at::Tensor& v, const at::Tensor& out, const at::Tensor& logsumexp,
                        const AttentionOptions& options, at::Tensor& dq, at::Tensor& dk,
                        at::Tensor& dv, at::Tensor d_sinks) {
  const int64_t heads = q.size(2);
  if (q.numel() == 0) {
    if (d_sinks.defined()) d_sinks.zero_();
    return;
  }
  const Logits logits = logits_of(q, k, options);
  const at::Tensor lse = logsumexp.view({q.size(0), heads, q.size(1)});
  const at::Tensor p = (logits.value - lse.unsqueeze(3)).exp();
  const at::Tensor grad = by_head(dout, heads);
  const at::Tensor delta = (grad * by_head(out, heads)).sum(-1);
  const at::Tensor dp = at::matmul(grad, by_head(v, heads).transpose(2, 3));
  at::Tensor ds = p * (dp - delta.unsqueeze(3));
  ds = logits.slope.defined() ? ds * logits.slope : ds * options.scale;
  const at::Tensor d_query = at::matmul(ds, by_head(k, heads));
  const at::Tensor d_key = at::matmul(ds.transpose(2, 3), by_head(q, heads));
  const at::Tensor d_value = at::matmul(p.transpose(2, 3), grad);
  if (d_sinks.defined())
    put(d_sinks,
        ((beside_queries(options.sinks) - lse).exp() * delta).sum(at::IntArrayRef({0, 2})).neg());
  put(dq, d_query.transpose(1, 2));
  put(dk, sum_to_heads(d_key, k.size(2)));
  put(dv, sum_to_heads(d_value, v.size(2)));
}

// Counted along the lines above, at the places where the most is held.
int64_t attention_workspace(const CallSizes& c, bool backward) {
  const int64_t rows = c.batch * c.heads * c.places;
  const int64_t scores = 4 * rows * c.places;
  const int64_t keys = 4 * rows * c.head_dim;  // queries and keys by head, and their gradients
  const int64_t values = 4 * rows * c.value_dim;
  const int64_t sums = 2 * 4 * rows;
  // The logits, made of scores, their tangent and both that the slope is made of.
  const int64_t capped = c.softcap ? 7 * scores + c.places * c.places : 0;
  const int64_t widened = c.dtype == at::kFloat ? 0 : 3 * keys;  // both by head, and one in float32
  if (!backward) {
    return std::max({capped, widened, 3 * scores, 2 * (scores + keys), 2 * (scores + values)}) +
           sums;
  }
  const int64_t slope = c.softcap ? scores : 0;
  const int64_t by_group = std::max(keys, values) / (c.heads / c.kv_heads);
  const int64_t gradients = values + 2 * keys + std::max(keys, values + by_group);
  return std::max({capped, widened, 5 * scores + values + slope, 4 * scores + slope + gradients}) +
         sums;
}

}  // namespace trireme::kernels::aten
