// SiLU, GELU (tanh and erf), ReLU, alone and gated, forward and backward: one pass, float32 inside.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "trireme/kernels/cpu/activation.cpp"
#include "trireme/kernels/cpu/targets.h"
// clang-format off
#include "hwy/foreach_target.h"
#include "trireme/kernels/cpu/simd-inl.h"
// clang-format on
#include "trireme/kernels/ops.h"

HWY_BEFORE_NAMESPACE();
namespace trireme::kernels::HWY_NAMESPACE {

struct Silu {
  template <class D, class V>
  static HWY_INLINE V value(D d, V x) {
    return hn::Mul(x, sigmoid(d, x));
  }
  /// Value and derivative.
  template <class D, class V>
  static HWY_INLINE V both(D d, V x, V& slope) {
    const V s = sigmoid(d, x);
    const V y = hn::Mul(x, s);
    slope = hn::Add(s, hn::NegMulAdd(s, y, y));
    return y;
  }
};

/// 0.5 x (1 + tanh(u)) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3).
struct GeluTanh {
  static constexpr float kTwoSqrt2OverPi = 1.5957691216057308f;
  static constexpr float kCubic = 0.044715f;
  template <class D, class V>
  static HWY_INLINE V value(D d, V x) {
    V slope;
    return both(d, x, slope);
  }
  template <class D, class V>
  static HWY_INLINE V both(D d, V x, V& slope) {
    const V square = hn::Mul(x, x);
    const V inner = hn::MulAdd(square, hn::Set(d, kCubic), hn::Set(d, 1.0f));
    const V s = sigmoid(d, hn::Mul(hn::Mul(x, inner), hn::Set(d, kTwoSqrt2OverPi)));
    const V y = hn::Mul(x, s);
    const V chain = hn::Mul(hn::MulAdd(square, hn::Set(d, 3.0f * kCubic), hn::Set(d, 1.0f)),
                            hn::Set(d, kTwoSqrt2OverPi));
    slope = hn::MulAdd(hn::NegMulAdd(s, y, y), chain, s);
    return y;
  }
};

/// x Phi(x). erfc by the Chebyshev fit of Numerical Recipes (section 6.2), relative error
/// below 1.2e-7.
struct GeluErf {
  template <class D, class V>
  static HWY_INLINE V phi(D d, V x) {
    const V z = hn::Mul(hn::Abs(x), hn::Set(d, 0.70710678118654752f));
    const V t = hn::Div(hn::Set(d, 1.0f), hn::MulAdd(z, hn::Set(d, 0.5f), hn::Set(d, 1.0f)));
    V p = hn::Set(d, 0.17087277f);
    p = hn::MulAdd(p, t, hn::Set(d, -0.82215223f));
    p = hn::MulAdd(p, t, hn::Set(d, 1.48851587f));
    p = hn::MulAdd(p, t, hn::Set(d, -1.13520398f));
    p = hn::MulAdd(p, t, hn::Set(d, 0.27886807f));
    p = hn::MulAdd(p, t, hn::Set(d, -0.18628806f));
    p = hn::MulAdd(p, t, hn::Set(d, 0.09678418f));
    p = hn::MulAdd(p, t, hn::Set(d, 0.37409196f));
    p = hn::MulAdd(p, t, hn::Set(d, 1.00002368f));
    p = hn::MulAdd(p, t, hn::Set(d, -1.26551223f));
    const V exponent = hn::Max(hn::NegMulAdd(z, z, p), hn::Set(d, -87.0f));
    const V tail = hn::Mul(hn::Mul(hn::Set(d, 0.5f), t), hn::Exp(d, exponent));
    return hn::IfThenElse(hn::Lt(x, hn::Zero(d)), tail, hn::Sub(hn::Set(d, 1.0f), tail));
  }
  template <class D, class V>
  static HWY_INLINE V value(D d, V x) {
    return hn::Mul(x, phi(d, x));
  }
  template <class D, class V>
  static HWY_INLINE V both(D d, V x, V& slope) {
    const V p = phi(d, x);
    const V exponent = hn::Max(hn::Mul(hn::Mul(x, x), hn::Set(d, -0.5f)), hn::Set(d, -87.0f));
    const V density = hn::Mul(hn::Set(d, 0.39894228040143268f), hn::Exp(d, exponent));
    slope = hn::MulAdd(x, density, p);
    return hn::Mul(x, p);
  }
};

struct Relu {
  template <class D, class V>
  static HWY_INLINE V value(D d, V x) {
    return hn::IfThenZeroElse(hn::Lt(x, hn::Zero(d)), x);  // NaN stays NaN
  }
  template <class D, class V>
  static HWY_INLINE V both(D d, V x, V& slope) {
    slope = hn::IfThenElseZero(hn::Gt(x, hn::Zero(d)), hn::Set(d, 1.0f));
    return value(d, x);
  }
};

template <class Body>
HWY_INLINE void with_activation(Activation act, Body&& body) {
  switch (act) {
    case Activation::kSilu:
      return body(Silu{});
    case Activation::kGeluTanh:
      return body(GeluTanh{});
    case Activation::kGelu:
      return body(GeluErf{});
    case Activation::kRelu:
      return body(Relu{});
  }
}

template <class T>
void activate(Activation act, const T* x, size_t n, T* y) {
  with_activation(act, [&](auto f) HWY_ATTR {
    for_lanes(n, [&](auto d, size_t i) HWY_ATTR { store(d, f.value(d, load(d, x + i)), y + i); });
  });
}

template <class T>
void activate_backward(Activation act, const T* dy, const T* x, size_t n, T* dx) {
  with_activation(act, [&](auto f) HWY_ATTR {
    for_lanes(n, [&](auto d, size_t i) HWY_ATTR {
      auto slope = hn::Zero(d);
      f.both(d, load(d, x + i), slope);
      store(d, hn::Mul(load(d, dy + i), slope), dx + i);
    });
  });
}

template <class T>
void gate(Activation act, const T* gate_up, size_t rows, size_t h, T* y) {
  with_activation(act, [&](auto f) HWY_ATTR {
    for (size_t r = 0; r < rows; ++r) {
      const T* g = gate_up + r * 2 * h;
      T* out = y + r * h;
      for_lanes(h, [&](auto d, size_t i) HWY_ATTR {
        store(d, hn::Mul(f.value(d, load(d, g + i)), load(d, g + h + i)), out + i);
      });
    }
  });
}

/// y null: the forward result is not wanted.
template <class T>
void gate_backward(Activation act, const T* dy, const T* gate_up, size_t rows, size_t h,
                   T* d_gate_up, T* y) {
  with_activation(act, [&](auto f) HWY_ATTR {
    for (size_t r = 0; r < rows; ++r) {
      const T* in = gate_up + r * 2 * h;
      T* out = d_gate_up + r * 2 * h;
      const T* grad = dy + r * h;
      T* again = y == nullptr ? nullptr : y + r * h;
      for_lanes(h, [&](auto d, size_t i) HWY_ATTR {
        const auto up = load(d, in + h + i);
        const auto g = load(d, grad + i);
        auto slope = hn::Zero(d);
        const auto value = f.both(d, load(d, in + i), slope);
        store(d, hn::Mul(hn::Mul(g, up), slope), out + i);
        store(d, hn::Mul(g, value), out + h + i);
        if (again != nullptr) store(d, hn::Mul(value, up), again + i);
      });
    }
  });
}

#define TRIREME_ACTIVATION_INSTANCES(T, S)                                                    \
  void activate_##S(Activation a, const T* x, size_t n, T* y) {                               \
    activate(a, x, n, y);                                                                     \
  }                                                                                           \
  void activate_backward_##S(Activation a, const T* dy, const T* x, size_t n, T* dx) {        \
    activate_backward(a, dy, x, n, dx);                                                       \
  }                                                                                           \
  void gate_##S(Activation a, const T* x, size_t rows, size_t h, T* y) {                      \
    gate(a, x, rows, h, y);                                                                   \
  }                                                                                           \
  void gate_backward_##S(Activation a, const T* dy, const T* x, size_t rows, size_t h, T* dx, \
                         T* y) {                                                              \
    gate_backward(a, dy, x, rows, h, dx, y);                                                  \
  }
