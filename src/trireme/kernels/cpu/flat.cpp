// Passes over flat buffers: AdamW, sums of squares, lane combination, rounding to bfloat16; and the
// row copies of the embedding and rotary kernels.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "trireme/kernels/cpu/flat.cpp"
#include "trireme/kernels/cpu/targets.h"
// clang-format off
#include "hwy/foreach_target.h"
#include "trireme/kernels/cpu/simd-inl.h"
// clang-format on
#include "trireme/kernels/cpu/flat.h"

HWY_BEFORE_NAMESPACE();
namespace trireme::kernels::HWY_NAMESPACE {

/// The operations and their order are those of torch.optim.AdamW's single-tensor path.
void adamw_range(float* weights, const float* gradients, float* exp_avg, float* exp_avg_sq,
                 at::BFloat16* compute, size_t n, const cpu::AdamWConstants& c) {
  for_lanes(n, [&](auto d, size_t i) HWY_ATTR {
    const auto g = hn::Mul(hn::LoadU(d, gradients + i), hn::Set(d, c.gradient_scale));
    auto m = hn::LoadU(d, exp_avg + i);
    auto v = hn::LoadU(d, exp_avg_sq + i);
    m = hn::MulAdd(hn::Set(d, c.one_minus_beta1), hn::Sub(g, m), m);
    v = hn::MulAdd(hn::Mul(g, hn::Set(d, c.one_minus_beta2)), g, hn::Mul(v, hn::Set(d, c.beta2)));
    const auto denominator =
        hn::Add(hn::Div(hn::Sqrt(v), hn::Set(d, c.sqrt_correction2)), hn::Set(d, c.eps));
    auto w = hn::Mul(hn::LoadU(d, weights + i), hn::Set(d, c.decay));
    w = hn::MulAdd(hn::Set(d, c.negative_step_size), hn::Div(m, denominator), w);
    hn::StoreU(m, d, exp_avg + i);
    hn::StoreU(v, d, exp_avg_sq + i);
    hn::StoreU(w, d, weights + i);
    if (compute != nullptr) store(d, w, compute + i);
  });
}

double sum_of_squares_range(const float* x, size_t n) {
  const hn::ScalableTag<double> d;
  const hn::Rebind<float, decltype(d)> df;
  const size_t lanes = hn::Lanes(d);
  auto sum0 = hn::Zero(d);
  auto sum1 = hn::Zero(d);
  size_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    const auto a = hn::PromoteTo(d, hn::LoadU(df, x + i));
    const auto b = hn::PromoteTo(d, hn::LoadU(df, x + i + lanes));
    sum0 = hn::MulAdd(a, a, sum0);
    sum1 = hn::MulAdd(b, b, sum1);
  }
  double sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(sum0, sum1)));
  for (; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return sum;
}

void add_range(float* a, const float* b, size_t n) {
  for_lanes(n, [&](auto d, size_t i) HWY_ATTR {
    hn::StoreU(hn::Add(hn::LoadU(d, a + i), hn::LoadU(d, b + i)), d, a + i);
  });
}

template <class Out>
void scaled_sum(const float* x, float a, const at::BFloat16* y, float b, Out* out, size_t n) {
  for_lanes(n, [&](auto d, size_t i) HWY_ATTR {
    const auto first = hn::Mul(hn::LoadU(d, x + i), hn::Set(d, a));
    store(d, hn::MulAdd(load(d, y + i), hn::Set(d, b), first), out + i);
  });
}
void scaled_sum_to_bf16(const float* x, float a, const at::BFloat16* y, float b, at::BFloat16* out,
                        size_t n) {
  scaled_sum(x, a, y, b, out, n);
}
void scaled_sum_to_f32(const float* x, float a, const at::BFloat16* y, float b, float* out,
                       size_t n) {
  scaled_sum(x, a, y, b, out, n);
}

