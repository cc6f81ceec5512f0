// Vector loads and stores of float and bfloat16 as float lanes, compiled once per instruction set
// (Highway's foreach_target). Included by the kernels of this folder inside their per-target pass.
#if defined(TRIREME_KERNELS_CPU_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TRIREME_KERNELS_CPU_SIMD_INL_H_
#undef TRIREME_KERNELS_CPU_SIMD_INL_H_
#else
#define TRIREME_KERNELS_CPU_SIMD_INL_H_
#endif

#include <c10/util/BFloat16.h>

#include <cstddef>
#include <cstdint>

#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace trireme::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using FloatTag = hn::ScalableTag<float>;
using OneFloatTag = hn::CappedTag<float, 1>;

template <class D>
HWY_INLINE hn::Vec<D> load(D d, const float* p) {
  return hn::LoadU(d, p);
}
template <class D>
HWY_INLINE hn::Vec<D> load(D d, const at::BFloat16* p) {
  const hn::Rebind<uint16_t, D> d16;
  const hn::Rebind<uint32_t, D> d32;
  const auto bits = hn::LoadU(d16, reinterpret_cast<const uint16_t*>(p));
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(d32, bits)));
}

template <class D>
HWY_INLINE void store(D d, hn::Vec<D> v, float* p) {
  hn::StoreU(v, d, p);
}
/// The bits of a bfloat16 in the low half of each lane: rounded to nearest even as c10::BFloat16
/// does; NaN stays NaN.
template <class D>
HWY_INLINE hn::Vec<hn::Rebind<uint32_t, D>> bf16_bits(D /*d*/, hn::Vec<D> v) {
  const hn::Rebind<uint32_t, D> d32;
  const auto bits = hn::BitCast(d32, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(d32, 1u));
  const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(d32, 0x7FFFu)));
  const auto nan = hn::RebindMask(d32, hn::IsNaN(v));
  return hn::ShiftRight<16>(hn::IfThenElse(nan, hn::Set(d32, 0x7FC00000u), rounded));
}
template <class D>
HWY_INLINE void store(D d, hn::Vec<D> v, at::BFloat16* p) {
  const hn::Rebind<uint16_t, D> d16;
  const hn::Rebind<int32_t, D> di32;
  hn::StoreU(hn::DemoteTo(d16, hn::BitCast(di32, bf16_bits(d, v))), d16,
             reinterpret_cast<uint16_t*>(p));
}

/// a = p[0], p[2] ..., b = p[1], p[3] ...
template <class D>
HWY_INLINE void load_pairs(D d, const float* p, hn::Vec<D>& a, hn::Vec<D>& b) {
  hn::LoadInterleaved2(d, p, a, b);
}
template <class D>
HWY_INLINE void load_pairs(D d, const at::BFloat16* p, hn::Vec<D>& a, hn::Vec<D>& b) {
  const hn::Rebind<uint32_t, D> d32;
  const auto words = hn::LoadU(d32, reinterpret_cast<const uint32_t*>(p));
  a = hn::BitCast(d, hn::ShiftLeft<16>(words));
  b = hn::BitCast(d, hn::And(words, hn::Set(d32, 0xFFFF0000u)));
}
template <class D>
HWY_INLINE void store_pairs(D d, hn::Vec<D> a, hn::Vec<D> b, float* p) {
  hn::StoreInterleaved2(a, b, d, p);
}
template <class D>
HWY_INLINE void store_pairs(D d, hn::Vec<D> a, hn::Vec<D> b, at::BFloat16* p) {
  const hn::Rebind<uint32_t, D> d32;
  const auto words = hn::Or(bf16_bits(d, a), hn::ShiftLeft<16>(bf16_bits(d, b)));
  hn::StoreU(words, d32, reinterpret_cast<uint32_t*>(p));
}

/// Calls body(tag, i) for whole vectors of [0, n), then for single lanes of the rest.
template <class Body>
HWY_INLINE void for_lanes(size_t n, Body&& body) {
  const FloatTag d;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) body(d, i);
  const OneFloatTag one;
  for (; i < n; ++i) body(one, i);
}

/// exp(scale * x - shift), NaN where x is not finite: Highway's Exp alone would make zero of NaN and hide a divergence.
template <class D>
HWY_INLINE hn::Vec<D> shifted_exp(D d, hn::Vec<D> x, float scale, float shift) {
  const auto e = hn::Exp(d, hn::MulSub(x, hn::Set(d, scale), hn::Set(d, shift)));
  return hn::Add(e, hn::Sub(x, x));
}

/// 1 / (1 + exp(-z)), without overflow.
template <class D>
HWY_INLINE hn::Vec<D> sigmoid(D d, hn::Vec<D> z) {
  const auto one = hn::Set(d, 1.0f);
  return hn::Div(one, hn::Add(one, hn::Exp(d, hn::Min(hn::Neg(z), hn::Set(d, 88.0f)))));
}

/// tanh from one exponential; exact at the ends, where exp overflows.
template <class D>
HWY_INLINE hn::Vec<D> tanh_of(D d, hn::Vec<D> x) {
  const auto one = hn::Set(d, 1.0f);
  const auto limited = hn::Min(hn::Max(x, hn::Set(d, -20.0f)), hn::Set(d, 20.0f));
  const auto e = hn::Exp(d, hn::Add(limited, limited));
  return hn::Add(hn::Div(hn::Sub(e, one), hn::Add(e, one)), hn::Sub(x, x));
}

/// Sums term(tag, i) over [0, n) in two accumulators of full vectors, then lanes, then the rest: a
/// fixed order.
template <class Term>
HWY_INLINE float sum_lanes(size_t n, Term&& term) {
  const FloatTag d;
  const size_t lanes = hn::Lanes(d);
  auto sum0 = hn::Zero(d);
  auto sum1 = hn::Zero(d);
  size_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    sum0 = hn::Add(sum0, term(d, i));
    sum1 = hn::Add(sum1, term(d, i + lanes));
  }
  if (i + lanes <= n) {
    sum0 = hn::Add(sum0, term(d, i));
    i += lanes;
  }
  float sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(sum0, sum1)));
  const OneFloatTag one;
  for (; i < n; ++i) sum += hn::GetLane(term(one, i));
  return sum;
}

}  // namespace trireme::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
