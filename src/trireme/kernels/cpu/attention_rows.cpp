#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "trireme/kernels/cpu/attention_rows.cpp"
#include "trireme/kernels/cpu/targets.h"
// clang-format off
#include "hwy/foreach_target.h"
#include "trireme/kernels/cpu/simd-inl.h"
// clang-format on
#include "trireme/kernels/cpu/attention_rows.h"

#include <algorithm>
#include <cmath>

HWY_BEFORE_NAMESPACE();
namespace trireme::kernels::HWY_NAMESPACE {

constexpr size_t kColumns = 64;

HWY_INLINE float max_of(const float* x, size_t n) {
  const FloatTag d;
  const size_t lanes = hn::Lanes(d);
  auto best = hn::Set(d, x[0]);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) best = hn::Max(best, hn::LoadU(d, x + i));
  float result = hn::GetLane(hn::MaxOfLanes(d, best));
  for (; i < n; ++i) result = x[i] > result ? x[i] : result;
  return result;
}

HWY_INLINE void fill_zero(float* x, size_t n) {
  for_lanes(n, [&](auto tag, size_t i) HWY_ATTR { hn::StoreU(hn::Zero(tag), tag, x + i); });
}

float softmax_row(float* s, size_t begin, size_t end, size_t n, const cpu::ScoreMap& map,
                  float* maximum, float* sum) {
  if (begin >= end) {
    fill_zero(s, n);
    return 1.0f;
  }
  fill_zero(s, begin);
  fill_zero(s + end, n - end);
  float* x = s + begin;
  const size_t count = end - begin;
  float scale = map.scale;
  if (map.softcap > 0.0f) {
    for_lanes(count, [&](auto tag, size_t i) HWY_ATTR {
      const auto capped =
          tanh_of(tag, hn::Mul(hn::LoadU(tag, x + i), hn::Set(tag, map.scale / map.softcap)));
      hn::StoreU(hn::Mul(capped, hn::Set(tag, map.softcap)), tag, x + i);
    });
    scale = 1.0f;
  }
  const float old = *maximum;
  const float raw = max_of(x, count) * scale;
  const float now = raw > old ? raw : old;
  const float part = sum_lanes(count, [&](auto tag, size_t i) HWY_ATTR {
    const auto e = shifted_exp(tag, hn::LoadU(tag, x + i), scale, now);
    hn::StoreU(e, tag, x + i);
    return e;
  });
  const float correction = std::exp(old - now);
  *maximum = now;
  *sum = *sum * correction + part;
  return correction;
}

void scale_row(float* x, size_t n, float factor) {
  for_lanes(n, [&](auto d, size_t i) HWY_ATTR {
    hn::StoreU(hn::Mul(hn::LoadU(d, x + i), hn::Set(d, factor)), d, x + i);
  });
}

template <class T>
void scale_into(const float* x, size_t n, float factor, T* out) {
  for_lanes(n, [&](auto d, size_t i) HWY_ATTR {
    store(d, hn::Mul(hn::LoadU(d, x + i), hn::Set(d, factor)), out + i);
  });
}
void scale_into_f32(const float* x, size_t n, float factor, float* out) {
  scale_into(x, n, factor, out);
}
void scale_into_bf16(const float* x, size_t n, float factor, at::BFloat16* out) {
  scale_into(x, n, factor, out);
}

template <class E>
void clear(E* x, size_t n) {
  for_lanes(n, [&](auto d, size_t i) HWY_ATTR { store(d, hn::Zero(d), x + i); });
}

