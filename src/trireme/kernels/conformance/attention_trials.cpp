// Attention, forward and backward.
//
// A probability is exp(logit - logsumexp). With L the largest sum of magnitudes behind a logit (scale |q| |k|), logits are
// off by at most gamma(d + 3) L, so probabilities by the factor exp(2 gamma L): that counts as 2 L (d + 3) operations, and
// 16 for the exponential and the division. A kernel may round probabilities and their gradients to the compute dtype
// before it multiplies them: l = 1 (forward) and 2 (backward).
#include <ATen/TensorOperators.h>
#include <ATen/ops/matmul.h>

#include <cmath>

#include "trireme/kernels/aten/aten_kernels.h"
#include "trireme/kernels/conformance/trial.h"

namespace trireme::kernels::conformance {

namespace {

/// The options of a trial, and what they point to.
struct Options {
  Segments segments;
  AttentionOptions attention;
};

enum OptionBits {
  kSegments = 1,
  kWindow = 2,
  kSoftcap = 4,
  kSinks = 8,
  kFewQueries = 16,
  kPast = 32
};
constexpr int kBits[] = {0,           kSegments,
                         kWindow,     kSoftcap,
                         kSinks,      kSegments | kWindow | kSoftcap | kSinks,
                         kFewQueries, kFewQueries | kWindow,
                         kPast,       kFewQueries | kPast | kWindow};

/// Sizes: batch, places, query heads, key-value heads, width of a head, width of a value.
Options options_of(Trial& t) {
  Options o;
  const int bits = kBits[t.option()];
  const int64_t places = t.size(1);
  o.attention.scale = 0.8 / std::sqrt(static_cast<double>(t.size(4)));
  if ((bits & kWindow) != 0) o.attention.window = std::max<int64_t>(1, places / 3);
  if ((bits & kSoftcap) != 0) o.attention.softcap = 1.5;
  if ((bits & kSinks) != 0) o.attention.sinks = t.floats({t.size(2)});
  // The keys' last query is the first that is asked: others see as much, or within a window less.
  if ((bits & kPast) != 0) o.attention.past = places - 1;
  if ((bits & kPast) != 0 && (bits & kWindow) != 0)
    o.attention.window = std::max<int64_t>(1, places);
  if ((bits & kSegments) != 0) {
    for (int64_t b = 0; b < t.size(0); ++b) {
      o.segments.push_back({0});
      for (int64_t at = 1 + b; at < places; at += 1 + places / 2)
        o.segments.back().push_back(static_cast<int32_t>(at));
    }
  }
  return o;
}

/// [B, T, H, D] -> [B, heads, T, D].
at::Tensor by_head(const at::Tensor& x, int64_t heads) {
  return x.transpose(1, 2).repeat_interleave(heads / x.size(2), 1);
}

at::Tensor sum_to_heads(const at::Tensor& x, int64_t heads) {
  return x.unflatten(1, {heads, x.size(1) / heads}).sum(2).transpose(1, 2);
}

/// Operations that the inputs of the softmax count as.
double softmax_operations(const at::Tensor& q, const at::Tensor& k, double scale) {
  const at::Tensor sizes =
      at::matmul(by_head(q, q.size(2)).abs(), by_head(k, q.size(2)).abs().transpose(2, 3)) * scale;
  const double largest = sizes.numel() > 0 ? sizes.max().item<double>() : 0.0;
  return 2 * (largest + 1) * (static_cast<double>(q.size(3)) + 3) + 16;
}

void try_attention(decltype(&kernels::attention) attention, Trial& t) {
  Options o = options_of(t);
  if ((kBits[t.option()] & kSegments) != 0) o.attention.segments = &o.segments;
  const int64_t heads = t.size(2);
  const bool few = (kBits[t.option()] & kFewQueries) != 0;
  const int64_t queries = few ? (t.size(1) + 2) / 3 : t.size(1);
  const at::Tensor q = t.rows({t.size(0), queries, heads, t.size(4)});
  const at::Tensor k = t.rows({t.size(0), t.size(1), t.size(3), t.size(4)});
  const at::Tensor v = t.rows({t.size(0), t.size(1), t.size(3), t.size(5)});
  at::Tensor out = t.output_rows({t.size(0), queries, heads, t.size(5)});
  const at::Tensor logsumexp = few ? at::Tensor() : t.float_output({t.size(0), heads, queries});
  attention(q, k, v, o.attention, out, logsumexp);
  Bound bound{.low_roundings = 1};
  Bound of_sum;
  if (t.reference()) {
    const double softmax = softmax_operations(q, k, o.attention.scale);
    bound.operations = softmax + static_cast<double>(t.size(1));
    // The same probabilities of the values' magnitudes.
    bound.magnitude = out.clone();
    kernels::aten::attention(q, k, v.abs(), o.attention, bound.magnitude, {});
    of_sum.operations = bound.operations;
    if (logsumexp.defined()) of_sum.magnitude = logsumexp.abs() + 1.0;
  }
  t.result("out", out, bound);
  if (logsumexp.defined()) t.result("logsumexp", logsumexp, of_sum);
}

void try_attention_backward(decltype(&kernels::attention_backward) backward, Trial& t) {
  Options o = options_of(t);
  if ((kBits[t.option()] & kSegments) != 0) o.attention.segments = &o.segments;
  const int64_t heads = t.size(2);
  const int64_t kv_heads = t.size(3);
  const int64_t places = t.size(1);
  const bool few = (kBits[t.option()] & kFewQueries) != 0;
  const int64_t queries = few ? (places + 2) / 3 : places;
  const at::Tensor q = t.rows({t.size(0), queries, heads, t.size(4)});
  const at::Tensor k = t.rows({t.size(0), places, kv_heads, t.size(4)});
  const at::Tensor v = t.rows({t.size(0), places, kv_heads, t.size(5)});
  const at::Tensor dout = t.rows({t.size(0), queries, heads, t.size(5)});
  // What the forward gave, exactly: errors of the forward are not this kernel's.
  AttentionOptions exactly = o.attention;
  const auto exact = [](const at::Tensor& x) { return x.to(at::kCPU).to(at::kDouble); };
  if (exactly.sinks.defined()) exactly.sinks = exact(exactly.sinks);
  at::Tensor out = exact(dout).clone();
  at::Tensor sums = exact(q).new_empty({t.size(0), heads, queries});
  kernels::aten::attention(exact(q), exact(k), exact(v), exactly, out, sums);
  out = t.strided(t.compute(out));
  const at::Tensor logsumexp = t.wide(sums);
  at::Tensor dq = t.output_rows(q.sizes());
  at::Tensor dk = t.output_rows(k.sizes());
  at::Tensor dv = t.output_rows(v.sizes());
  const at::Tensor d_sinks = o.attention.sinks.defined() ? t.float_output({heads}) : at::Tensor();
  backward(dout, q, k, v, out, logsumexp, o.attention, dq, dk, dv, d_sinks);
  Bound by_q{.low_roundings = 2};
  Bound by_k{.low_roundings = 2};
  Bound by_v{.low_roundings = 2};
  Bound by_sinks;
  if (t.reference() && q.numel() > 0) {
    // The probabilities are the gradients by v of an attention whose values are places: dout one-hot of them.
    const double scale = o.attention.scale;
    AttentionOptions identity = o.attention;
    at::Tensor eye = q.new_zeros({places, places});
    eye.fill_diagonal_(1.0);
    const at::Tensor values =
        eye.view({1, places, 1, places}).expand({t.size(0), -1, kv_heads, -1});
    at::Tensor p = q.new_empty({t.size(0), queries, heads, places});
    kernels::aten::attention(q, k, values, identity, p, {});
    p = p.transpose(1, 2);
    const at::Tensor grad = by_head(dout, heads).abs();
    const at::Tensor delta = (grad * by_head(out, heads).abs()).sum(-1, /*keepdim=*/true);
    const at::Tensor ds =
        p * (at::matmul(grad, by_head(v, heads).abs().transpose(2, 3)) + delta) * scale;
    // 1 - tanh^2 of a soft cap loses digits: twice the error of the logit, absolute.
    const double cap = o.attention.softcap > 0.0 ? 3.0 : 1.0;
    const double operations = cap * softmax_operations(q, k, scale) +
                              static_cast<double>(places * heads / kv_heads + t.size(5)) + 8;
    by_q.operations = by_k.operations = by_v.operations = by_sinks.operations = operations;
    by_q.magnitude = cap * at::matmul(ds, by_head(k, heads).abs()).transpose(1, 2);
    by_k.magnitude =
        cap * sum_to_heads(at::matmul(ds.transpose(2, 3), by_head(q, heads).abs()), kv_heads);
    by_v.magnitude = sum_to_heads(at::matmul(p.transpose(2, 3), grad), kv_heads);
    if (d_sinks.defined()) {
      const at::Tensor share = (o.attention.sinks.view({1, -1, 1}) - logsumexp).exp();
      by_sinks.magnitude = (share * delta.squeeze(3)).sum(at::IntArrayRef({0, 2}));
      by_sinks.operations += static_cast<double>(t.size(0) * queries);
    }
  }
  t.result("dq", dq, by_q);
  t.result("dk", dk, by_k);
  t.result("dv", dv, by_v);
  if (d_sinks.defined()) t.result("d_sinks", d_sinks, by_sinks);
}

}  // namespace

std::vector<TrialTable> attention_trials() {
  const std::vector<std::vector<int64_t>> sizes = {{1, 1, 1, 1, 1, 1},   {2, 5, 4, 2, 8, 8},
                                                   {1, 67, 3, 1, 17, 9}, {2, 130, 2, 2, 16, 24},
                                                   {3, 33, 6, 3, 66, 6}, {0, 4, 2, 1, 8, 8}};
  const std::vector<const char*> options = {"causal",
                                            "documents",
                                            "window",
                                            "softcap",
                                            "sinks",
                                            "documents, window, softcap and sinks",
                                            "fewer queries than keys",
                                            "fewer queries than keys, window",
                                            "keys of a stretch before",
                                            "keys of a stretch before, window"};
  return {
      {"attention", sizes, options, true, {}, TRIREME_TRIAL(attention)},
      {"attention_backward", sizes, options, true, {}, TRIREME_TRIAL(attention_backward)},
  };
}

}  // namespace trireme::kernels::conformance