template <class From, class To>
void convert_rows(const From* src, int64_t src_stride, To* dst, int64_t dst_stride, size_t rows,
                  size_t cols) {
  for (size_t r = 0; r < rows; ++r) {
    const From* in = src + static_cast<int64_t>(r) * src_stride;
    To* out = dst + static_cast<int64_t>(r) * dst_stride;
    for_lanes(cols, [&](auto d, size_t i) HWY_ATTR { store(d, load(d, in + i), out + i); });
  }
}
void convert_rows_to_bf16(const float* src, int64_t ss, at::BFloat16* dst, int64_t ds, size_t rows,
                          size_t cols) {
  convert_rows(src, ss, dst, ds, rows, cols);
}
void convert_rows_to_f32(const at::BFloat16* src, int64_t ss, float* dst, int64_t ds, size_t rows,
                         size_t cols) {
  convert_rows(src, ss, dst, ds, rows, cols);
}

/// out = bias (or 0) + residual (or 0), as float or as the residual's dtype.
template <class T, class Out>
void start_rows(const T* bias, const T* residual, int64_t residual_stride, Out* out, int64_t stride,
                size_t rows, size_t cols) {
  for (size_t r = 0; r < rows; ++r) {
    const T* in =
        residual == nullptr ? nullptr : residual + static_cast<int64_t>(r) * residual_stride;
    Out* to = out + static_cast<int64_t>(r) * stride;
    for_lanes(cols, [&](auto d, size_t i) HWY_ATTR {
      auto v = bias == nullptr ? hn::Zero(d) : load(d, bias + i);
      if (in != nullptr) v = hn::Add(v, load(d, in + i));
      store(d, v, to + i);
    });
  }
}
void start_rows_f32(const float* bias, const float* residual, int64_t rs, float* out, int64_t s,
                    size_t rows, size_t cols) {
  start_rows(bias, residual, rs, out, s, rows, cols);
}
void start_rows_bf16(const at::BFloat16* bias, const at::BFloat16* residual, int64_t rs, float* out,
                     int64_t s, size_t rows, size_t cols) {
  start_rows(bias, residual, rs, out, s, rows, cols);
}

void interleave_bf16(const at::BFloat16* first, const at::BFloat16* second, at::BFloat16* to,
                     size_t n) {
  const auto* low = reinterpret_cast<const uint16_t*>(first);
  const auto* high = reinterpret_cast<const uint16_t*>(second);
  auto* out = reinterpret_cast<uint32_t*>(to);
  const hn::ScalableTag<uint32_t> d;
  const hn::Rebind<uint16_t, decltype(d)> half;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto upper = hn::ShiftLeft<16>(hn::PromoteTo(d, hn::LoadU(half, high + i)));
    hn::StoreU(hn::Or(upper, hn::PromoteTo(d, hn::LoadU(half, low + i))), d, out + i);
  }
  for (; i < n; ++i) out[i] = static_cast<uint32_t>(high[i]) << 16 | low[i];
}

template <class T>
void add_columns(const T* x, size_t n, float* sums) {
  for_lanes(n, [&](auto d, size_t i) HWY_ATTR {
    hn::StoreU(hn::Add(hn::LoadU(d, sums + i), load(d, x + i)), d, sums + i);
  });
}
void add_columns_f32(const float* x, size_t n, float* sums) {
  add_columns(x, n, sums);
}
void add_columns_bf16(const at::BFloat16* x, size_t n, float* sums) {
  add_columns(x, n, sums);
}

template <class T>
void sum_two(const T* a, const T* b, size_t n, T* out) {
  for_lanes(n, [&](auto d, size_t i)
                   HWY_ATTR { store(d, hn::Add(load(d, a + i), load(d, b + i)), out + i); });
}
void sum_two_f32(const float* a, const float* b, size_t n, float* out) {
  sum_two(a, b, n, out);
}
void sum_two_bf16(const at::BFloat16* a, const at::BFloat16* b, size_t n, at::BFloat16* out) {
  sum_two(a, b, n, out);
}

