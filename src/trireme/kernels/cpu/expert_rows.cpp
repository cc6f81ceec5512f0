// What happens to rows between the products of a mixture of experts: sums over a token's rows, the gated activation
// with a weight a row, biases by group.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "trireme/kernels/cpu/expert_rows.cpp"
#include "trireme/kernels/cpu/targets.h"
// clang-format off
#include "hwy/foreach_target.h"
#include "trireme/kernels/cpu/activation-inl.h"
// clang-format on
#include "trireme/kernels/cpu/cpu_kernels.h"
#include "trireme/kernels/moe_ops.h"

HWY_BEFORE_NAMESPACE();
namespace trireme::kernels::HWY_NAMESPACE {

/// out = start + sum of rows[j] over j of `count`; start and rows[j] may be null.
template <class T>
void sum_of_rows(const T* start, const T* const* rows, size_t count, size_t width, T* out) {
  for_lanes(width, [&](auto d, size_t i) HWY_ATTR {
    auto sum = start == nullptr ? hn::Zero(d) : load(d, start + i);
    for (size_t j = 0; j < count; ++j) {
      if (rows[j] != nullptr) sum = hn::Add(sum, load(d, rows[j] + i));
    }
    store(d, sum, out + i);
  });
}

/// gpt_oss: (clamp(up) + 1) * g * sigmoid(1.702 g), g = min(gate, limit).
struct Clamped {
  static constexpr float kSlope = 1.702f;
  float limit;
  template <class D, class V>
  HWY_INLINE V value(D d, V gate, V up) const {
    const V g = hn::Min(gate, hn::Set(d, limit));
    return hn::Mul(factor(d, up), hn::Mul(g, sigmoid(d, hn::Mul(g, hn::Set(d, kSlope)))));
  }
  /// Value, and its derivatives by gate and up.
  template <class D, class V>
  HWY_INLINE V both(D d, V gate, V up, V& by_gate, V& by_up) const {
    const V bound = hn::Set(d, limit);
    const V g = hn::Min(gate, bound);
    const V s = sigmoid(d, hn::Mul(g, hn::Set(d, kSlope)));
    const V swish = hn::Mul(g, s);
    const V f = factor(d, up);
    const V slope = hn::MulAdd(hn::Mul(hn::Set(d, kSlope), swish), hn::Sub(hn::Set(d, 1.0f), s), s);
    by_gate = hn::IfThenElseZero(hn::Le(gate, bound), hn::Mul(f, slope));
    by_up = hn::IfThenElseZero(hn::Le(hn::Abs(up), bound), swish);
    return hn::Mul(f, swish);
  }

