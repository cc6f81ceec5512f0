// RMSNorm and LayerNorm: one row at a time in registers and first-level cache, statistics in
// float32.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "trireme/kernels/cpu/norm.cpp"
#include "trireme/kernels/cpu/targets.h"
// clang-format off
#include "hwy/foreach_target.h"
#include "trireme/kernels/cpu/simd-inl.h"
// clang-format on

#include <cmath>

HWY_BEFORE_NAMESPACE();
namespace trireme::kernels::HWY_NAMESPACE {

template <class T>
float rms_row(const T* x, const T* weight, float offset, size_t d, float eps, T* y) {
  const float sum = sum_lanes(d, [&](auto tag, size_t i) HWY_ATTR {
    const auto v = load(tag, x + i);
    return hn::Mul(v, v);
  });
  const float rstd = 1.0f / std::sqrt(sum / static_cast<float>(d) + eps);
  for_lanes(d, [&](auto tag, size_t i) HWY_ATTR {
    const auto v = hn::Mul(load(tag, x + i), hn::Set(tag, rstd));
    store(tag, hn::Mul(v, hn::Add(load(tag, weight + i), hn::Set(tag, offset))), y + i);
  });
  return rstd;
}

/// dx null: only dweight; dweight null: only dx.
template <class T>
void rms_backward_row(const T* dy, const T* x, const T* weight, float offset, size_t d, float rstd,
                      T* dx, bool add, float* dweight) {
  float dot = 0.0f;
  if (dx != nullptr) {
    dot = sum_lanes(d, [&](auto tag, size_t i) HWY_ATTR {
      const auto w = hn::Add(load(tag, weight + i), hn::Set(tag, offset));
      return hn::Mul(hn::Mul(load(tag, dy + i), w), load(tag, x + i));
    });
  }
  const float mean = dot * rstd / static_cast<float>(d);
  for_lanes(d, [&](auto tag, size_t i) HWY_ATTR {
    const auto g = load(tag, dy + i);
    const auto normed = hn::Mul(load(tag, x + i), hn::Set(tag, rstd));
    if (dweight != nullptr)
      hn::StoreU(hn::MulAdd(g, normed, hn::LoadU(tag, dweight + i)), tag, dweight + i);
    if (dx == nullptr) return;
    const auto w = hn::Add(load(tag, weight + i), hn::Set(tag, offset));
    auto v = hn::NegMulAdd(normed, hn::Set(tag, mean), hn::Mul(g, w));
    v = hn::Mul(v, hn::Set(tag, rstd));
    if (add) v = hn::Add(v, load(tag, dx + i));
    store(tag, v, dx + i);
  });
}

template <class T>
void layer_row(const T* x, const T* weight, const T* bias, size_t d, float eps, T* y,
               float* mean_out, float* rstd_out) {
  const float inverse = 1.0f / static_cast<float>(d);
  const float mean =
      inverse * sum_lanes(d, [&](auto tag, size_t i) HWY_ATTR { return load(tag, x + i); });
  const float square = sum_lanes(d, [&](auto tag, size_t i) HWY_ATTR {
    const auto v = hn::Sub(load(tag, x + i), hn::Set(tag, mean));
    return hn::Mul(v, v);
  });
  const float rstd = 1.0f / std::sqrt(square * inverse + eps);
  for_lanes(d, [&](auto tag, size_t i) HWY_ATTR {
    auto v = hn::Mul(hn::Sub(load(tag, x + i), hn::Set(tag, mean)), hn::Set(tag, rstd));
    v = hn::Mul(v, load(tag, weight + i));
    if (bias != nullptr) v = hn::Add(v, load(tag, bias + i));
    store(tag, v, y + i);
  });
  *mean_out = mean;
  *rstd_out = rstd;
}

template <class T>
void layer_backward_row(const T* dy, const T* x, const T* weight, size_t d, float mean, float rstd,
                        T* dx, bool add, float* dweight, float* dbias) {
  float mean_g = 0.0f;
  float mean_gx = 0.0f;
  if (dx != nullptr) {
    const float inverse = 1.0f / static_cast<float>(d);
    mean_g = inverse * sum_lanes(d, [&](auto tag, size_t i) HWY_ATTR {
               return hn::Mul(load(tag, dy + i), load(tag, weight + i));
             });
    mean_gx = inverse * rstd * sum_lanes(d, [&](auto tag, size_t i) HWY_ATTR {
                const auto centred = hn::Sub(load(tag, x + i), hn::Set(tag, mean));
                return hn::Mul(hn::Mul(load(tag, dy + i), load(tag, weight + i)), centred);
              });
  }
  for_lanes(d, [&](auto tag, size_t i) HWY_ATTR {
    const auto g = load(tag, dy + i);
    const auto normed = hn::Mul(hn::Sub(load(tag, x + i), hn::Set(tag, mean)), hn::Set(tag, rstd));
    if (dweight != nullptr)
      hn::StoreU(hn::MulAdd(g, normed, hn::LoadU(tag, dweight + i)), tag, dweight + i);
    if (dbias != nullptr) hn::StoreU(hn::Add(g, hn::LoadU(tag, dbias + i)), tag, dbias + i);
    if (dx == nullptr) return;
    auto v = hn::Sub(hn::Mul(g, load(tag, weight + i)), hn::Set(tag, mean_g));
    v = hn::Mul(hn::NegMulAdd(normed, hn::Set(tag, mean_gx), v), hn::Set(tag, rstd));
    if (add) v = hn::Add(v, load(tag, dx + i));
    store(tag, v, dx + i);
  });
}

#define TRIREME_NORM_INSTANCES(T, S)                                                           \
  float rms_row_##S(const T* x, const T* w, float offset, size_t d, float eps, T* y) {         \
    return rms_row(x, w, offset, d, eps, y);                                                   \
  }                                                                                            \
  void rms_backward_row_##S(const T* dy, const T* x, const T* w, float offset, size_t d,       \
                            float rstd, T* dx, bool add, float* dw) {                          \
    rms_backward_row(dy, x, w, offset, d, rstd, dx, add, dw);                                  \
  }                                                                                            \
  void layer_row_##S(const T* x, const T* w, const T* b, size_t d, float eps, T* y, float* m,  \
                     float* r) {                                                               \
    layer_row(x, w, b, d, eps, y, m, r);                                                       \
  }                                                                                            \
  void layer_backward_row_##S(const T* dy, const T* x, const T* w, size_t d, float m, float r, \
                              T* dx, bool add, float* dw, float* db) {                         \
    layer_backward_row(dy, x, w, d, m, r, dx, add, dw, db);                                    \
  }
