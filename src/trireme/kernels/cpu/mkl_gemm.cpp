#include "trireme/kernels/cpu/mkl_gemm.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/add.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>

#include <algorithm>
#include <limits>

#include "trireme/base/error.h"
#include "trireme/kernels/cpu/processor.h"

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
[[gnu::weak]] int MKL_Set_Num_Threads_Local(int num_threads);
}

namespace trireme::kernels::cpu {
namespace {

constexpr int64_t kShortInner = 384;
constexpr int64_t kInnerPanel = 768;
constexpr int64_t kPanelSide = 192;
constexpr int64_t kPanelElements = 131072;
constexpr int64_t kTile = 128;

int narrow(int64_t value) {
  TRIREME_CHECK(value >= 0 && value <= std::numeric_limits<int>::max(),
                "a product's size {} is too large", value);
  return static_cast<int>(value);
}

/// For a libtorch whose BLAS is hidden.
void mm_fallback(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k,
                 const float* a, int64_t lda, const float* b, int64_t ldb, bool accumulate,
                 float* c, int64_t ldc) {
  const auto view = [](const float* data, bool transpose, int64_t rows, int64_t cols,
                       int64_t stride) {
    auto* pointer = const_cast<float*>(data);
    if (transpose)
      return at::from_blob(pointer, {rows, cols}, {1, stride},
                           at::TensorOptions().dtype(at::kFloat));
    return at::from_blob(pointer, {rows, cols}, {stride, 1}, at::TensorOptions().dtype(at::kFloat));
  };
  at::Tensor product = at::mm(view(a, transpose_a, m, k, lda), view(b, transpose_b, k, n, ldb));
  at::Tensor out = view(c, false, m, n, ldc);
  if (accumulate) {
    out.add_(product);
  } else {
    out.copy_(product);
  }
}

void multiply(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, const float* a,
              int64_t lda, const float* b, int64_t ldb, bool accumulate, float* c, int64_t ldc) {
  if (sgemm_ == nullptr) {
    return mm_fallback(transpose_a, transpose_b, m, n, k, a, lda, b, ldb, accumulate, c, ldc);
  }
  // Fortran's column-major C^T = op(B)^T op(A)^T.
  const char ta = transpose_a ? 'T' : 'N';
  const char tb = transpose_b ? 'T' : 'N';
  const int mi = narrow(m);
  const int ni = narrow(n);
  const int ki = narrow(k);
  const int ldai = std::max(1, narrow(lda));
  const int ldbi = std::max(1, narrow(ldb));
  const int ldci = std::max(1, narrow(ldc));
  const float alpha = 1.0f;
  const float beta = accumulate ? 1.0f : 0.0f;
  sgemm_(&tb, &ta, &ni, &mi, &ki, &alpha, b, &ldbi, a, &ldai, &beta, c, &ldci);
}

/// MKL stays on the caller's thread while this lives.
class SerialMkl {
 public:
  SerialMkl() {
    if (MKL_Set_Num_Threads_Local != nullptr) before_ = MKL_Set_Num_Threads_Local(1);
  }
  ~SerialMkl() {
    if (MKL_Set_Num_Threads_Local != nullptr) MKL_Set_Num_Threads_Local(before_);
  }
  SerialMkl(const SerialMkl&) = delete;
  SerialMkl& operator=(const SerialMkl&) = delete;