 private:
  template <class D, class V>
  HWY_INLINE V factor(D d, V up) const {
    const V bound = hn::Set(d, limit);
    return hn::Add(hn::Min(hn::Max(up, hn::Neg(bound)), bound), hn::Set(d, 1.0f));
  }
};

template <class Function>
struct Gated {
  template <class D, class V>
  HWY_INLINE V value(D d, V gate, V up) const {
    return hn::Mul(Function::value(d, gate), up);
  }
  template <class D, class V>
  HWY_INLINE V both(D d, V gate, V up, V& by_gate, V& by_up) const {
    V slope;
    by_up = Function::both(d, gate, slope);
    by_gate = hn::Mul(up, slope);
    return hn::Mul(by_up, up);
  }
};

template <class Body>
HWY_INLINE void with_gate(const ExpertActivation& act, Body&& body) {
  if (act.clamp_limit > 0.0) return body(Clamped{static_cast<float>(act.clamp_limit)});
  with_activation(act.activation, [&](auto f) HWY_ATTR { body(Gated<decltype(f)>{}); });
}

template <class T>
void weighted_gate(const ExpertActivation& act, const T* gate_up, const float* weights, size_t rows,
                   size_t f, T* y) {
  with_gate(act, [&](auto gate) HWY_ATTR {
    for (size_t r = 0; r < rows; ++r) {
      const T* in = gate_up + r * 2 * f;
      T* out = y + r * f;
      for_lanes(f, [&](auto d, size_t i) HWY_ATTR {
        const auto v = gate.value(d, load(d, in + i), load(d, in + f + i));
        store(d, hn::Mul(v, hn::Set(d, weights[r])), out + i);
      });
    }
  });
}

/// y null: the forward's result is not wanted.
template <class T>
void weighted_gate_backward(const ExpertActivation& act, const T* dy, const T* gate_up,
                            const float* weights, size_t rows, size_t f, T* d_gate_up,
                            float* d_weights, T* y) {
  with_gate(act, [&](auto gate) HWY_ATTR {
    for (size_t r = 0; r < rows; ++r) {
      const T* in = gate_up + r * 2 * f;
      const T* grad = dy + r * f;
      T* out = d_gate_up + r * 2 * f;
      T* again = y == nullptr ? nullptr : y + r * f;
      d_weights[r] = sum_lanes(f, [&](auto d, size_t i) HWY_ATTR {
        auto by_gate = hn::Zero(d);
        auto by_up = hn::Zero(d);
        const auto w = hn::Set(d, weights[r]);
        const auto v = gate.both(d, load(d, in + i), load(d, in + f + i), by_gate, by_up);
        const auto g = load(d, grad + i);
        const auto wg = hn::Mul(w, g);
        store(d, hn::Mul(wg, by_gate), out + i);
        store(d, hn::Mul(wg, by_up), out + f + i);
        if (again != nullptr) store(d, hn::Mul(w, v), again + i);
        return hn::Mul(g, v);
      });
    }
  });
}

/// y = w * x
template <class T>
void scaled_row(const T* x, float w, size_t n, T* y) {
  for_lanes(n, [&](auto d, size_t i)
                   HWY_ATTR { store(d, hn::Mul(load(d, x + i), hn::Set(d, w)), y + i); });
}

/// sums += w * x
template <class T>
void add_scaled_row(const T* x, float w, size_t n, float* sums) {
  for_lanes(n, [&](auto d, size_t i) HWY_ATTR {
    hn::StoreU(hn::MulAdd(load(d, x + i), hn::Set(d, w), hn::LoadU(d, sums + i)), d, sums + i);
  });
}

template <class T>
float dot_row(const T* a, const T* b, size_t n) {
  return sum_lanes(
      n, [&](auto d, size_t i) HWY_ATTR { return hn::Mul(load(d, a + i), load(d, b + i)); });
}

#define TRIREME_EXPERT_ROW_INSTANCES(T, S)                                                         \
  void sum_of_rows_##S(const T* start, const T* const* rows, size_t count, size_t n, T* out) {     \
    sum_of_rows(start, rows, count, n, out);                                                       \
  }                                                                                                \
  void weighted_gate_##S(const ExpertActivation& a, const T* x, const float* w, size_t rows,       \
                         size_t f, T* y) {                                                         \
    weighted_gate(a, x, w, rows, f, y);                                                            \
  }                                                                                                \
  void weighted_gate_backward_##S(const ExpertActivation& a, const T* dy, const T* x,              \
                                  const float* w, size_t rows, size_t f, T* dx, float* dw, T* y) { \
    weighted_gate_backward(a, dy, x, w, rows, f, dx, dw, y);                                       \
  }                                                                                                \
  void scaled_row_##S(const T* x, float w, size_t n, T* y) {                                       \
    scaled_row(x, w, n, y);                                                                        \
  }                                                                                                \
  void add_scaled_row_##S(const T* x, float w, size_t n, float* s) {                               \
    add_scaled_row(x, w, n, s);                                                                    \
  }                                                                                                \
  float dot_row_##S(const T* a, const T* b, size_t n) {                                            \
    return dot_row(a, b, n);                                                                       \
  }
TRIREME_EXPERT_ROW_INSTANCES(float, f32)
TRIREME_EXPERT_ROW_INSTANCES(at::BFloat16, bf16)
#undef TRIREME_EXPERT_ROW_INSTANCES

}  // namespace trireme::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "trireme/base/error.h"
#include "trireme/kernels/cpu/dispatch.h"