// Not backward_tile: argument-dependent look-up would find the dispatching function.
template <class E>
void tile_gradient(const cpu::BackwardTile<E>& tile, const cpu::ScoreMap& map) {
  const bool capped = map.softcap > 0.0f;
  for (int64_t r = 0; r < tile.keys; ++r) {
    const size_t row = static_cast<size_t>(r) * kColumns;
    const int64_t first = std::max<int64_t>(0, r - tile.offset);
    const int64_t last = std::min(tile.queries, r - tile.offset + tile.window);
    if (first >= last) {
      clear(tile.p + row, kColumns);
      clear(tile.ds + row, kColumns);
      continue;
    }
    const auto begin = static_cast<size_t>(first);
    const auto count = static_cast<size_t>(last - first);
    const float* s = tile.s + row + begin;
    const float* dp = tile.dp + row + begin;
    E* p_out = tile.p + row + begin;
    E* ds_out = tile.ds + row + begin;
    const float* lse = tile.lse + begin;
    const float* delta = tile.delta + begin;
    for_lanes(count, [&](auto d, size_t i) HWY_ATTR {
      auto factor = hn::Set(d, map.scale);
      const auto raw = hn::LoadU(d, s + i);
      auto logit = hn::Mul(raw, factor);
      if (capped) {
        const auto t = tanh_of(d, hn::Mul(raw, hn::Set(d, map.scale / map.softcap)));
        logit = hn::Mul(t, hn::Set(d, map.softcap));
        factor = hn::Mul(factor, hn::NegMulAdd(t, t, hn::Set(d, 1.0f)));
      }
      // As shifted_exp, with a shift for every lane.
      const auto exponent = hn::Sub(logit, hn::LoadU(d, lse + i));
      const auto p = hn::Add(hn::Exp(d, exponent), hn::Sub(raw, raw));
      const auto ds =
          hn::Mul(hn::Mul(p, factor), hn::Sub(hn::LoadU(d, dp + i), hn::LoadU(d, delta + i)));
      store(d, p, p_out + i);
      store(d, ds, ds_out + i);
    });
    clear(tile.p + row, begin);
    clear(tile.ds + row, begin);
    clear(p_out + count, kColumns - begin - count);
    clear(ds_out + count, kColumns - begin - count);
  }
}
void backward_tile_f32(const cpu::BackwardTile<float>& tile, const cpu::ScoreMap& map) {
  tile_gradient(tile, map);
}
void backward_tile_bf16(const cpu::BackwardTile<at::BFloat16>& tile, const cpu::ScoreMap& map) {
  tile_gradient(tile, map);
}

template <class T>
float dot(const T* a, const T* b, size_t n) {
  return sum_lanes(
      n, [&](auto d, size_t i) HWY_ATTR { return hn::Mul(load(d, a + i), load(d, b + i)); });
}
float dot_f32(const float* a, const float* b, size_t n) {
  return dot(a, b, n);
}
float dot_bf16(const at::BFloat16* a, const at::BFloat16* b, size_t n) {
  return dot(a, b, n);
}

}  // namespace trireme::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "trireme/kernels/cpu/dispatch.h"

namespace trireme::kernels {
HWY_EXPORT(softmax_row);
HWY_EXPORT(scale_row);
HWY_EXPORT(scale_into_f32);
HWY_EXPORT(scale_into_bf16);
HWY_EXPORT(backward_tile_f32);
HWY_EXPORT(backward_tile_bf16);
HWY_EXPORT(dot_f32);
HWY_EXPORT(dot_bf16);

namespace cpu {

float softmax_row(float* s, size_t begin, size_t end, size_t n, const ScoreMap& map, float* maximum,
                  float* sum) {
  return TRIREME_KERNEL(softmax_row)(s, begin, end, n, map, maximum, sum);
}
void scale_row(float* x, size_t n, float factor) {
  TRIREME_KERNEL(scale_row)(x, n, factor);
}
void scale_into(const float* x, size_t n, float factor, float* out) {
  TRIREME_KERNEL(scale_into_f32)(x, n, factor, out);
}
void scale_into(const float* x, size_t n, float factor, at::BFloat16* out) {
  TRIREME_KERNEL(scale_into_bf16)(x, n, factor, out);
}
void backward_tile(const BackwardTile<float>& tile, const ScoreMap& map) {
  TRIREME_KERNEL(backward_tile_f32)(tile, map);
}
void backward_tile(const BackwardTile<at::BFloat16>& tile, const ScoreMap& map) {
  TRIREME_KERNEL(backward_tile_bf16)(tile, map);
}
float dot(const float* a, const float* b, size_t n) {
  return TRIREME_KERNEL(dot_f32)(a, b, n);
}
float dot(const at::BFloat16* a, const at::BFloat16* b, size_t n) {
  return TRIREME_KERNEL(dot_bf16)(a, b, n);
}

}  // namespace cpu
}  // namespace trireme::kernels
#endif  // HWY_ONCE