 private:
  int before_ = 0;
};

/// A tile, on the caller's thread even where one thread is all there is to a parallel loop. Its panels are MKL's own
/// blocks: small products would otherwise be cut elsewhere than large ones.
void multiply_tile(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k,
                   const float* a, int64_t lda, const float* b, int64_t ldb, bool accumulate,
                   float* c, int64_t ldc) {
  const SerialMkl serial;
  for (int64_t begin = 0; begin < k; begin += kShortInner) {
    multiply(transpose_a, transpose_b, m, n, std::min(kShortInner, k - begin),
             a + (transpose_a ? begin * lda : begin), lda, b + (transpose_b ? begin : begin * ldb),
             ldb, begin > 0 || accumulate, c, ldc);
  }
}

}  // namespace

// Note [Products and threads]. With a long inner dimension and a small result MKL hands pieces of the inner dimension to
// its threads, and then the bits depend on how many there are (measured from 2 to 16 threads: only below 192 rows or
// columns when the inner dimension is at most 768). So, by shape alone:
//  - a short inner dimension, or a caller inside a parallel region: one call;
//  - a result with enough rows and columns: one call per panel of the inner dimension. A panel is a multiple of MKL's own
//    blocking (384 with AVX-512), so that it leaves the bits of the undivided product;
//  - the rest, and everything on a processor without AVX-512: tiles of the result on our threads, each a serial product.
void mkl_sgemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, const float* a,
               int64_t lda, const float* b, int64_t ldb, bool accumulate, float* c, int64_t ldc) {
  if (m == 0 || n == 0) return;
  const bool wide = std::min(m, n) >= kPanelSide && m * n >= kPanelElements;
  // MKL's other kernels hand out pieces of short inner dimensions as well: always tiles.
  static const bool measured = processor().avx512;
  if (k == 0)
    return multiply(transpose_a, transpose_b, m, n, k, a, lda, b, ldb, accumulate, c, ldc);
  if (measured && (k <= kShortInner || at::in_parallel_region() || (wide && k <= kInnerPanel))) {
    return multiply(transpose_a, transpose_b, m, n, k, a, lda, b, ldb, accumulate, c, ldc);
  }
  if (measured && wide) {
    for (int64_t begin = 0; begin < k; begin += kInnerPanel) {
      multiply(transpose_a, transpose_b, m, n, std::min(kInnerPanel, k - begin),
               a + (transpose_a ? begin * lda : begin), lda,
               b + (transpose_b ? begin : begin * ldb), ldb, begin > 0 || accumulate, c, ldc);
    }
    return;
  }
  const int64_t row_tiles = (m + kTile - 1) / kTile;
  const int64_t column_tiles = (n + kTile - 1) / kTile;
  at::parallel_for(0, row_tiles * column_tiles, 1, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) {
      // Balanced cuts: no tile is so small that MKL takes another path for it.
      const int64_t r0 = (t / column_tiles) * m / row_tiles;
      const int64_t r1 = (t / column_tiles + 1) * m / row_tiles;
      const int64_t c0 = (t % column_tiles) * n / column_tiles;
      const int64_t c1 = (t % column_tiles + 1) * n / column_tiles;
      multiply_tile(transpose_a, transpose_b, r1 - r0, c1 - c0, k,
                    a + (transpose_a ? r0 : r0 * lda), lda, b + (transpose_b ? c0 * ldb : c0), ldb,
                    accumulate, c + r0 * ldc + c0, ldc);
    }
  });
}

bool has_mkl_bf16_gemm() {
  return cblas_gemm_bf16bf16f32 != nullptr;
}

void mkl_bf16_gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k,
                   const at::BFloat16* a, int64_t lda, const at::BFloat16* b, int64_t ldb,
                   bool accumulate, float* c, int64_t ldc) {
  if (m == 0 || n == 0) return;
  TRIREME_CHECK(has_mkl_bf16_gemm(), "this libtorch has no bfloat16 product with float32 result");
  constexpr int kRowMajor = 101;
  constexpr int kNoTrans = 111;
  constexpr int kTrans = 112;
  cblas_gemm_bf16bf16f32(kRowMajor, transpose_a ? kTrans : kNoTrans,
                         transpose_b ? kTrans : kNoTrans, narrow(m), narrow(n), narrow(k), 1.0f,
                         reinterpret_cast<const uint16_t*>(a), std::max(1, narrow(lda)),
                         reinterpret_cast<const uint16_t*>(b), std::max(1, narrow(ldb)),
                         accumulate ? 1.0f : 0.0f, c, std::max(1, narrow(ldc)));
}

}  // namespace trireme::kernels::cpu