/// Rotates one head: pairs (i, i + half) by angle i; sign is -1 for the inverse.
template <class T>
void rotate_head(T* x, const float* cos, const float* sin, size_t half, float sign) {
  for_lanes(half, [&](auto d, size_t i) HWY_ATTR {
    const auto a = load(d, x + i);
    const auto b = load(d, x + half + i);
    const auto c = hn::LoadU(d, cos + i);
    const auto s = hn::Mul(hn::LoadU(d, sin + i), hn::Set(d, sign));
    store(d, hn::NegMulAdd(b, s, hn::Mul(a, c)), x + i);
    store(d, hn::MulAdd(a, s, hn::Mul(b, c)), x + half + i);
  });
}
void rotate_head_f32(float* x, const float* c, const float* s, size_t half, float sign) {
  rotate_head(x, c, s, half, sign);
}
void rotate_head_bf16(at::BFloat16* x, const float* c, const float* s, size_t half, float sign) {
  rotate_head(x, c, s, half, sign);
}

/// The same for pairs (2 i, 2 i + 1).
template <class T>
void rotate_pairs(T* x, const float* cos, const float* sin, size_t half, float sign) {
  const FloatTag d;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= half; i += lanes) {
    auto a = hn::Zero(d);
    auto b = hn::Zero(d);
    load_pairs(d, x + 2 * i, a, b);
    const auto c = hn::LoadU(d, cos + i);
    const auto s = hn::Mul(hn::LoadU(d, sin + i), hn::Set(d, sign));
    store_pairs(d, hn::NegMulAdd(b, s, hn::Mul(a, c)), hn::MulAdd(a, s, hn::Mul(b, c)), x + 2 * i);
  }
  const OneFloatTag one;
  for (; i < half; ++i) {
    const auto a = load(one, x + 2 * i);
    const auto b = load(one, x + 2 * i + 1);
    const auto c = hn::LoadU(one, cos + i);
    const auto s = hn::Mul(hn::LoadU(one, sin + i), hn::Set(one, sign));
    store(one, hn::NegMulAdd(b, s, hn::Mul(a, c)), x + 2 * i);
    store(one, hn::MulAdd(a, s, hn::Mul(b, c)), x + 2 * i + 1);
  }
}
void rotate_pairs_f32(float* x, const float* c, const float* s, size_t half, float sign) {
  rotate_pairs(x, c, s, half, sign);
}
void rotate_pairs_bf16(at::BFloat16* x, const float* c, const float* s, size_t half, float sign) {
  rotate_pairs(x, c, s, half, sign);
}

}  // namespace trireme::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "trireme/base/error.h"
#include "trireme/kernels/cpu/cpu_kernels.h"
#include "trireme/kernels/cpu/dispatch.h"
#include "trireme/kernels/ops.h"

