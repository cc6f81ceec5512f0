#include "trireme/kernels/cpu/mkl_gemm.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/add.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>

#include <algorithm>
#include <limits>

#include "trireme/base/error.h"

// libtorch_cpu.so of the wheel exports MKL's entry points without their headers. Weak: another
// build of libtorch may lack them, and then the products go through at::mm.
extern "C" {
[[gnu::weak]] void sgemm_(const char* transa, const char* transb, const int* m, const int* n,
                          const int* k, const float* alpha, const float* a, const int* lda,
                          const float* b, const int* ldb, const float* beta, float* c,
                          const int* ldc);
[[gnu::weak]] void cblas_gemm_bf16bf16f32(int layout, int transa, int transb, int m, int n, int k,
                                          float alpha, const uint16_t* a, int lda,
                                          const uint16_t* b, int ldb, float beta, float* c,
                                          int ldc);
}

namespace trireme::kernels::cpu {
namespace {

int narrow(int64_t value) {
  TRIREME_CHECK(value >= 0 && value <= std::numeric_limits<int>::max(),
                "a product's size {} is too large", value);
  return static_cast<int>(value);
}

/// For a libtorch whose BLAS is hidden.
void mm_fallback(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha,
                 const float* a, int64_t lda, const float* b, int64_t ldb, float beta, float* c,
                 int64_t ldc) {
  const auto view = [](const float* data, bool transpose, int64_t rows, int64_t cols,
                       int64_t stride) {
    auto* pointer = const_cast<float*>(data);
    if (transpose)
      return at::from_blob(pointer, {rows, cols}, {1, stride},
                           at::TensorOptions().dtype(at::kFloat));
    return at::from_blob(pointer, {rows, cols}, {stride, 1}, at::TensorOptions().dtype(at::kFloat));
  };
  at::Tensor product = at::mm(view(a, transpose_a, m, k, lda), view(b, transpose_b, k, n, ldb));
  if (alpha != 1.0f) product.mul_(alpha);
  at::Tensor out = view(c, false, m, n, ldc);
  if (beta == 0.0f) {
    out.copy_(product);
  } else {
    out.mul_(beta).add_(product);
  }
}

}  // namespace

void sgemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha,
           const float* a, int64_t lda, const float* b, int64_t ldb, float beta, float* c,
           int64_t ldc) {
  if (m == 0 || n == 0) return;
  if (sgemm_ == nullptr)
    return mm_fallback(transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  // Fortran's column-major C^T = op(B)^T op(A)^T.
  const char ta = transpose_a ? 'T' : 'N';
  const char tb = transpose_b ? 'T' : 'N';
  const int mi = narrow(m);
  const int ni = narrow(n);
  const int ki = narrow(k);
  const int ldai = std::max(1, narrow(lda));
  const int ldbi = std::max(1, narrow(ldb));
  const int ldci = std::max(1, narrow(ldc));
  sgemm_(&tb, &ta, &ni, &mi, &ki, &alpha, b, &ldbi, a, &ldai, &beta, c, &ldci);
}

bool has_bf16_gemm() {
  return cblas_gemm_bf16bf16f32 != nullptr;
}

void bf16_gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha,
               const at::BFloat16* a, int64_t lda, const at::BFloat16* b, int64_t ldb, float beta,
               float* c, int64_t ldc) {
  if (m == 0 || n == 0) return;
  TRIREME_CHECK(has_bf16_gemm(), "this libtorch has no bfloat16 product with float32 result");
  constexpr int kRowMajor = 101;
  constexpr int kNoTrans = 111;
  constexpr int kTrans = 112;
  cblas_gemm_bf16bf16f32(kRowMajor, transpose_a ? kTrans : kNoTrans,
                         transpose_b ? kTrans : kNoTrans, narrow(m), narrow(n), narrow(k), alpha,
                         reinterpret_cast<const uint16_t*>(a), std::max(1, narrow(lda)),
                         reinterpret_cast<const uint16_t*>(b), std::max(1, narrow(ldb)), beta, c,
                         std::max(1, narrow(ldc)));
}

}  // namespace trireme::kernels::cpu
