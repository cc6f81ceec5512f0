// The activations and their slopes on vectors, for the per-target pass of the kernels of this folder.
#if defined(TRIREME_KERNELS_CPU_ACTIVATION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TRIREME_KERNELS_CPU_ACTIVATION_INL_H_
#undef TRIREME_KERNELS_CPU_ACTIVATION_INL_H_
#else
#define TRIREME_KERNELS_CPU_ACTIVATION_INL_H_
#endif

#include "trireme/kernels/cpu/simd-inl.h"
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

}  // namespace trireme::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
