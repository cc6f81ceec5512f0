// How products are computed on this machine.
//
// All ways accumulate in float32, and multiply bfloat16 values exactly. Which is quickest depends on the CPU: without
// AMX an Intel core multiplies bfloat16 at half its float32 rate (166 against 300 GF/s on two cores), an AMD core with
// avx512_bf16 at two to three times; MKL reaches 4/5 of an AMD core's float32 rate.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

namespace trireme::kernels::cpu {

enum class FloatProduct {
  kMkl,     ///< mkl_gemm.h
  kPanels,  ///< panel_gemm.h
};
enum class Bf16Product {
  kConvert,  ///< widen panels to float32, then the float32 product
  kMkl,      ///< MKL's bfloat16 product with float32 result
  kPanels,   ///< panel_gemm.h
};
const char* to_string(FloatProduct product);
const char* to_string(Bf16Product product);

struct ProductChoice {
  FloatProduct float32;
  Bf16Product bfloat16;
};

/// The choice in force: default_product_choice() unless set_product_choice came before. Thread-safety: any thread, but
/// set it before the first product.
ProductChoice product_choice();
void set_product_choice(ProductChoice choice);

/// What the processor's kind says. A rule and not a measurement: a busy machine must not change a run's bits.
ProductChoice default_product_choice();

/// C[m, n] (= or +=) op(A)[m, k] op(B)[k, n] in float32, the chosen way. As mkl_sgemm.
void sgemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, const float* a,
           int64_t lda, const float* b, int64_t ldb, bool accumulate, float* c, int64_t ldc);

/// The same with bfloat16 A and B; not when the choice is kConvert.
void bf16_gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k,
               const at::BFloat16* a, int64_t lda, const at::BFloat16* b, int64_t ldb,
               bool accumulate, float* c, int64_t ldc);

/// Rows of a float32 panel when bfloat16 is widened: bounds the workspace.
inline constexpr int64_t kPanelRows = 512;

/// Below this many rows MKL takes another path, with other last bits (below inner / 25 for A B^T, measured; inner is at
/// most 384 in one call): products are padded to it.
inline constexpr int64_t kMinRows = 16;

/// `rows` rows of src and zeros up to kMinRows, [kMinRows, cols].
at::Tensor padded_rows(const at::BFloat16* src, int64_t src_stride, int64_t rows, int64_t cols);

/// Widens a [rows, cols] bfloat16 matrix on all threads.
void widen(const at::BFloat16* src, int64_t src_stride, float* dst, int64_t rows, int64_t cols);
/// Rounds a [rows, cols] float32 matrix on all threads.
void round_rows(const float* src, int64_t src_stride, at::BFloat16* dst, int64_t dst_stride,
                int64_t rows, int64_t cols);

}  // namespace trireme::kernels::cpu
