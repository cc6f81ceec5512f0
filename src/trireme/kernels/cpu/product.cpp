// Products of a dense layer and their gradients.
#include "trireme/kernels/cpu/product.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <optional>

#include "trireme/base/error.h"
#include "trireme/kernels/cpu/cpu_kernels.h"
#include "trireme/kernels/cpu/flat.h"
#include "trireme/kernels/cpu/mkl_gemm.h"
#include "trireme/kernels/cpu/panel_gemm.h"
#include "trireme/kernels/cpu/processor.h"
#include "trireme/kernels/cpu/rows.h"
#include "trireme/kernels/ops.h"

namespace trireme::kernels {
namespace cpu {
namespace {

constexpr int64_t kGrainElements = 16384;

std::mutex g_choice_mutex;
std::optional<ProductChoice> g_choice;

int64_t grain_for(int64_t cols) {
  return std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, cols));
}

}  // namespace

const char* to_string(FloatProduct product) {
  return product == FloatProduct::kMkl ? "MKL float32" : "float32 panels";
}

const char* to_string(Bf16Product product) {
  switch (product) {
    case Bf16Product::kConvert:
      return "float32 after widening";
    case Bf16Product::kMkl:
      return "MKL bfloat16";
    case Bf16Product::kPanels:
      return "bfloat16 panels";
  }
  return "?";
}

ProductChoice product_choice() {
  const std::lock_guard lock(g_choice_mutex);
  if (!g_choice) g_choice = default_product_choice();
  return *g_choice;
}

void set_product_choice(ProductChoice choice) {
  const std::lock_guard lock(g_choice_mutex);
  g_choice = choice;
}

ProductChoice default_product_choice() {
  const Processor& cpu = processor();
  if (cpu.intel) {
    const bool native = cpu.amx_bf16 && has_mkl_bf16_gemm();
    return {FloatProduct::kMkl, native ? Bf16Product::kMkl : Bf16Product::kConvert};
  }
  // MKL takes slow paths on other makers' processors.
  return {has_float_panels() ? FloatProduct::kPanels : FloatProduct::kMkl,
          has_bf16_panels() ? Bf16Product::kPanels : Bf16Product::kConvert};
}

void sgemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, const float* a,
           int64_t lda, const float* b, int64_t ldb, bool accumulate, float* c, int64_t ldc) {
  if (product_choice().float32 == FloatProduct::kPanels)
    return panel_gemm(transpose_a, transpose_b, m, n, k, a, lda, b, ldb, accumulate, c, ldc);
  mkl_sgemm(transpose_a, transpose_b, m, n, k, a, lda, b, ldb, accumulate, c, ldc);
}

void bf16_gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k,
               const at::BFloat16* a, int64_t lda, const at::BFloat16* b, int64_t ldb,
               bool accumulate, float* c, int64_t ldc) {
  const Bf16Product way = product_choice().bfloat16;
  TRIREME_CHECK(way != Bf16Product::kConvert, "bfloat16 is widened on this processor");
  if (way == Bf16Product::kPanels)
    return panel_gemm(transpose_a, transpose_b, m, n, k, a, lda, b, ldb, accumulate, c, ldc);
  mkl_bf16_gemm(transpose_a, transpose_b, m, n, k, a, lda, b, ldb, accumulate, c, ldc);
}

at::Tensor padded_rows(const at::BFloat16* src, int64_t src_stride, int64_t rows, int64_t cols) {
  at::Tensor padded = at::empty({kMinRows, cols}, at::TensorOptions().dtype(at::kBFloat16));
  auto* to = padded.data_ptr<at::BFloat16>();
  std::memset(static_cast<void*>(to), 0,
              sizeof(at::BFloat16) * static_cast<size_t>(kMinRows * cols));
  for (int64_t r = 0; r < rows; ++r) {
    std::memcpy(static_cast<void*>(to + r * cols), src + r * src_stride,
                sizeof(at::BFloat16) * static_cast<size_t>(cols));
  }
  return padded;
}