TRIREME_NORM_INSTANCES(float, f32)
TRIREME_NORM_INSTANCES(at::BFloat16, bf16)
#undef TRIREME_NORM_INSTANCES

}  // namespace trireme::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstring>

#include "trireme/base/error.h"
#include "trireme/kernels/cpu/cpu_kernels.h"
#include "trireme/kernels/cpu/dispatch.h"
#include "trireme/kernels/cpu/rows.h"
#include "trireme/kernels/ops.h"

namespace trireme::kernels {
HWY_EXPORT(rms_row_f32);
HWY_EXPORT(rms_row_bf16);
HWY_EXPORT(rms_backward_row_f32);
HWY_EXPORT(rms_backward_row_bf16);
HWY_EXPORT(layer_row_f32);
HWY_EXPORT(layer_row_bf16);
HWY_EXPORT(layer_backward_row_f32);
HWY_EXPORT(layer_backward_row_bf16);

namespace {

constexpr int64_t kGrainElements = 16384;

auto rms_row_for(float) {
  return TRIREME_KERNEL(rms_row_f32);
}
auto rms_row_for(at::BFloat16) {
  return TRIREME_KERNEL(rms_row_bf16);
}
auto rms_backward_row_for(float) {
  return TRIREME_KERNEL(rms_backward_row_f32);
}
auto rms_backward_row_for(at::BFloat16) {
  return TRIREME_KERNEL(rms_backward_row_bf16);
}
auto layer_row_for(float) {
  return TRIREME_KERNEL(layer_row_f32);
}
auto layer_row_for(at::BFloat16) {
  return TRIREME_KERNEL(layer_row_bf16);
}
auto layer_backward_row_for(float) {
  return TRIREME_KERNEL(layer_backward_row_f32);
}
auto layer_backward_row_for(at::BFloat16) {
  return TRIREME_KERNEL(layer_backward_row_bf16);
}

/// A norm's weight or bias: one row of d elements.
template <class T>
const T* vector_of(const at::Tensor& tensor, int64_t d, const char* what) {
  TRIREME_CHECK(tensor.dim() == 1 && tensor.size(0) == d && tensor.is_contiguous(),
                "{} must be [{}]", what, d);
  return tensor.const_data_ptr<T>();
}

float* statistics_of(const at::Tensor& tensor, int64_t count, const char* what) {
  TRIREME_CHECK(tensor.numel() == count && tensor.is_contiguous(),
                "{} must have one value a row, {} rows", what, count);
  return tensor.data_ptr<float>();
}

int64_t row_grain(int64_t d) {
  return std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, d));
}

