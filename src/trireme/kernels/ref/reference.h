// The plain reference of every kernel: loops a reader can check against the formula, on row-major std::vectors. With
// T = double it is what the fast kernels are tested against; its gradients are checked by finite differences.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "trireme/kernels/ops.h"

namespace trireme::kernels::ref {

template <class T>
using Array = std::vector<T>;

inline size_t index(int64_t i) {
  return static_cast<size_t>(i);
}

/// C[m, n] = A[m, k] B[n, k]^T.
template <class T>
Array<T> matmul_nt(const Array<T>& a, const Array<T>& b, int64_t m, int64_t n, int64_t k) {
  Array<T> c(index(m * n), T(0));
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      T sum = 0;
      for (int64_t p = 0; p < k; ++p) sum += a[index(i * k + p)] * b[index(j * k + p)];
      c[index(i * n + j)] = sum;
    }
  }
  return c;
}

template <class T>
Array<T> transposed(const Array<T>& a, int64_t rows, int64_t cols) {
  Array<T> t(a.size());
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) t[index(j * rows + i)] = a[index(i * cols + j)];
  }
  return t;
}

// --- Normalisation ---

template <class T>
Array<T> rms_norm(const Array<T>& x, const Array<T>& weight, T eps, int64_t rows, int64_t d) {
  Array<T> y(x.size());
  for (int64_t r = 0; r < rows; ++r) {
    T square = 0;
    for (int64_t i = 0; i < d; ++i) square += x[index(r * d + i)] * x[index(r * d + i)];
    const T rstd = 1 / std::sqrt(square / static_cast<T>(d) + eps);
    for (int64_t i = 0; i < d; ++i)
      y[index(r * d + i)] = x[index(r * d + i)] * rstd * weight[index(i)];
  }
  return y;
}

template <class T>
struct NormGradient {
  Array<T> dx;
  Array<T> dweight;
  Array<T> dbias;
};

template <class T>
NormGradient<T> rms_norm_backward(const Array<T>& dy, const Array<T>& x, const Array<T>& weight,
                                  T eps, int64_t rows, int64_t d) {
  NormGradient<T> g{Array<T>(x.size()), Array<T>(index(d), T(0)), {}};
  for (int64_t r = 0; r < rows; ++r) {
    T square = 0;
    for (int64_t i = 0; i < d; ++i) square += x[index(r * d + i)] * x[index(r * d + i)];
    const T rstd = 1 / std::sqrt(square / static_cast<T>(d) + eps);
    T dot = 0;
    for (int64_t i = 0; i < d; ++i)
      dot += dy[index(r * d + i)] * weight[index(i)] * x[index(r * d + i)] * rstd;
    for (int64_t i = 0; i < d; ++i) {
      const T normed = x[index(r * d + i)] * rstd;
      g.dx[index(r * d + i)] =
          rstd * (dy[index(r * d + i)] * weight[index(i)] - normed * dot / static_cast<T>(d));
      g.dweight[index(i)] += dy[index(r * d + i)] * normed;
    }
  }
  return g;
}

template <class T>
Array<T> layer_norm(const Array<T>& x, const Array<T>& weight, const Array<T>& bias, T eps,
                    int64_t rows, int64_t d) {
  Array<T> y(x.size());
  for (int64_t r = 0; r < rows; ++r) {
    T mean = 0;
    T variance = 0;
    for (int64_t i = 0; i < d; ++i) mean += x[index(r * d + i)] / static_cast<T>(d);
    for (int64_t i = 0; i < d; ++i)
      variance += (x[index(r * d + i)] - mean) * (x[index(r * d + i)] - mean) / static_cast<T>(d);
    const T rstd = 1 / std::sqrt(variance + eps);
    for (int64_t i = 0; i < d; ++i) {
      y[index(r * d + i)] = (x[index(r * d + i)] - mean) * rstd * weight[index(i)] + bias[index(i)];
    }
  }
  return y;
}