namespace trireme::kernels {
HWY_EXPORT(sum_of_rows_f32);
HWY_EXPORT(sum_of_rows_bf16);
HWY_EXPORT(weighted_gate_f32);
HWY_EXPORT(weighted_gate_bf16);
HWY_EXPORT(weighted_gate_backward_f32);
HWY_EXPORT(weighted_gate_backward_bf16);
HWY_EXPORT(scaled_row_f32);
HWY_EXPORT(scaled_row_bf16);
HWY_EXPORT(add_scaled_row_f32);
HWY_EXPORT(add_scaled_row_bf16);
HWY_EXPORT(dot_row_f32);
HWY_EXPORT(dot_row_bf16);

namespace {

constexpr int64_t kGrainElements = 8192;
constexpr int64_t kMaxTopK = 64;

int64_t grain(int64_t width) {
  return std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, width));
}

// The versions of both dtypes, chosen by a value of the type.
#define TRIREME_PICK(name)              \
  auto name##_for(float) {              \
    return TRIREME_KERNEL(name##_f32);  \
  }                                     \
  auto name##_for(at::BFloat16) {       \
    return TRIREME_KERNEL(name##_bf16); \
  }
TRIREME_PICK(sum_of_rows)
TRIREME_PICK(weighted_gate)
TRIREME_PICK(weighted_gate_backward)
TRIREME_PICK(scaled_row)
TRIREME_PICK(add_scaled_row)
TRIREME_PICK(dot_row)
#undef TRIREME_PICK

/// Calls body with a value of the tensor's element type.
template <class Body>
void with_dtype(const at::Tensor& tensor, Body&& body) {
  if (tensor.scalar_type() == at::kBFloat16) return body(at::BFloat16{});
  TRIREME_CHECK(tensor.scalar_type() == at::kFloat, "float32 or bfloat16, not {}",
                c10::toString(tensor.scalar_type()));
  body(float{});
}

void check_matrix(const at::Tensor& tensor, int64_t rows, int64_t cols, at::ScalarType dtype,
                  const char* what) {
  TRIREME_CHECK(tensor.defined() && tensor.dim() == 2 && tensor.is_contiguous() &&
                    tensor.size(0) == rows && tensor.size(1) == cols &&
                    tensor.scalar_type() == dtype,
                "{} must be a contiguous [{}, {}] of {}", what, rows, cols, c10::toString(dtype));
}

const float* row_weights(const at::Tensor& weights, int64_t rows) {
  TRIREME_CHECK(
      weights.scalar_type() == at::kFloat && weights.is_contiguous() && weights.numel() == rows,
      "weights must be float32 [{}]", rows);
  return weights.const_data_ptr<float>();
}

}  // namespace

namespace cpu {

void gather_rows(const at::Tensor& x, const ExpertRows& rows, at::Tensor& y) {
  const int64_t width = x.size(1);
  const int64_t count = rows.count();
  check_matrix(x, rows.rows.size(0), width, x.scalar_type(), "x");
  check_matrix(y, count, width, x.scalar_type(), "y");
  const auto bytes = static_cast<size_t>(width * x.element_size());
  const auto* from = static_cast<const std::byte*>(x.const_data_ptr());
  auto* to = static_cast<std::byte*>(y.data_ptr());
  const int64_t* tokens = rows.tokens.const_data_ptr<int64_t>();
  at::parallel_for(0, count, grain(width), [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      std::byte* row = to + static_cast<size_t>(m) * bytes;
      if (tokens[m] < 0) {
        std::memset(row, 0, bytes);
      } else {
        std::memcpy(row, from + static_cast<size_t>(tokens[m]) * bytes, bytes);
      }
    }
  });
}

