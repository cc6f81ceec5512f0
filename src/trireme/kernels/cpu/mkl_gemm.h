// Matrix products on plain pointers, through the BLAS inside libtorch (MKL in the wheel).
// Row-major.
#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>

namespace trireme::kernels::cpu {

/// C[m, n] (= or +=) op(A)[m, k] op(B)[k, n]. transpose_a: A is stored [k, m]. lda, ldb, ldc are row
/// strides. Spreads over ATen's threads, or stays on the caller's inside a parallel region.
void mkl_sgemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, const float* a,
               int64_t lda, const float* b, int64_t ldb, bool accumulate, float* c, int64_t ldc);

/// mkl_sgemm with bfloat16 A and B and float32 accumulation and C. Only when has_mkl_bf16_gemm().
void mkl_bf16_gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k,
                   const at::BFloat16* a, int64_t lda, const at::BFloat16* b, int64_t ldb,
                   bool accumulate, float* c, int64_t ldc);

/// Whether the library exports cblas_gemm_bf16bf16f32.
bool has_mkl_bf16_gemm();

}  // namespace trireme::kernels::cpu