template <class T>
NormGradient<T> layer_norm_backward(const Array<T>& dy, const Array<T>& x, const Array<T>& weight,
                                    T eps, int64_t rows, int64_t d) {
  NormGradient<T> g{Array<T>(x.size()), Array<T>(index(d), T(0)), Array<T>(index(d), T(0))};
  const T n = static_cast<T>(d);
  for (int64_t r = 0; r < rows; ++r) {
    T mean = 0;
    T variance = 0;
    for (int64_t i = 0; i < d; ++i) mean += x[index(r * d + i)] / n;
    for (int64_t i = 0; i < d; ++i)
      variance += (x[index(r * d + i)] - mean) * (x[index(r * d + i)] - mean) / n;
    const T rstd = 1 / std::sqrt(variance + eps);
    T mean_g = 0;
    T mean_gx = 0;
    for (int64_t i = 0; i < d; ++i) {
      const T scaled = dy[index(r * d + i)] * weight[index(i)];
      mean_g += scaled / n;
      mean_gx += scaled * (x[index(r * d + i)] - mean) * rstd / n;
    }
    for (int64_t i = 0; i < d; ++i) {
      const T normed = (x[index(r * d + i)] - mean) * rstd;
      g.dx[index(r * d + i)] =
          rstd * (dy[index(r * d + i)] * weight[index(i)] - mean_g - normed * mean_gx);
      g.dweight[index(i)] += dy[index(r * d + i)] * normed;
      g.dbias[index(i)] += dy[index(r * d + i)];
    }
  }
  return g;
}

// --- Activations ---

template <class T>
T activation(Activation act, T x) {
  constexpr T kPi = T(3.14159265358979323846);
  switch (act) {
    case Activation::kSilu:
      return x / (1 + std::exp(-x));
    case Activation::kGeluTanh:
      return x / 2 * (1 + std::tanh(std::sqrt(2 / kPi) * (x + T(0.044715) * x * x * x)));
    case Activation::kGelu:
      return x / 2 * (1 + std::erf(x / std::sqrt(T(2))));
    case Activation::kRelu:
      return x < 0 ? 0 : x;
  }
  return 0;
}

template <class T>
T activation_slope(Activation act, T x) {
  constexpr T kPi = T(3.14159265358979323846);
  switch (act) {
    case Activation::kSilu: {
      const T s = 1 / (1 + std::exp(-x));
      return s + x * s * (1 - s);
    }
    case Activation::kGeluTanh: {
      const T t = std::tanh(std::sqrt(2 / kPi) * (x + T(0.044715) * x * x * x));
      return (1 + t) / 2 + x / 2 * (1 - t * t) * std::sqrt(2 / kPi) * (1 + 3 * T(0.044715) * x * x);
    }
    case Activation::kGelu:
      return (1 + std::erf(x / std::sqrt(T(2)))) / 2 +
             x * std::exp(-x * x / 2) / std::sqrt(2 * kPi);
    case Activation::kRelu:
      return x > 0 ? 1 : 0;
  }
  return 0;
}

// --- Rotary ---

/// x [rows, heads, head_dim] turned in place; cos, sin [positions, half]. Pairs are (i, half + i), or (2 i, 2 i + 1).
template <class T>
void rotary(Array<T>& x, const Array<int64_t>& positions, const Array<T>& cos, const Array<T>& sin,
            int64_t heads, int64_t head_dim, int64_t half, bool inverse, bool interleaved = false) {
  for (size_t n = 0; n < positions.size(); ++n) {
    for (int64_t h = 0; h < heads; ++h) {
      T* head = x.data() + (static_cast<int64_t>(n) * heads + h) * head_dim;
      for (int64_t i = 0; i < half; ++i) {
        const T c = cos[index(positions[n] * half + i)];
        const T s = sin[index(positions[n] * half + i)] * (inverse ? -1 : 1);
        T& first = head[interleaved ? 2 * i : i];
        T& second = head[interleaved ? 2 * i + 1 : half + i];
        const T a = first;
        const T b = second;
        first = a * c - b * s;
        second = b * c + a * s;
      }
    }
  }
}

// --- Attention ---

struct AttentionShape {
  int64_t batch = 1;
  int64_t queries = 1;
  int64_t keys = 1;
  int64_t heads = 1;
  int64_t kv_heads = 1;
  int64_t d = 1;
  int64_t value_d = 0;  ///< 0: d
  int64_t window = 0;   ///< keys that a query sees; 0: all
  double softcap = 0;   ///< 0: none
  int64_t past = -1;    ///< keys before the first query's place; -1: keys - queries
  int64_t value_dim() const { return value_d > 0 ? value_d : d; }
};