void sum_rows(const at::Tensor& y, const ExpertRows& rows, const at::Tensor& start,
              at::Tensor& out) {
  const int64_t tokens = rows.rows.size(0);
  const int64_t top_k = rows.rows.size(1);
  const int64_t width = out.size(1);
  TRIREME_CHECK(top_k <= kMaxTopK, "at most {} experts a token, not {}", kMaxTopK, top_k);
  check_matrix(y, rows.count(), width, out.scalar_type(), "y");
  check_matrix(out, tokens, width, out.scalar_type(), "out");
  if (start.defined()) check_matrix(start, tokens, width, out.scalar_type(), "start");
  const int64_t* places = rows.rows.const_data_ptr<int64_t>();
  with_dtype(out, [&]<class T>(T type) {
    const auto kernel = sum_of_rows_for(type);
    const T* in = y.const_data_ptr<T>();
    const T* first = start.defined() ? start.const_data_ptr<T>() : nullptr;
    T* to = out.data_ptr<T>();
    at::parallel_for(0, tokens, grain(width * (top_k + 1)), [&](int64_t begin, int64_t end) {
      std::array<const T*, kMaxTopK> terms{};
      for (int64_t n = begin; n < end; ++n) {
        for (int64_t j = 0; j < top_k; ++j) {
          const int64_t m = places[n * top_k + j];
          terms[static_cast<size_t>(j)] = m < 0 ? nullptr : in + m * width;
        }
        kernel(first == nullptr ? nullptr : first + n * width, terms.data(),
               static_cast<size_t>(top_k), static_cast<size_t>(width), to + n * width);
      }
    });
  });
}

void weights_of_rows(const at::Tensor& weights, const ExpertRows& rows, at::Tensor& of_rows) {
  const float* from = row_weights(weights, rows.rows.numel());
  row_weights(of_rows, rows.count());
  float* to = of_rows.data_ptr<float>();
  std::fill_n(to, rows.count(), 0.0f);
  const int64_t* places = rows.rows.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < rows.rows.numel(); ++i) {
    if (places[i] >= 0) to[places[i]] = from[i];
  }
}

void weights_of_choices(const at::Tensor& of_rows, const ExpertRows& rows, at::Tensor& weights) {
  const float* from = row_weights(of_rows, rows.count());
  row_weights(weights, rows.rows.numel());
  float* to = weights.data_ptr<float>();
  const int64_t* places = rows.rows.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < rows.rows.numel(); ++i) to[i] = places[i] < 0 ? 0.0f : from[places[i]];
}

void weighted_gated_activation(const ExpertActivation& act, const at::Tensor& gate_up,
                               const at::Tensor& weights, at::Tensor& y) {
  const int64_t count = y.size(0);
  const int64_t f = y.size(1);
  check_matrix(gate_up, count, 2 * f, y.scalar_type(), "gate_up");
  check_matrix(y, count, f, y.scalar_type(), "y");
  const float* w = row_weights(weights, count);
  with_dtype(y, [&]<class T>(T type) {
    const auto kernel = weighted_gate_for(type);
    const T* in = gate_up.const_data_ptr<T>();
    T* out = y.data_ptr<T>();
    at::parallel_for(0, count, grain(f), [&](int64_t begin, int64_t end) {
      kernel(act, in + begin * 2 * f, w + begin, static_cast<size_t>(end - begin),
             static_cast<size_t>(f), out + begin * f);
    });
  });
}