TRIREME_ACTIVATION_INSTANCES(float, f32)
TRIREME_ACTIVATION_INSTANCES(at::BFloat16, bf16)
#undef TRIREME_ACTIVATION_INSTANCES

}  // namespace trireme::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <ATen/Parallel.h>

#include <algorithm>

#include "trireme/base/error.h"
#include "trireme/kernels/cpu/dispatch.h"

namespace trireme::kernels {
HWY_EXPORT(activate_f32);
HWY_EXPORT(activate_bf16);
HWY_EXPORT(activate_backward_f32);
HWY_EXPORT(activate_backward_bf16);
HWY_EXPORT(gate_f32);
HWY_EXPORT(gate_bf16);
HWY_EXPORT(gate_backward_f32);
HWY_EXPORT(gate_backward_bf16);

namespace {

constexpr int64_t kGrainElements = 8192;

auto activate_for(float) {
  return TRIREME_KERNEL(activate_f32);
}
auto activate_for(at::BFloat16) {
  return TRIREME_KERNEL(activate_bf16);
}
auto activate_backward_for(float) {
  return TRIREME_KERNEL(activate_backward_f32);
}
auto activate_backward_for(at::BFloat16) {
  return TRIREME_KERNEL(activate_backward_bf16);
}
auto gate_for(float) {
  return TRIREME_KERNEL(gate_f32);
}
auto gate_for(at::BFloat16) {
  return TRIREME_KERNEL(gate_bf16);
}
auto gate_backward_for(float) {
  return TRIREME_KERNEL(gate_backward_f32);
}
auto gate_backward_for(at::BFloat16) {
  return TRIREME_KERNEL(gate_backward_bf16);
}

void check_same(const at::Tensor& a, const at::Tensor& b, const char* what) {
  TRIREME_CHECK(a.is_contiguous() && b.is_contiguous() && a.sizes() == b.sizes() &&
                    a.scalar_type() == b.scalar_type(),
                "{} must be contiguous and alike", what);
}

template <class T>
void activation_typed(Activation act, const at::Tensor& x, at::Tensor& y) {
  const T* in = x.const_data_ptr<T>();
  T* out = y.data_ptr<T>();
  const auto kernel = activate_for(T{});
  at::parallel_for(0, x.numel(), kGrainElements, [&](int64_t begin, int64_t end) {
    kernel(act, in + begin, static_cast<size_t>(end - begin), out + begin);
  });
}

template <class T>
void activation_backward_typed(Activation act, const at::Tensor& dy, const at::Tensor& x,
                               at::Tensor& dx) {
  const T* grad = dy.const_data_ptr<T>();
  const T* in = x.const_data_ptr<T>();
  T* out = dx.data_ptr<T>();
  const auto kernel = activate_backward_for(T{});
  at::parallel_for(0, x.numel(), kGrainElements, [&](int64_t begin, int64_t end) {
    kernel(act, grad + begin, in + begin, static_cast<size_t>(end - begin), out + begin);
  });
}

int64_t gated_width(const at::Tensor& gate_up, const at::Tensor& y, const char* what) {
  TRIREME_CHECK(gate_up.dim() == 2 && y.dim() == 2 && gate_up.is_contiguous() &&
                    y.is_contiguous() && gate_up.size(0) == y.size(0) &&
                    gate_up.size(1) == 2 * y.size(1) && gate_up.scalar_type() == y.scalar_type(),
                "gate_up must be [N, 2h] and {} [N, h], both contiguous", what);
  return y.size(1);
}

template <class T>
void gated_typed(Activation act, const at::Tensor& gate_up, at::Tensor& y) {
  const int64_t h = gated_width(gate_up, y, "y");
  const T* in = gate_up.const_data_ptr<T>();
  T* out = y.data_ptr<T>();
  const auto kernel = gate_for(T{});
  const int64_t grain = std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, h));
  at::parallel_for(0, y.size(0), grain, [&](int64_t begin, int64_t end) {
    kernel(act, in + begin * 2 * h, static_cast<size_t>(end - begin), static_cast<size_t>(h),
           out + begin * h);
  });
}