/// Whether query i of row b sees key j.
inline bool sees(const AttentionShape& shape, const Segments* segments, int64_t b, int64_t i,
                 int64_t j) {
  const int64_t own = i + (shape.past >= 0 ? shape.past : shape.keys - shape.queries);
  if (j > own || (shape.window > 0 && j <= own - shape.window)) return false;
  if (segments == nullptr) return true;
  int64_t start = 0;
  for (const int32_t s : (*segments)[index(b)]) {
    if (s <= i) start = s;
  }
  return j >= start;
}

template <class T>
struct AttentionResult {
  Array<T> out;        ///< [B, Tq, Hq, Dv]
  Array<T> logsumexp;  ///< [B, Hq, Tq]
};

/// The logit of a score, and its derivative.
template <class T>
std::pair<T, T> attention_logit(const AttentionShape& s, T score, T scale) {
  if (s.softcap <= 0) return {scale * score, scale};
  const T cap = s.softcap;
  const T t = std::tanh(scale * score / cap);
  return {cap * t, scale * (1 - t * t)};
}

/// `sinks` [Hq] or empty.
template <class T>
AttentionResult<T> attention(const Array<T>& q, const Array<T>& k, const Array<T>& v, T scale,
                             const AttentionShape& s, const Segments* segments,
                             const Array<T>& sinks = {}) {
  const int64_t dv = s.value_dim();
  AttentionResult<T> result{Array<T>(index(s.batch * s.queries * s.heads * dv), T(0)),
                            Array<T>(index(s.batch * s.heads * s.queries))};
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t h = 0; h < s.heads; ++h) {
      const int64_t kh = h / (s.heads / s.kv_heads);
      for (int64_t i = 0; i < s.queries; ++i) {
        const T* qi = q.data() + ((b * s.queries + i) * s.heads + h) * s.d;
        T* out = result.out.data() + ((b * s.queries + i) * s.heads + h) * dv;
        Array<T> logits(index(s.keys), T(0));
        T maximum = sinks.empty() ? T(-1e300) : sinks[index(h)];
        for (int64_t j = 0; j < s.keys; ++j) {
          if (!sees(s, segments, b, i, j)) continue;
          const T* kj = k.data() + ((b * s.keys + j) * s.kv_heads + kh) * s.d;
          T score = 0;
          for (int64_t c = 0; c < s.d; ++c) score += qi[c] * kj[c];
          logits[index(j)] = attention_logit(s, score, scale).first;
          maximum = std::max(maximum, logits[index(j)]);
        }
        T sum = sinks.empty() ? T(0) : std::exp(sinks[index(h)] - maximum);
        for (int64_t j = 0; j < s.keys; ++j) {
          if (!sees(s, segments, b, i, j)) continue;
          const T p = std::exp(logits[index(j)] - maximum);
          sum += p;
          const T* vj = v.data() + ((b * s.keys + j) * s.kv_heads + kh) * dv;
          for (int64_t c = 0; c < dv; ++c) out[c] += p * vj[c];
        }
        for (int64_t c = 0; c < dv; ++c) out[c] /= sum;
        result.logsumexp[index((b * s.heads + h) * s.queries + i)] = maximum + std::log(sum);
      }
    }
  }
  return result;
}

template <class T>
struct AttentionGradient {
  Array<T> dq;
  Array<T> dk;
  Array<T> dv;
  Array<T> d_sinks;
};

