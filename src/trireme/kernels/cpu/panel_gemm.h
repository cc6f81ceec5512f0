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

/// C[m, m] = A[m, k] A^T: one triangle of tiles is computed and mirrored, with the bits of the whole product (its
/// chains of (i, j) and (j, i) multiply the same pairs in the same order).
void panel_gram(int64_t m, int64_t k, const at::BFloat16* a, int64_t lda, float* c, int64_t ldc);

/// What a bfloat16 result starts from, in float32: bias + residual, either may be null.
struct ProductStart {
  const at::BFloat16* bias = nullptr;      ///< [n]
  const at::BFloat16* residual = nullptr;  ///< [m, n]; may be the result itself
  int64_t residual_stride = 0;
};

/// C[m, n] = start + A[m, k] op(B)[k, n], rounded to bfloat16 once, at the end.
void panel_gemm(bool transpose_b, int64_t m, int64_t n, int64_t k, const at::BFloat16* a,
                int64_t lda, const at::BFloat16* b, int64_t ldb, const ProductStart& start,
                at::BFloat16* c, int64_t ldc);

// The pieces, for kernels that block their own loops (attention, grouped products).

/// Columns of a panel: B[inner, up to kPanelColumns], one row after the other; bfloat16 in pairs of rows (VNNI).
inline constexpr int64_t kPanelColumns = 64;

/// Packs rows [0, kb) and columns [0, nb) of B (transposed: stored [n, k]). Rows from kb to kp are zero; columns past nb
/// keep what was there, and results of theirs mean nothing. bfloat16: kp is even.
void pack_panel(const float* b, int64_t ldb, bool transposed, int64_t kb, int64_t kp, int64_t nb,
                float* panel);
void pack_panel(const at::BFloat16* b, int64_t ldb, bool transposed, int64_t kb, int64_t kp,
                int64_t nb, at::BFloat16* panel);

/// C[rows, nb] (= or +=) A[rows, inner] panel, on the caller's thread. bfloat16: inner is even, has_bf16_panels().
/// Float32 works on every processor. oneDNN compiles a micro-kernel for every (nb, inner, lda, ldc) that a thread meets:
/// keep them few.
void multiply_panel(int64_t rows, int64_t nb, int64_t inner, const float* a, int64_t lda,
                    const float* panel, bool add, float* c, int64_t ldc);
void multiply_panel(int64_t rows, int64_t nb, int64_t inner, const at::BFloat16* a, int64_t lda,
                    const at::BFloat16* panel, bool add, float* c, int64_t ldc);

/// to[cols, ldt] = the transpose of a[rows, cols].
void transpose(const float* a, int64_t lda, int64_t rows, int64_t cols, float* to, int64_t ldt);
void transpose(const at::BFloat16* a, int64_t lda, int64_t rows, int64_t cols, at::BFloat16* to,
               int64_t ldt);

/// Elements of B that a product with transposed A packs at once.
int64_t panel_workspace_elements(int64_t n, int64_t k);

}  // namespace trireme::kernels::cpu
