#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "trireme/kernels/cpu/router_scores.cpp"
#include "trireme/kernels/cpu/targets.h"
// clang-format off
#include "hwy/foreach_target.h"
#include "trireme/kernels/cpu/simd-inl.h"
// clang-format on
#include <algorithm>
#include <cmath>
#include <limits>

#include "trireme/kernels/cpu/router_scores.h"

HWY_BEFORE_NAMESPACE();
namespace trireme::kernels::HWY_NAMESPACE {

/// Calls body(i, count) for [0, n): whole vectors, then the rest as one vector of `count` lanes. There are often fewer
/// experts than lanes.
template <class Body>
HWY_INLINE void for_vectors(size_t n, Body&& body) {
  const size_t lanes = hn::Lanes(FloatTag());
  for (size_t i = 0; i < n; i += lanes) body(i, HWY_MIN(lanes, n - i));
}

/// The first `count` lanes from p, zero in the others; nothing past them is read.
template <class D>
HWY_INLINE hn::Vec<D> load_first(D d, const float* p, size_t count) {
  if (count == hn::Lanes(d)) return hn::LoadU(d, p);
  HWY_ALIGN float lanes[hn::MaxLanes(D())] = {};
  std::copy_n(p, count, lanes);
  return hn::Load(d, lanes);
}

template <class D>
HWY_INLINE void store_first(D d, hn::Vec<D> v, float* p, size_t count) {
  if (count == hn::Lanes(d)) return hn::StoreU(v, d, p);
  HWY_ALIGN float lanes[hn::MaxLanes(D())];
  hn::Store(v, d, lanes);
  std::copy_n(lanes, count, p);
}

float softmax_row(const float* z, size_t n, float* p) {
  const FloatTag d;
  auto tops = hn::Set(d, -std::numeric_limits<float>::infinity());
  for_vectors(n, [&](size_t i, size_t count) HWY_ATTR {
    tops = hn::IfThenElse(hn::FirstN(d, count), hn::Max(tops, load_first(d, z + i, count)), tops);
  });
  const float top = hn::GetLane(hn::MaxOfLanes(d, tops));
  auto sums = hn::Zero(d);
  for_vectors(n, [&](size_t i, size_t count) HWY_ATTR {
    const auto e = shifted_exp(d, load_first(d, z + i, count), 1.0f, top);
    sums = hn::Add(sums, hn::IfThenElseZero(hn::FirstN(d, count), e));
    store_first(d, e, p + i, count);
  });
  const float sum = hn::GetLane(hn::SumOfLanes(d, sums));
  const auto inverse = hn::Set(d, 1.0f / sum);
  for_vectors(n, [&](size_t i, size_t count) HWY_ATTR {
    store_first(d, hn::Mul(load_first(d, p + i, count), inverse), p + i, count);
  });
  return top + std::log(sum);
}

void sigmoid_row(const float* z, size_t n, float* s) {
  const FloatTag d;
  for_vectors(n, [&](size_t i, size_t count) HWY_ATTR {
    const auto x = load_first(d, z + i, count);
    store_first(d, hn::Add(sigmoid(d, x), hn::Sub(x, x)), s + i, count);
  });
}

double add_shares(const float* p, size_t n, float scale, double* sums) {
  const FloatTag d;
  const hn::ScalableTag<double> wide;
  const hn::Rebind<float, decltype(wide)> half;
  auto terms = hn::Zero(d);
  for_vectors(n, [&](size_t i, size_t count) HWY_ATTR {
    const auto share = hn::Mul(load_first(d, p + i, count), hn::Set(d, scale));
    // A share of zero adds nothing: 0 log 0 is 0.
    const auto log = hn::Log(d, hn::Max(share, hn::Set(d, std::numeric_limits<float>::min())));
    terms = hn::MulAdd(share, log, terms);  // lanes past the last expert are zero
  });
  size_t i = 0;
  const size_t lanes = hn::Lanes(wide);
  for (; i + lanes <= n; i += lanes) {
    const auto share = hn::Mul(hn::LoadU(half, p + i), hn::Set(half, scale));
    hn::StoreU(hn::Add(hn::LoadU(wide, sums + i), hn::PromoteTo(wide, share)), wide, sums + i);
  }
  for (; i < n; ++i) sums[i] += static_cast<double>(p[i] * scale);
  return -static_cast<double>(hn::GetLane(hn::SumOfLanes(d, terms)));
}

}  // namespace trireme::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "trireme/kernels/cpu/dispatch.h"

namespace trireme::kernels {
HWY_EXPORT(softmax_row);
HWY_EXPORT(sigmoid_row);
HWY_EXPORT(add_shares);

namespace cpu {
const RouterScoreKernels& router_score_kernels() {
  static const RouterScoreKernels kernels = {
      TRIREME_KERNEL(softmax_row), TRIREME_KERNEL(sigmoid_row), TRIREME_KERNEL(add_shares)};
  return kernels;
}
}  // namespace cpu

}  // namespace trireme::kernels
#endif  // HWY_ONCE