namespace trireme::kernels {
HWY_EXPORT(adamw_range);
HWY_EXPORT(sum_of_squares_range);
HWY_EXPORT(add_range);
HWY_EXPORT(scaled_sum_to_bf16);
HWY_EXPORT(scaled_sum_to_f32);
HWY_EXPORT(convert_rows_to_bf16);
HWY_EXPORT(convert_rows_to_f32);
HWY_EXPORT(start_rows_f32);
HWY_EXPORT(start_rows_bf16);
HWY_EXPORT(interleave_bf16);
HWY_EXPORT(add_columns_f32);
HWY_EXPORT(add_columns_bf16);
HWY_EXPORT(sum_two_f32);
HWY_EXPORT(sum_two_bf16);
HWY_EXPORT(rotate_head_f32);
HWY_EXPORT(rotate_head_bf16);
HWY_EXPORT(rotate_pairs_f32);
HWY_EXPORT(rotate_pairs_bf16);

namespace cpu {

const FlatKernels<float>& flat_kernels(float) {
  static const FlatKernels<float> kernels = {
      TRIREME_KERNEL(start_rows_f32), TRIREME_KERNEL(add_columns_f32), TRIREME_KERNEL(sum_two_f32),
      TRIREME_KERNEL(rotate_head_f32), TRIREME_KERNEL(rotate_pairs_f32)};
  return kernels;
}
const FlatKernels<at::BFloat16>& flat_kernels(at::BFloat16) {
  static const FlatKernels<at::BFloat16> kernels = {
      TRIREME_KERNEL(start_rows_bf16), TRIREME_KERNEL(add_columns_bf16),
      TRIREME_KERNEL(sum_two_bf16), TRIREME_KERNEL(rotate_head_bf16),
      TRIREME_KERNEL(rotate_pairs_bf16)};
  return kernels;
}

void rows_to_bf16(const float* src, int64_t src_stride, at::BFloat16* dst, int64_t dst_stride,
                  int64_t rows, int64_t cols) {
  TRIREME_KERNEL(convert_rows_to_bf16)
  (src, src_stride, dst, dst_stride, static_cast<size_t>(rows), static_cast<size_t>(cols));
}
void rows_to_f32(const at::BFloat16* src, int64_t src_stride, float* dst, int64_t dst_stride,
                 int64_t rows, int64_t cols) {
  TRIREME_KERNEL(convert_rows_to_f32)
  (src, src_stride, dst, dst_stride, static_cast<size_t>(rows), static_cast<size_t>(cols));
}
void interleave_rows(const at::BFloat16* first, const at::BFloat16* second, size_t n,
                     at::BFloat16* to) {
  TRIREME_KERNEL(interleave_bf16)(first, second, to, n);
}

}  // namespace cpu

namespace {
constexpr int64_t kFlatGrain = 16384;

float* flat_of(const at::Tensor& tensor, int64_t n, const char* what) {
  TRIREME_CHECK(tensor.defined() && tensor.is_contiguous() && tensor.numel() == n &&
                    tensor.scalar_type() == at::kFloat,
                "{} must be a contiguous float32 tensor of {} elements", what, n);
  return tensor.data_ptr<float>();
}
}  // namespace

namespace cpu {

void adamw_(at::Tensor& weights, const at::Tensor& gradients, at::Tensor& exp_avg,
            at::Tensor& exp_avg_sq, at::Tensor compute, const AdamWParams& params) {
  const int64_t n = weights.numel();
  float* w = flat_of(weights, n, "weights");
  const float* g = flat_of(gradients, n, "gradients");
  float* m = flat_of(exp_avg, n, "exp_avg");
  float* v = flat_of(exp_avg_sq, n, "exp_avg_sq");
  at::BFloat16* low = nullptr;
  if (compute.defined()) {
    TRIREME_CHECK(compute.is_contiguous() && compute.numel() == n, "compute must have {} elements",
                  n);
    low = compute.data_ptr<at::BFloat16>();
  }
  const double step = static_cast<double>(params.step);
  const double correction1 = 1.0 - std::pow(params.beta1, step);
  const double correction2 = 1.0 - std::pow(params.beta2, step);
  cpu::AdamWConstants c;
  c.gradient_scale = static_cast<float>(params.gradient_scale);
  c.one_minus_beta1 = static_cast<float>(1.0 - params.beta1);
  c.beta2 = static_cast<float>(params.beta2);
  c.one_minus_beta2 = static_cast<float>(1.0 - params.beta2);
  c.sqrt_correction2 = static_cast<float>(std::sqrt(correction2));
  c.eps = static_cast<float>(params.eps);
  c.decay = static_cast<float>(1.0 - params.lr * params.weight_decay);
  c.negative_step_size = static_cast<float>(-params.lr / correction1);
  const auto kernel = TRIREME_KERNEL(adamw_range);
  at::parallel_for(0, n, kFlatGrain, [&](int64_t begin, int64_t end) {
    kernel(w + begin, g + begin, m + begin, v + begin, low == nullptr ? nullptr : low + begin,
           static_cast<size_t>(end - begin), c);
  });
}

double sum_of_squares(const at::Tensor& x) {
  const int64_t n = x.numel();
  const float* data = flat_of(x, n, "x");
  constexpr int64_t kBlock = 65536;
  const int64_t blocks = (n + kBlock - 1) / kBlock;
  std::vector<double> partials(static_cast<size_t>(blocks));
  const auto kernel = TRIREME_KERNEL(sum_of_squares_range);
  at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t count = std::min(kBlock, n - b * kBlock);
      partials[static_cast<size_t>(b)] = kernel(data + b * kBlock, static_cast<size_t>(count));
    }
  });
  double sum = 0.0;
  for (const double partial : partials) sum += partial;
  return sum;
}

