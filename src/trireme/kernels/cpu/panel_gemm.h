// Matrix products of packed panels on oneDNN's micro-kernels (brgemm), which libtorch exports. Row-major.
//
// MKL takes slow paths on processors of other makers than Intel and has no rule for which rows of a product depend on
// how many there are. Here one element of the result is one chain of multiply-adds along the inner dimension, from first
// to last, whatever the number of rows, columns and threads: independent of all three by construction.
// Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008), for packing and blocking.
#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>

namespace trireme::kernels::cpu {

/// Whether this processor has the micro-kernels: AVX-512, and for bfloat16 its dot product too.
bool has_float_panels();
bool has_bf16_panels();

/// C[m, n] (= or +=) op(A)[m, k] op(B)[k, n], accumulated in float32. transpose_a: A is stored [k, m]. lda, ldb, ldc
/// are row strides. Not both transposed. Spreads over ATen's threads, or stays on the caller's inside a parallel
/// region; blocks. Each thread keeps half a mebibyte of scratch; transpose_a allocates panel_workspace_elements() more.
void panel_gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, const float* a,
                int64_t lda, const float* b, int64_t ldb, bool accumulate, float* c, int64_t ldc);
void panel_gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k,
                const at::BFloat16* a, int64_t lda, const at::BFloat16* b, int64_t ldb,
                bool accumulate, float* c, int64_t ldc);

/// What a bfloat16 result starts from, in float32: bias + residual, either may be null.
struct ProductStart {
  const at::BFloat16* bias = nullptr;      ///< [n]
  const at::BFloat16* residual = nullptr;  ///< [m, n]; may be the result itself
  int64_t residual_stride = 0;
};

/// C[m, n] = start + A[m, k] op(B)[k, n], rounded to bfloat16 once, at the end.
void panel_gemm(bool transpose_b, int64_t m, int64_t n, int64_t k, const at::BFloat16* a, int64_t lda,
                const at::BFloat16* b, int64_t ldb, const ProductStart& start, at::BFloat16* c,
                int64_t ldc);

/// Elements of B that a product with transposed A packs at once.
int64_t panel_workspace_elements(int64_t n, int64_t k);

}  // namespace trireme::kernels::cpu