template <class T>
void gated_backward_typed(Activation act, const at::Tensor& dy, const at::Tensor& gate_up,
                          at::Tensor& d_gate_up, const at::Tensor& y) {
  const int64_t h = gated_width(gate_up, dy, "dy");
  check_same(gate_up, d_gate_up, "gate_up and d_gate_up");
  if (y.defined()) check_same(dy, y, "dy and y");
  const T* grad = dy.const_data_ptr<T>();
  const T* in = gate_up.const_data_ptr<T>();
  T* out = d_gate_up.data_ptr<T>();
  T* again = y.defined() ? y.data_ptr<T>() : nullptr;
  const auto kernel = gate_backward_for(T{});
  const int64_t grain = std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, h));
  at::parallel_for(0, dy.size(0), grain, [&](int64_t begin, int64_t end) {
    kernel(act, grad + begin * h, in + begin * 2 * h, static_cast<size_t>(end - begin),
           static_cast<size_t>(h), out + begin * 2 * h,
           again == nullptr ? nullptr : again + begin * h);
  });
}

}  // namespace

void activation(Activation act, const at::Tensor& x, at::Tensor& y) {
  check_same(x, y, "x and y");
  if (x.scalar_type() == at::kBFloat16) return activation_typed<at::BFloat16>(act, x, y);
  activation_typed<float>(act, x, y);
}

void activation_backward(Activation act, const at::Tensor& dy, const at::Tensor& x,
                         at::Tensor& dx) {
  check_same(x, dy, "x and dy");
  check_same(x, dx, "x and dx");
  if (x.scalar_type() == at::kBFloat16)
    return activation_backward_typed<at::BFloat16>(act, dy, x, dx);
  activation_backward_typed<float>(act, dy, x, dx);
}

void gated_activation(Activation act, const at::Tensor& gate_up, at::Tensor& y) {
  if (gate_up.scalar_type() == at::kBFloat16) return gated_typed<at::BFloat16>(act, gate_up, y);
  gated_typed<float>(act, gate_up, y);
}

void gated_activation_backward(Activation act, const at::Tensor& dy, const at::Tensor& gate_up,
                               at::Tensor& d_gate_up, at::Tensor y) {
  if (gate_up.scalar_type() == at::kBFloat16) {
    return gated_backward_typed<at::BFloat16>(act, dy, gate_up, d_gate_up, y);
  }
  gated_backward_typed<float>(act, dy, gate_up, d_gate_up, y);
}

}  // namespace trireme::kernels
#endif  // HWY_ONCE