template <class T>
AttentionGradient<T> attention_backward(const Array<T>& dout, const Array<T>& q, const Array<T>& k,
                                        const Array<T>& v, T scale, const AttentionShape& s,
                                        const Segments* segments, const Array<T>& sinks = {}) {
  const AttentionResult<T> forward = attention(q, k, v, scale, s, segments, sinks);
  const int64_t dv = s.value_dim();
  AttentionGradient<T> g{Array<T>(q.size(), T(0)), Array<T>(k.size(), T(0)),
                         Array<T>(v.size(), T(0)), Array<T>(sinks.size(), T(0))};
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t h = 0; h < s.heads; ++h) {
      const int64_t kh = h / (s.heads / s.kv_heads);
      for (int64_t i = 0; i < s.queries; ++i) {
        const int64_t qi = ((b * s.queries + i) * s.heads + h) * s.d;
        const int64_t oi = ((b * s.queries + i) * s.heads + h) * dv;
        const T lse = forward.logsumexp[index((b * s.heads + h) * s.queries + i)];
        T delta = 0;
        for (int64_t c = 0; c < dv; ++c) delta += dout[index(oi + c)] * forward.out[index(oi + c)];
        if (!sinks.empty()) g.d_sinks[index(h)] -= std::exp(sinks[index(h)] - lse) * delta;
        for (int64_t j = 0; j < s.keys; ++j) {
          if (!sees(s, segments, b, i, j)) continue;
          const int64_t kj = ((b * s.keys + j) * s.kv_heads + kh) * s.d;
          const int64_t vj = ((b * s.keys + j) * s.kv_heads + kh) * dv;
          T score = 0;
          T dp = 0;
          for (int64_t c = 0; c < s.d; ++c) score += q[index(qi + c)] * k[index(kj + c)];
          for (int64_t c = 0; c < dv; ++c) dp += dout[index(oi + c)] * v[index(vj + c)];
          const auto [logit, slope] = attention_logit(s, score, scale);
          const T p = std::exp(logit - lse);
          const T ds = slope * p * (dp - delta);
          for (int64_t c = 0; c < dv; ++c) g.dv[index(vj + c)] += p * dout[index(oi + c)];
          for (int64_t c = 0; c < s.d; ++c) {
            g.dq[index(qi + c)] += ds * k[index(kj + c)];
            g.dk[index(kj + c)] += ds * q[index(qi + c)];
          }
        }
      }
    }
  }
  return g;
}

// --- Output head with loss ---

template <class T>
struct CrossEntropyResult {
  T loss = 0;       ///< unscaled sum
  Array<T> losses;  ///< [N]
  Array<T> d_hidden;
  Array<T> d_weight;
};

template <class T>
CrossEntropyResult<T> linear_cross_entropy(const Array<T>& hidden, const Array<T>& weight,
                                           const Array<int64_t>& targets, T scale, int64_t d,
                                           int64_t vocab, T softcap = 0) {
  const auto rows = static_cast<int64_t>(targets.size());
  CrossEntropyResult<T> result{T(0), Array<T>(targets.size(), T(0)), Array<T>(hidden.size(), T(0)),
                               Array<T>(weight.size(), T(0))};
  Array<T> logits = matmul_nt(hidden, weight, rows, vocab, d);
  for (T& logit : logits) logit = softcap > 0 ? softcap * std::tanh(logit / softcap) : logit;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t target = targets[index(r)];
    if (target == kIgnoredTarget) continue;
    const T* row = logits.data() + r * vocab;
    const T maximum = *std::max_element(row, row + vocab);
    T sum = 0;
    for (int64_t c = 0; c < vocab; ++c) sum += std::exp(row[c] - maximum);
    result.losses[index(r)] = maximum + std::log(sum) - row[target];
    result.loss += result.losses[index(r)];
    for (int64_t c = 0; c < vocab; ++c) {
      const T slope = softcap > 0 ? 1 - row[c] / softcap * (row[c] / softcap) : T(1);
      const T g = scale * slope * (std::exp(row[c] - maximum) / sum - (c == target ? 1 : 0));
      for (int64_t i = 0; i < d; ++i) {
        result.d_hidden[index(r * d + i)] += g * weight[index(c * d + i)];
        result.d_weight[index(c * d + i)] += g * hidden[index(r * d + i)];
      }
    }
  }
  return result;
}

// --- AdamW ---

template <class T>
void adamw(Array<T>& weights, const Array<T>& gradients, Array<T>& exp_avg, Array<T>& exp_avg_sq,
           const AdamWParams& p) {
  const auto step = static_cast<T>(p.step);
  for (size_t i = 0; i < weights.size(); ++i) {
    const T g = gradients[i] * T(p.gradient_scale);
    exp_avg[i] = T(p.beta1) * exp_avg[i] + (1 - T(p.beta1)) * g;
    exp_avg_sq[i] = T(p.beta2) * exp_avg_sq[i] + (1 - T(p.beta2)) * g * g;
    const T m = exp_avg[i] / (1 - std::pow(T(p.beta1), step));
    const T v = exp_avg_sq[i] / (1 - std::pow(T(p.beta2), step));
    weights[i] -= T(p.lr) * T(p.weight_decay) * weights[i];
    weights[i] -= T(p.lr) * m / (std::sqrt(v) + T(p.eps));
  }
}

}  // namespace trireme::kernels::ref
