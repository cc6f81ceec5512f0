#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "trireme/kernels/cpu/panel_rows.cpp"
#include "trireme/kernels/cpu/targets.h"
// clang-format off
#include "hwy/foreach_target.h"
#include "trireme/kernels/cpu/simd-inl.h"
// clang-format on
#include <algorithm>

#include "trireme/kernels/cpu/panel_gemm.h"
#include "trireme/kernels/cpu/panel_rows.h"

HWY_BEFORE_NAMESPACE();
namespace trireme::kernels::HWY_NAMESPACE {

using FloatTag = hn::CappedTag<float, cpu::kPanelColumns>;

/// Vector j of a row of C, of which `count` values count.
HWY_INLINE hn::Vec<FloatTag> load_some(FloatTag d, const float* from, int64_t count) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  if (count >= lanes) return hn::LoadU(d, from);
  HWY_ALIGN float values[cpu::kPanelColumns] = {};
  for (int64_t i = 0; i < count; ++i) values[i] = from[i];
  return hn::Load(d, values);
}
HWY_INLINE void store_some(FloatTag d, hn::Vec<FloatTag> vector, float* to, int64_t count) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  if (count >= lanes) return hn::StoreU(vector, d, to);
  HWY_ALIGN float values[cpu::kPanelColumns];
  hn::Store(vector, d, values);
  for (int64_t i = 0; i < count; ++i) to[i] = values[i];
}

/// kRows rows and up to two vectors of columns, `count` columns in all.
template <int kRows>
HWY_INLINE void multiply_block(int64_t inner, const float* a, int64_t lda, const float* panel,
                               int64_t count, bool add, float* c, int64_t ldc) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const bool two = count > lanes;
  hn::Vec<FloatTag> left[kRows];
  hn::Vec<FloatTag> right[kRows];
  for (int r = 0; r < kRows; ++r) {
    left[r] = add ? load_some(d, c + r * ldc, count) : hn::Zero(d);
    right[r] = add && two ? load_some(d, c + r * ldc + lanes, count - lanes) : hn::Zero(d);
  }
  for (int64_t k = 0; k < inner; ++k) {
    const auto b0 = hn::LoadU(d, panel + k * cpu::kPanelColumns);
    const auto b1 = two ? hn::LoadU(d, panel + k * cpu::kPanelColumns + lanes) : b0;
    for (int r = 0; r < kRows; ++r) {
      const auto x = hn::Set(d, a[r * lda + k]);
      left[r] = hn::MulAdd(x, b0, left[r]);
      right[r] = hn::MulAdd(x, b1, right[r]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    store_some(d, left[r], c + r * ldc, count);
    if (two) store_some(d, right[r], c + r * ldc + lanes, count - lanes);
  }
}

void multiply_rows(int64_t rows, int64_t nb, int64_t inner, const float* a, int64_t lda,
                   const float* panel, bool add, float* c, int64_t ldc) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(FloatTag()));
  int64_t r = 0;
  const auto block = [&](auto multiply) HWY_ATTR {
    for (int64_t column = 0; column < nb; column += 2 * lanes)
      multiply(inner, a + r * lda, lda, panel + column, std::min(nb - column, 2 * lanes), add,
               c + r * ldc + column, ldc);
  };
  for (; r + 4 <= rows; r += 4) block(multiply_block<4>);
  for (; r < rows; ++r) block(multiply_block<1>);
}

}  // namespace trireme::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "trireme/kernels/cpu/dispatch.h"

namespace trireme::kernels {
HWY_EXPORT(multiply_rows);

namespace cpu {

void multiply_rows(int64_t rows, int64_t nb, int64_t inner, const float* a, int64_t lda,
                   const float* panel, bool add, float* c, int64_t ldc) {
  TRIREME_KERNEL(multiply_rows)(rows, nb, inner, a, lda, panel, add, c, ldc);
}

}  // namespace cpu
}  // namespace trireme::kernels
#endif