void widen(const at::BFloat16* src, int64_t src_stride, float* dst, int64_t rows, int64_t cols) {
  at::parallel_for(0, rows, grain_for(cols), [&](int64_t begin, int64_t end) {
    rows_to_f32(src + begin * src_stride, src_stride, dst + begin * cols, cols, end - begin, cols);
  });
}

void round_rows(const float* src, int64_t src_stride, at::BFloat16* dst, int64_t dst_stride,
                int64_t rows, int64_t cols) {
  at::parallel_for(0, rows, grain_for(cols), [&](int64_t begin, int64_t end) {
    rows_to_bf16(src + begin * src_stride, src_stride, dst + begin * dst_stride, dst_stride,
                 end - begin, cols);
  });
}

}  // namespace cpu

namespace {

using cpu::Bf16Product;
using cpu::FloatProduct;
using cpu::kMinRows;
using cpu::kPanelRows;
using cpu::sgemm;

/// A matrix with contiguous rows.
struct Matrix {
  at::Tensor tensor;
  int64_t rows;
  int64_t cols;
  int64_t stride;
  const float* f32() const { return tensor.const_data_ptr<float>(); }
  const at::BFloat16* bf16() const { return tensor.const_data_ptr<at::BFloat16>(); }
  float* mutable_f32() const { return tensor.data_ptr<float>(); }
  at::BFloat16* mutable_bf16() const { return tensor.data_ptr<at::BFloat16>(); }
};

Matrix matrix_of(const at::Tensor& tensor, const char* what) {
  TRIREME_CHECK(tensor.defined() && tensor.dim() == 2 && tensor.device().is_cpu(),
                "{} must be a CPU matrix", what);
  TRIREME_CHECK(tensor.size(1) <= 1 || tensor.stride(1) == 1, "the rows of {} must be contiguous",
                what);
  const int64_t stride =
      tensor.size(0) <= 1 ? std::max(tensor.size(1), tensor.stride(0)) : tensor.stride(0);
  return {tensor, tensor.size(0), tensor.size(1), std::max(stride, tensor.size(1))};
}

at::Tensor workspace(int64_t rows, int64_t cols) {
  return at::empty({rows, cols}, at::TensorOptions().dtype(at::kFloat));
}

/// y(float32) = x op(w) (+ y) for any number of rows: few rows are padded where their bits would depend on it.
void product_f32(const float* x, int64_t ldx, const float* w, int64_t ldw, bool transpose_w,
                 float* y, int64_t ldy, int64_t rows, int64_t cols, int64_t inner,
                 bool accumulate) {
  if (rows == 0 || cols == 0) return;
  if (rows >= kMinRows || cpu::product_choice().float32 == FloatProduct::kPanels) {
    sgemm(false, transpose_w, rows, cols, inner, x, ldx, w, ldw, accumulate, y, ldy);
    return;
  }
  at::Tensor padded_x = workspace(kMinRows, inner);
  at::Tensor padded_y = workspace(kMinRows, cols);
  float* px = padded_x.data_ptr<float>();
  float* py = padded_y.data_ptr<float>();
  std::memset(px, 0, sizeof(float) * static_cast<size_t>(kMinRows * inner));
  for (int64_t r = 0; r < rows; ++r)
    std::memcpy(px + r * inner, x + r * ldx, sizeof(float) * static_cast<size_t>(inner));
  if (accumulate) {
    std::memset(py, 0, sizeof(float) * static_cast<size_t>(kMinRows * cols));
    for (int64_t r = 0; r < rows; ++r)
      std::memcpy(py + r * cols, y + r * ldy, sizeof(float) * static_cast<size_t>(cols));
  }
  sgemm(false, transpose_w, kMinRows, cols, inner, px, inner, w, ldw, accumulate, py, cols);
  for (int64_t r = 0; r < rows; ++r)
    std::memcpy(y + r * ldy, py + r * cols, sizeof(float) * static_cast<size_t>(cols));
}

/// Rows of the next panel: never leaves fewer than kMinRows for the last one.
int64_t panel_rows(int64_t remaining) {
  if (remaining <= kPanelRows + kMinRows) return remaining;
  return kPanelRows;
}

/// out = bias + residual, either may be null, on all threads.
template <class T>
void start_all(const T* bias, const T* residual, int64_t residual_stride, float* out,
               int64_t stride, int64_t rows, int64_t cols) {
  const auto start_rows = cpu::flat_kernels(T{}).start_rows;
  at::parallel_for(0, rows, std::max<int64_t>(1, 16384 / cols), [&](int64_t begin, int64_t end) {
    start_rows(bias, residual == nullptr ? nullptr : residual + begin * residual_stride,
               residual_stride, out + begin * stride, stride, static_cast<size_t>(end - begin),
               static_cast<size_t>(cols));
  });
}

/// y = x op(w) + bias + residual with bfloat16 inputs; y float32 or bfloat16.
void product_bf16(const Matrix& x, const Matrix& w, bool transpose_w, const at::BFloat16* bias,
                  const at::BFloat16* residual, int64_t residual_stride, const Matrix& y) {
  const int64_t rows = x.rows;
  const int64_t inner = x.cols;
  const int64_t cols = y.cols;
  if (rows == 0 || cols == 0) return;
  const bool wide = y.tensor.scalar_type() == at::kFloat;
  const bool start = bias != nullptr || residual != nullptr;
  const Bf16Product way = cpu::product_choice().bfloat16;
  if (way == Bf16Product::kPanels) {
    if (!wide) {
      cpu::panel_gemm(transpose_w, rows, cols, inner, x.bf16(), x.stride, w.bf16(), w.stride,
                      {bias, residual, residual_stride}, y.mutable_bf16(), y.stride);
      return;
    }
    if (start) start_all(bias, residual, residual_stride, y.mutable_f32(), y.stride, rows, cols);
    cpu::panel_gemm(false, transpose_w, rows, cols, inner, x.bf16(), x.stride, w.bf16(), w.stride,
                    start, y.mutable_f32(), y.stride);
    return;
  }
  const int64_t panel = std::min(rows, kPanelRows + kMinRows);
  const bool convert = way == Bf16Product::kConvert;
  if (!convert && rows < kMinRows) {
    // Padded, so that few rows take the path and the bits of many.
    const at::Tensor few = cpu::padded_rows(x.bf16(), x.stride, rows, inner);
    at::Tensor sums = workspace(kMinRows, cols);
    float* out = sums.data_ptr<float>();
    if (start) {
      std::memset(out, 0, sizeof(float) * static_cast<size_t>(kMinRows * cols));
      cpu::flat_kernels(at::BFloat16{})
          .start_rows(bias, residual, residual_stride, out, cols, static_cast<size_t>(rows),
                      static_cast<size_t>(cols));
    }
    cpu::bf16_gemm(false, transpose_w, kMinRows, cols, inner, few.const_data_ptr<at::BFloat16>(),
                   inner, w.bf16(), w.stride, start, out, cols);
    for (int64_t r = 0; r < rows; ++r) {
      if (wide) {
        std::memcpy(y.mutable_f32() + r * y.stride, out + r * cols,
                    sizeof(float) * static_cast<size_t>(cols));
      } else {
        cpu::rows_to_bf16(out + r * cols, cols, y.mutable_bf16() + r * y.stride, y.stride, 1, cols);
      }
    }
    return;
  }
  at::Tensor wide_w;
  at::Tensor wide_x;
  at::Tensor wide_y;
  if (convert) {
    wide_w = workspace(w.rows, w.cols);
    cpu::widen(w.bf16(), w.stride, wide_w.data_ptr<float>(), w.rows, w.cols);
    wide_x = workspace(panel, inner);
  }
  if (!wide) wide_y = workspace(panel, cols);
  for (int64_t r = 0; r < rows;) {
    const int64_t count = panel_rows(rows - r);
    float* out = wide ? y.mutable_f32() + r * y.stride : wide_y.data_ptr<float>();
    const int64_t out_stride = wide ? y.stride : cols;
    if (start) {
      start_all(bias, residual == nullptr ? nullptr : residual + r * residual_stride,
                residual_stride, out, out_stride, count, cols);
    }
    if (convert) {
      cpu::widen(x.bf16() + r * x.stride, x.stride, wide_x.data_ptr<float>(), count, inner);
      product_f32(wide_x.data_ptr<float>(), inner, wide_w.data_ptr<float>(), w.cols, transpose_w,
                  out, out_stride, count, cols, inner, start);
    } else {
      cpu::bf16_gemm(false, transpose_w, count, cols, inner, x.bf16() + r * x.stride, x.stride,
                     w.bf16(), w.stride, start, out, out_stride);
    }
    if (!wide) cpu::round_rows(out, cols, y.mutable_bf16() + r * y.stride, y.stride, count, cols);
    r += count;
  }
}

}  // namespace