void squares_by_block(const at::Tensor& x, at::Tensor& out) {
  const int64_t n = x.numel();
  const float* data = flat_of(x, n, "x");
  const int64_t blocks = (n + kSquaresBlock - 1) / kSquaresBlock;
  TRIREME_CHECK(out.scalar_type() == at::kDouble && out.is_contiguous() && out.numel() == blocks,
                "{} sums for {} blocks", out.numel(), blocks);
  auto* sums = out.data_ptr<double>();
  const auto kernel = TRIREME_KERNEL(sum_of_squares_range);
  at::parallel_for(0, blocks, 64, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = b * kSquaresBlock;
      sums[b] = kernel(data + first, static_cast<size_t>(std::min(kSquaresBlock, n - first)));
    }
  });
}

void add_(at::Tensor& a, const at::Tensor& b) {
  const int64_t n = a.numel();
  float* to = flat_of(a, n, "a");
  const float* from = flat_of(b, n, "b");
  const auto kernel = TRIREME_KERNEL(add_range);
  at::parallel_for(0, n, kFlatGrain, [&](int64_t begin, int64_t end) {
    kernel(to + begin, from + begin, static_cast<size_t>(end - begin));
  });
}

void scaled_sum(const at::Tensor& x, double a, const at::Tensor& y, double b, at::Tensor& out) {
  const int64_t n = x.numel();
  const float* first = flat_of(x, n, "x");
  TRIREME_CHECK(y.is_contiguous() && y.numel() == n && y.scalar_type() == at::kBFloat16,
                "y must be a contiguous bfloat16 tensor of {} elements", n);
  TRIREME_CHECK(out.is_contiguous() && out.numel() == n, "out must have {} elements", n);
  const auto* second = y.const_data_ptr<at::BFloat16>();
  const auto spread = [&](auto kernel, auto* to) {
    at::parallel_for(0, n, kFlatGrain, [&](int64_t begin, int64_t end) {
      kernel(first + begin, static_cast<float>(a), second + begin, static_cast<float>(b),
             to + begin, static_cast<size_t>(end - begin));
    });
  };
  if (out.scalar_type() == at::kFloat) {
    spread(TRIREME_KERNEL(scaled_sum_to_f32), out.data_ptr<float>());
  } else {
    spread(TRIREME_KERNEL(scaled_sum_to_bf16), out.data_ptr<at::BFloat16>());
  }
}

void convert(const at::Tensor& src, at::Tensor& dst) {
  const int64_t n = src.numel();
  const float* from = flat_of(src, n, "src");
  TRIREME_CHECK(dst.is_contiguous() && dst.numel() == n, "dst must have {} elements", n);
  if (dst.scalar_type() == at::kFloat) {
    float* to = dst.data_ptr<float>();
    at::parallel_for(0, n, kFlatGrain, [&](int64_t begin, int64_t end) {
      std::copy(from + begin, from + end, to + begin);
    });
    return;
  }
  at::BFloat16* to = dst.data_ptr<at::BFloat16>();
  at::parallel_for(0, n, kFlatGrain, [&](int64_t begin, int64_t end) {
    cpu::rows_to_bf16(from + begin, 0, to + begin, 0, 1, end - begin);
  });
}

}  // namespace cpu

}  // namespace trireme::kernels
#endif  // HWY_ONCE