void weighted_gated_activation_backward(const ExpertActivation& act, const at::Tensor& dy,
                                        const at::Tensor& gate_up, const at::Tensor& weights,
                                        at::Tensor& d_gate_up, at::Tensor& d_weights,
                                        const at::Tensor& y) {
  const int64_t count = dy.size(0);
  const int64_t f = dy.size(1);
  check_matrix(dy, count, f, dy.scalar_type(), "dy");
  check_matrix(gate_up, count, 2 * f, dy.scalar_type(), "gate_up");
  check_matrix(d_gate_up, count, 2 * f, dy.scalar_type(), "d_gate_up");
  if (y.defined()) check_matrix(y, count, f, dy.scalar_type(), "y");
  const float* w = row_weights(weights, count);
  row_weights(d_weights, count);
  float* dw = d_weights.data_ptr<float>();
  with_dtype(dy, [&]<class T>(T type) {
    const auto kernel = weighted_gate_backward_for(type);
    const T* grad = dy.const_data_ptr<T>();
    const T* in = gate_up.const_data_ptr<T>();
    T* out = d_gate_up.data_ptr<T>();
    T* again = y.defined() ? y.data_ptr<T>() : nullptr;
    at::parallel_for(0, count, grain(f), [&](int64_t begin, int64_t end) {
      kernel(act, grad + begin * f, in + begin * 2 * f, w + begin, static_cast<size_t>(end - begin),
             static_cast<size_t>(f), out + begin * 2 * f, dw + begin,
             again == nullptr ? nullptr : again + begin * f);
    });
  });
}

void grouped_bias(const at::Tensor& bias, const at::Tensor& weights, const GroupOffsets& offsets,
                  at::Tensor& y) {
  const int64_t n = y.size(1);
  const auto groups = static_cast<int64_t>(offsets.size()) - 1;
  check_matrix(bias, groups, n, y.scalar_type(), "bias");
  TRIREME_CHECK(y.size(0) == offsets.back() && y.stride(1) == 1, "y must be [{}, {}]",
                offsets.back(), n);
  const float* w = weights.defined() ? row_weights(weights, offsets.back()) : nullptr;
  with_dtype(y, [&]<class T>(T type) {
    const auto kernel = scaled_row_for(type);
    const T* from = bias.const_data_ptr<T>();
    T* to = y.data_ptr<T>();
    const int64_t stride = y.stride(0);
    at::parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g) {
        for (int64_t m = offsets[static_cast<size_t>(g)]; m < offsets[static_cast<size_t>(g) + 1];
             ++m) {
          kernel(from + g * n, w == nullptr ? 1.0f : w[m], static_cast<size_t>(n), to + m * stride);
        }
      }
    });
  });
}

void grouped_bias_backward(const at::Tensor& dy, const at::Tensor& bias, const at::Tensor& weights,
                           const GroupOffsets& offsets, at::Tensor& dbias, bool accumulate,
                           at::Tensor d_weights) {
  const int64_t n = dy.size(1);
  const auto groups = static_cast<int64_t>(offsets.size()) - 1;
  check_matrix(bias, groups, n, dy.scalar_type(), "bias");
  check_matrix(dbias, groups, n, at::kFloat, "dbias");
  TRIREME_CHECK(dy.size(0) == offsets.back() && dy.stride(1) == 1, "dy must be [{}, {}]",
                offsets.back(), n);
  const float* w = weights.defined() ? row_weights(weights, offsets.back()) : nullptr;
  float* dw = nullptr;
  if (d_weights.defined()) {
    row_weights(d_weights, offsets.back());
    dw = d_weights.data_ptr<float>();
  }
  with_dtype(dy, [&]<class T>(T type) {
    const auto add = add_scaled_row_for(type);
    const auto dot = dot_row_for(type);
    const T* grad = dy.const_data_ptr<T>();
    // The bias itself counts for the gradients of the weights alone, and may have no data else.
    const T* b = dw == nullptr ? nullptr : bias.const_data_ptr<T>();
    float* sums = dbias.data_ptr<float>();
    const int64_t stride = dy.stride(0);
    const auto width = static_cast<size_t>(n);
    at::parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g) {
        if (!accumulate) std::fill_n(sums + g * n, n, 0.0f);
        for (int64_t m = offsets[static_cast<size_t>(g)]; m < offsets[static_cast<size_t>(g) + 1];
             ++m) {
          const T* row = grad + m * stride;
          add(row, w == nullptr ? 1.0f : w[m], width, sums + g * n);
          if (dw != nullptr) dw[m] += dot(row, b + g * n, width);
        }
      }
    });
  });
}

}  // namespace cpu

}  // namespace trireme::kernels
#endif  // HWY_ONCE