namespace cpu {

void linear(const at::Tensor& x_in, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
            const std::optional<at::Tensor>& residual, at::Tensor& y_out) {
  const Matrix x = matrix_of(x_in, "x");
  const Matrix w = matrix_of(weight, "weight");
  const Matrix y = matrix_of(y_out, "y");
  TRIREME_CHECK(w.cols == x.cols && y.rows == x.rows && y.cols == w.rows,
                "linear: [{}, {}] x [{}, {}]^T -> [{}, {}]", x.rows, x.cols, w.rows, w.cols, y.rows,
                y.cols);
  std::optional<Matrix> add;
  if (residual) {
    add = matrix_of(*residual, "residual");
    TRIREME_CHECK(add->rows == y.rows && add->cols == y.cols, "residual must have y's shape");
  }
  if (bias)
    TRIREME_CHECK(bias->is_contiguous() && bias->numel() == y.cols, "bias must be [{}]", y.cols);
  if (x_in.scalar_type() == at::kBFloat16) {
    product_bf16(x, w, true, bias ? bias->const_data_ptr<at::BFloat16>() : nullptr,
                 add ? add->bf16() : nullptr, add ? add->stride : 0, y);
    return;
  }
  const bool in_place = add && add->f32() == y.f32() && !bias;
  if ((bias || add) && !in_place && y.cols > 0) {
    start_all(bias ? bias->const_data_ptr<float>() : nullptr, add ? add->f32() : nullptr,
              add ? add->stride : 0, y.mutable_f32(), y.stride, y.rows, y.cols);
  }
  product_f32(x.f32(), x.stride, w.f32(), w.stride, true, y.mutable_f32(), y.stride, x.rows, y.cols,
              x.cols, bias.has_value() || add.has_value());
}

void gram(const at::Tensor& x_in, at::Tensor& y_out) {
  if (cpu::product_choice().bfloat16 != Bf16Product::kPanels)
    return linear(x_in, x_in, std::nullopt, std::nullopt, y_out);
  const Matrix x = matrix_of(x_in, "x");
  const Matrix y = matrix_of(y_out, "y");
  TRIREME_CHECK(y.rows == x.rows && y.cols == x.rows, "gram: [{}, {}] -> [{}, {}]", x.rows, x.cols,
                y.rows, y.cols);
  if (x.rows == 0) return;
  TRIREME_CHECK(x.cols > 0, "a product needs an inner dimension");
  cpu::panel_gram(x.rows, x.cols, x.bf16(), x.stride, y.mutable_f32(), y.stride);
}

void linear_backward_input(const at::Tensor& dy_in, const at::Tensor& weight, at::Tensor& dx_out,
                           bool accumulate) {
  const Matrix dy = matrix_of(dy_in, "dy");
  const Matrix w = matrix_of(weight, "weight");
  const Matrix dx = matrix_of(dx_out, "dx");
  TRIREME_CHECK(w.rows == dy.cols && dx.rows == dy.rows && dx.cols == w.cols,
                "linear_backward_input: [{}, {}] x [{}, {}] -> [{}, {}]", dy.rows, dy.cols, w.rows,
                w.cols, dx.rows, dx.cols);
  if (dy_in.scalar_type() == at::kBFloat16) {
    product_bf16(dy, w, false, nullptr, accumulate ? dx.bf16() : nullptr, dx.stride, dx);
    return;
  }
  product_f32(dy.f32(), dy.stride, w.f32(), w.stride, false, dx.mutable_f32(), dx.stride, dy.rows,
              dx.cols, dy.cols, accumulate);
}

void linear_backward_weight(const at::Tensor& dy_in, const at::Tensor& x_in, at::Tensor& dweight,
                            bool accumulate) {
  const Matrix dy = matrix_of(dy_in, "dy");
  const Matrix x = matrix_of(x_in, "x");
  const Matrix dw = matrix_of(dweight, "dweight");
  TRIREME_CHECK(dy.rows == x.rows && dw.rows == dy.cols && dw.cols == x.cols,
                "linear_backward_weight: [{}, {}]^T x [{}, {}] -> [{}, {}]", dy.rows, dy.cols,
                x.rows, x.cols, dw.rows, dw.cols);
  float* out = dw.mutable_f32();
  if (x_in.scalar_type() == at::kFloat) {
    sgemm(true, false, dw.rows, dw.cols, x.rows, dy.f32(), dy.stride, x.f32(), x.stride, accumulate,
          out, dw.stride);
    return;
  }
  if (cpu::product_choice().bfloat16 != Bf16Product::kConvert) {
    cpu::bf16_gemm(true, false, dw.rows, dw.cols, x.rows, dy.bf16(), dy.stride, x.bf16(), x.stride,
                   accumulate, out, dw.stride);
    return;
  }
  const int64_t panel = std::min(x.rows, kPanelRows + kMinRows);
  at::Tensor wide_dy = workspace(panel, dy.cols);
  at::Tensor wide_x = workspace(panel, x.cols);
  bool add = accumulate;
  int64_t r = 0;
  do {
    const int64_t count = panel_rows(x.rows - r);
    cpu::widen(dy.bf16() + r * dy.stride, dy.stride, wide_dy.data_ptr<float>(), count, dy.cols);
    cpu::widen(x.bf16() + r * x.stride, x.stride, wide_x.data_ptr<float>(), count, x.cols);
    sgemm(true, false, dw.rows, dw.cols, count, wide_dy.data_ptr<float>(), dy.cols,
          wide_x.data_ptr<float>(), x.cols, add, out, dw.stride);
    add = true;
    r += count;
  } while (r < x.rows);
}

namespace {
template <class T>
void bias_gradient_typed(const at::Tensor& dy, at::Tensor& dbias, bool accumulate) {
  const auto rows = cpu::rows_of<T>(dy, "dy");
  const int64_t width = dy.size(1);
  TRIREME_CHECK(dbias.is_contiguous() && dbias.numel() == width, "dbias must be [{}]", width);
  const int64_t blocks = cpu::reduction_blocks(rows.count);
  const int64_t block_rows = (rows.count + blocks - 1) / blocks;
  at::Tensor partials = workspace(blocks, width);
  float* sums = partials.data_ptr<float>();
  const auto add_columns = cpu::flat_kernels(T{}).add_columns;
  at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      std::memset(sums + b * width, 0, sizeof(float) * static_cast<size_t>(width));
      const int64_t last = std::min(rows.count, (b + 1) * block_rows);
      for (int64_t r = b * block_rows; r < last; ++r)
        add_columns(rows.row(r), static_cast<size_t>(width), sums + b * width);
    }
  });
  cpu::combine_blocks(sums, blocks, width, dbias.data_ptr<float>(), accumulate);
}
}  // namespace

void bias_gradient(const at::Tensor& dy, at::Tensor& dbias, bool accumulate) {
  if (dy.scalar_type() == at::kBFloat16)
    return bias_gradient_typed<at::BFloat16>(dy, dbias, accumulate);
  bias_gradient_typed<float>(dy, dbias, accumulate);
}

}  // namespace cpu

int64_t product_workspace_bytes(int64_t rows, int64_t cols, int64_t inner, at::ScalarType dtype) {
  const cpu::ProductChoice choice = cpu::product_choice();
  const bool panels = dtype == at::kFloat ? choice.float32 == FloatProduct::kPanels
                                          : choice.bfloat16 == Bf16Product::kPanels;
  if (panels) return 0;
  if (dtype == at::kFloat) return rows >= kMinRows ? 0 : 4 * kMinRows * (cols + inner);
  const int64_t panel = std::min(rows, kPanelRows + kMinRows);
  return 4 * (cols * inner + panel * (cols + inner));
}

}  // namespace trireme::kernels