/// Runs row(r, partials of the row's block) over all rows in fixed blocks and combines the partial
/// sums [blocks, width].
template <class Row>
void reduce_rows(int64_t count, int64_t width, float* partials, int64_t blocks, Row&& row) {
  const int64_t block_rows = (count + blocks - 1) / blocks;
  at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      float* sums = partials + b * width;
      std::memset(sums, 0, sizeof(float) * static_cast<size_t>(width));
      const int64_t last = std::min(count, (b + 1) * block_rows);
      for (int64_t r = b * block_rows; r < last; ++r) row(r, sums);
    }
  });
}

template <class T>
void rms_norm_typed(const at::Tensor& x, const at::Tensor& weight, double eps, at::Tensor& y,
                    const at::Tensor& rstd, float offset) {
  const int64_t d = x.size(-1);
  const auto in = cpu::rows_of<T>(x, "x");
  const auto out = cpu::rows_of<T>(y, "y");
  TRIREME_CHECK(y.sizes() == x.sizes(), "y must have x's shape");
  const T* w = vector_of<T>(weight, d, "weight");
  float* saved = rstd.defined() ? statistics_of(rstd, in.count, "rstd") : nullptr;
  const auto kernel = rms_row_for(T{});
  at::parallel_for(0, in.count, row_grain(d), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float value =
          kernel(in.row(r), w, offset, static_cast<size_t>(d), static_cast<float>(eps), out.row(r));
      if (saved != nullptr) saved[r] = value;
    }
  });
}

template <class T>
void rms_norm_backward_typed(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weight,
                             const at::Tensor& rstd, const at::Tensor& dx, bool add,
                             const at::Tensor& dweight, bool accumulate, float offset) {
  const int64_t d = x.size(-1);
  const auto in = cpu::rows_of<T>(x, "x");
  const auto grad = cpu::rows_of<T>(dy, "dy");
  TRIREME_CHECK(dy.sizes() == x.sizes(), "dy must have x's shape");
  cpu::Rows<T> out;
  if (dx.defined()) {
    TRIREME_CHECK(dx.sizes() == x.sizes(), "dx must have x's shape");
    out = cpu::rows_of<T>(dx, "dx");
  }
  const T* w = vector_of<T>(weight, d, "weight");
  const float* saved = statistics_of(rstd, in.count, "rstd");
  const auto kernel = rms_backward_row_for(T{});
  const auto run = [&](int64_t r, float* sums) {
    kernel(grad.row(r), in.row(r), w, offset, static_cast<size_t>(d), saved[r],
           dx.defined() ? out.row(r) : nullptr, add, sums);
  };
  if (!dweight.defined()) {
    at::parallel_for(0, in.count, row_grain(d), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) run(r, nullptr);
    });
    return;
  }
  TRIREME_CHECK(dweight.numel() == d && dweight.is_contiguous(), "dweight must be [{}]", d);
  const int64_t blocks = cpu::reduction_blocks(in.count);
  at::Tensor partials = at::empty({blocks, d}, dweight.options());
  reduce_rows(in.count, d, partials.data_ptr<float>(), blocks, run);
  cpu::combine_blocks(partials.data_ptr<float>(), blocks, d, dweight.data_ptr<float>(), accumulate);
}

template <class T>
void layer_norm_typed(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                      double eps, at::Tensor& y, const at::Tensor& mean, const at::Tensor& rstd) {
  const int64_t d = x.size(-1);
  const auto in = cpu::rows_of<T>(x, "x");
  const auto out = cpu::rows_of<T>(y, "y");
  TRIREME_CHECK(y.sizes() == x.sizes(), "y must have x's shape");
  const T* w = vector_of<T>(weight, d, "weight");
  const T* b = bias.defined() ? vector_of<T>(bias, d, "bias") : nullptr;
  float* means = mean.defined() ? statistics_of(mean, in.count, "mean") : nullptr;
  float* rstds = rstd.defined() ? statistics_of(rstd, in.count, "rstd") : nullptr;
  const auto kernel = layer_row_for(T{});
  at::parallel_for(0, in.count, row_grain(d), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      float m = 0.0f;
      float s = 0.0f;
      kernel(in.row(r), w, b, static_cast<size_t>(d), static_cast<float>(eps), out.row(r), &m, &s);
      if (means != nullptr) means[r] = m;
      if (rstds != nullptr) rstds[r] = s;
    }
  });
}

template <class T>
void layer_norm_backward_typed(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weight,
                               const at::Tensor& mean, const at::Tensor& rstd, const at::Tensor& dx,
                               bool add, const at::Tensor& dweight, const at::Tensor& dbias,
                               bool accumulate) {
  const int64_t d = x.size(-1);
  const auto in = cpu::rows_of<T>(x, "x");
  const auto grad = cpu::rows_of<T>(dy, "dy");
  TRIREME_CHECK(dy.sizes() == x.sizes(), "dy must have x's shape");
  cpu::Rows<T> out;
  if (dx.defined()) {
    TRIREME_CHECK(dx.sizes() == x.sizes(), "dx must have x's shape");
    out = cpu::rows_of<T>(dx, "dx");
  }
  const T* w = vector_of<T>(weight, d, "weight");
  const float* means = statistics_of(mean, in.count, "mean");
  const float* rstds = statistics_of(rstd, in.count, "rstd");
  const bool with_weight = dweight.defined();
  const bool with_bias = dbias.defined();
  const auto kernel = layer_backward_row_for(T{});
  const auto run = [&](int64_t r, float* sums) {
    kernel(grad.row(r), in.row(r), w, static_cast<size_t>(d), means[r], rstds[r],
           dx.defined() ? out.row(r) : nullptr, add, with_weight ? sums : nullptr,
           with_bias ? sums + (with_weight ? d : 0) : nullptr);
  };
  if (!with_weight && !with_bias) {
    at::parallel_for(0, in.count, row_grain(d), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) run(r, nullptr);
    });
    return;
  }
  const int64_t width = d * (static_cast<int64_t>(with_weight) + static_cast<int64_t>(with_bias));
  const int64_t blocks = cpu::reduction_blocks(in.count);
  at::Tensor sums = at::empty({blocks + 1, width}, rstd.options());
  float* partials = sums.data_ptr<float>();
  float* total = partials + blocks * width;
  reduce_rows(in.count, width, partials, blocks, run);
  cpu::combine_blocks(partials, blocks, width, total, false);
  const auto put = [&](const at::Tensor& target, const float* from) {
    TRIREME_CHECK(target.numel() == d && target.is_contiguous(), "gradients of a norm must be [{}]",
                  d);
    float* to = target.data_ptr<float>();
    for (int64_t c = 0; c < d; ++c) to[c] = accumulate ? to[c] + from[c] : from[c];
  };
  if (with_weight) put(dweight, total);
  if (with_bias) put(dbias, total + (with_weight ? d : 0));
}

}  // namespace

namespace cpu {

void rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps, at::Tensor& y,
              at::Tensor rstd, double offset) {
  const auto offset32 = static_cast<float>(offset);
  if (x.scalar_type() == at::kBFloat16)
    return rms_norm_typed<at::BFloat16>(x, weight, eps, y, rstd, offset32);
  rms_norm_typed<float>(x, weight, eps, y, rstd, offset32);
}

void rms_norm_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weight,
                       const at::Tensor& rstd, at::Tensor dx, bool add_to_dx, at::Tensor dweight,
                       bool accumulate, double offset) {
  const auto offset32 = static_cast<float>(offset);
  if (x.scalar_type() == at::kBFloat16) {
    return rms_norm_backward_typed<at::BFloat16>(dy, x, weight, rstd, dx, add_to_dx, dweight,
                                                 accumulate, offset32);
  }
  rms_norm_backward_typed<float>(dy, x, weight, rstd, dx, add_to_dx, dweight, accumulate, offset32);
}

void layer_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps,
                at::Tensor& y, at::Tensor mean, at::Tensor rstd) {
  if (x.scalar_type() == at::kBFloat16)
    return layer_norm_typed<at::BFloat16>(x, weight, bias, eps, y, mean, rstd);
  layer_norm_typed<float>(x, weight, bias, eps, y, mean, rstd);
}

void layer_norm_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weight,
                         const at::Tensor& mean, const at::Tensor& rstd, at::Tensor dx,
                         bool add_to_dx, at::Tensor dweight, at::Tensor dbias, bool accumulate) {
  if (x.scalar_type() == at::kBFloat16) {
    return layer_norm_backward_typed<at::BFloat16>(dy, x, weight, mean, rstd, dx, add_to_dx,
                                                   dweight, dbias, accumulate);
  }
  layer_norm_backward_typed<float>(dy, x, weight, mean, rstd, dx, add_to_dx, dweight, dbias,
                                   accumulate);
}

}  // namespace cpu

}  // namespace trireme::kernels
#endif  // HWY_ONCE
