#include "trireme/kernels/cpu/panel_gemm.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>

#if defined(__x86_64__)
#include <ATen/native/CPUBlas.h>
#include <fbgemm/Utils.h>
#endif

#include "trireme/base/error.h"
#include "trireme/kernels/cpu/flat.h"
#include "trireme/kernels/cpu/panel_rows.h"
#include "trireme/kernels/cpu/processor.h"

namespace trireme::kernels::cpu {
namespace {

constexpr int64_t kTile = kPanelColumns;  ///< also the rows of A of one micro-kernel call
constexpr int64_t kInnerBlock =
    768;  ///< inner dimension of a panel of B: with its tile of A it stays in L2
constexpr int64_t kChunkRows = 512;  ///< rows whose float32 sums wait for the next inner block
constexpr int64_t kWeightBlock =
    512;  ///< inner dimension (tokens) of a packed block when A is transposed
constexpr int64_t kInnerMultiple =
    32;  ///< transposed A is padded with zeros to it: few distinct micro-kernels

int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}
int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

/// Memory of one thread, held as long as it lives: a panel of B, a tile of A, and sums.
struct Scratch {
  static constexpr size_t kPanel = sizeof(float) * kInnerBlock * kTile;
  static constexpr size_t kRows = sizeof(float) * kInnerBlock * kTile;
  static constexpr size_t kSums = sizeof(float) * kChunkRows * kTile;
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  std::unique_ptr<std::byte, Free> memory;
  Scratch() : memory(static_cast<std::byte*>(std::aligned_alloc(64, kPanel + kRows + kSums))) {
    if (memory == nullptr) throw std::bad_alloc();
  }
  template <class T>
  T* panel() const {
    return reinterpret_cast<T*>(memory.get());
  }
  template <class T>
  T* rows() const {
    return reinterpret_cast<T*>(memory.get() + kPanel);
  }
  float* sums() const { return reinterpret_cast<float*>(memory.get() + kPanel + kRows); }
};
const Scratch& scratch() {
  thread_local const Scratch mine;
  return mine;
}

/// Matrix B[k, n] as it lies in memory, or its transpose.
template <class T>
struct Operand {
  const T* data;
  int64_t stride;
  bool transposed;  ///< stored [n, k]
};

/// Rows [k0, k0 + kb) and columns [n0, n0 + nb) of B.
template <class T>
void pack(const Operand<T>& b, int64_t k0, int64_t kb, int64_t kp, int64_t n0, int64_t nb, T* to) {
  const T* corner = b.transposed ? b.data + n0 * b.stride + k0 : b.data + k0 * b.stride + n0;
  pack_panel(corner, b.stride, b.transposed, kb, kp, nb, to);
}

template <class Word>
void transpose_words(const Word* a, int64_t lda, int64_t rows, int64_t cols, Word* to,
                     int64_t ldt) {
#if defined(__x86_64__)
  fbgemm::transpose_simd<Word>(rows, cols, a, lda, to, ldt);
#else
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) to[c * ldt + r] = a[r * lda + c];
  }
#endif
}

/// to[rows, kp] = rows of A, zero past kb.
template <class T>
void copy_rows(const T* a, int64_t lda, int64_t rows, int64_t kb, int64_t kp, T* to) {
  for (int64_t r = 0; r < rows; ++r) {
    std::memcpy(static_cast<void*>(to + r * kp), a + r * lda, sizeof(T) * static_cast<size_t>(kb));
    std::memset(static_cast<void*>(to + r * kp + kb), 0, sizeof(T) * static_cast<size_t>(kp - kb));
  }
}

/// to[cols, kp] = the transpose of a[kb, cols], zero past kb.
template <class T>
void transpose_rows(const T* a, int64_t lda, int64_t kb, int64_t cols, int64_t kp, T* to) {
  transpose(a, lda, kb, cols, to, kp);
  if (kp == kb) return;
  for (int64_t r = 0; r < cols; ++r)
    std::memset(static_cast<void*>(to + r * kp + kb), 0, sizeof(T) * static_cast<size_t>(kp - kb));
}

/// Fewer rows than a tile go in powers of two: few distinct micro-kernels.
template <class T>
void multiply_tiles(int64_t rows, int64_t nb, int64_t inner, const T* a, int64_t lda,
                    const T* panel, bool add, float* c, int64_t ldc) {
#if defined(__x86_64__)
  int64_t first = 0;
  for (int64_t size = kTile; size > 0; size /= 2) {
    while (rows - first >= size) {
      at::native::cpublas::brgemm(size, nb, inner, lda, kTile, ldc, add, a + first * lda, panel,
                                  c + first * ldc, std::is_same_v<T, at::BFloat16>);
      first += size;
    }
  }
#else
  TRIREME_CHECK(false, "no micro-kernels on this processor");
#endif
}

/// Pieces that `units` units of rows are cut into so that `panels` panels give every thread work.
int64_t row_pieces(int64_t panels, int64_t units) {
  const int64_t wanted = ceil_div(4 * at::get_num_threads(), panels);
  return std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, units));
}

/// Float32 result in place: each inner block adds to it.
struct FloatSink {
  float* c;
  int64_t ldc;
  bool accumulate;
  static constexpr bool kInPlace = true;
  float* tile(float* /*sums*/, int64_t r, int64_t n0) const { return c + r * ldc + n0; }
  int64_t stride() const { return ldc; }
  bool begin(float* /*tile*/, int64_t /*r*/, int64_t /*n0*/, int64_t /*rows*/,
             int64_t /*nb*/) const {
    return accumulate;
  }
  void end(const float* /*tile*/, int64_t /*r*/, int64_t /*n0*/, int64_t /*rows*/,
           int64_t /*nb*/) const {}
};

/// Bfloat16 result: sums are float32 in scratch until the last inner block.
struct Bf16Sink {
  const ProductStart& start;
  at::BFloat16* c;
  int64_t ldc;
  static constexpr bool kInPlace = false;
  float* tile(float* sums, int64_t /*r*/, int64_t /*n0*/) const { return sums; }
  int64_t stride() const { return kTile; }
  bool begin(float* tile, int64_t r, int64_t n0, int64_t rows, int64_t nb) const {
    if (start.bias == nullptr && start.residual == nullptr) return false;
    flat_kernels(at::BFloat16{})
        .start_rows(
            start.bias == nullptr ? nullptr : start.bias + n0,
            start.residual == nullptr ? nullptr : start.residual + r * start.residual_stride + n0,
            start.residual_stride, tile, kTile, static_cast<size_t>(rows), static_cast<size_t>(nb));
    return true;
  }
  void end(const float* tile, int64_t r, int64_t n0, int64_t rows, int64_t nb) const {
    rows_to_bf16(tile, kTile, c + r * ldc + n0, ldc, rows, nb);
  }
};

/// A as it lies, B packed panel by panel on the thread that uses it: a task is a panel of columns times a piece of rows.
template <class T, class Sink>
void product(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const Operand<T>& b,
             const Sink& sink) {
  const int64_t panels = ceil_div(n, kTile);
  const int64_t pieces = row_pieces(panels, m / (2 * kTile));
  const int64_t piece = round_up(ceil_div(m, pieces), kTile);
  const bool one_block = k <= kInnerBlock;
  // An odd inner dimension in bfloat16 would make the micro-kernel read past a row's end.
  const bool copy_a = std::is_same_v<T, at::BFloat16> && k % 2 != 0;
  at::parallel_for(0, panels * pieces, 1, [&](int64_t first_task, int64_t last_task) {
    const Scratch& mine = scratch();
    T* panel = mine.panel<T>();
    for (int64_t task = first_task; task < last_task; ++task) {
      const int64_t n0 = task / pieces * kTile;
      const int64_t nb = std::min(kTile, n - n0);
      const int64_t begin = task % pieces * piece;
      const int64_t end = std::min(m, begin + piece);
      if (one_block && begin < end) pack(b, 0, k, k, n0, nb, panel);
      for (int64_t chunk = begin; chunk < end; chunk += kChunkRows) {
        const int64_t chunk_end = std::min(end, chunk + kChunkRows);
        for (int64_t k0 = 0; k0 < k || k0 == 0; k0 += kInnerBlock) {
          const int64_t kb = std::min(kInnerBlock, k - k0);
          if (!one_block) pack(b, k0, kb, kb, n0, nb, panel);
          for (int64_t r = chunk; r < chunk_end; r += kTile) {
            const int64_t rows = std::min(kTile, chunk_end - r);
            float* tile = sink.tile(mine.sums() + (one_block ? 0 : (r - chunk) * kTile), r, n0);
            const bool add = k0 > 0 || sink.begin(tile, r, n0, rows, nb);
            const T* from = a + r * lda + k0;
            int64_t stride = lda;
            int64_t inner = kb;
            if (copy_a) {
              inner = round_up(kb, 2);
              copy_rows(from, lda, rows, kb, inner, mine.rows<T>());
              from = mine.rows<T>();
              stride = inner;
            }
            multiply_panel(rows, nb, inner, from, stride, panel, add, tile, sink.stride());
            if (k0 + kb >= k) sink.end(tile, r, n0, rows, nb);
          }
        }
      }
    }
  });
}

/// A transposed: a block of B is packed once for all threads, a tile of A^T by the thread that uses it.
template <class T>
void product_transposed_a(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda,
                          const Operand<T>& b, bool accumulate, float* c, int64_t ldc) {
  const int64_t panels = ceil_div(n, kTile);
  const int64_t tiles = ceil_div(m, kTile);
  const int64_t pieces = row_pieces(tiles, panels);
  at::Tensor packed = at::empty({panel_workspace_elements(n, k)},
                                at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value));
  T* blocks = packed.data_ptr<T>();
  for (int64_t k0 = 0; k0 < k; k0 += kWeightBlock) {
    const int64_t kb = std::min(kWeightBlock, k - k0);
    const int64_t kp = round_up(kb, kInnerMultiple);
    at::parallel_for(0, panels, 1, [&](int64_t first, int64_t last) {
      for (int64_t p = first; p < last; ++p)
        pack(b, k0, kb, kp, p * kTile, std::min(kTile, n - p * kTile), blocks + p * kp * kTile);
    });
    at::parallel_for(0, tiles * pieces, 1, [&](int64_t first, int64_t last) {
      T* rows_of_a = scratch().rows<T>();
      int64_t have = -1;
      for (int64_t task = first; task < last; ++task) {
        const int64_t tile = task / pieces;
        const int64_t r = tile * kTile;
        const int64_t rows = std::min(kTile, m - r);
        if (tile != have) transpose_rows(a + k0 * lda + r, lda, kb, rows, kp, rows_of_a);
        have = tile;
        for (int64_t p = panels * (task % pieces) / pieces;
             p < panels * (task % pieces + 1) / pieces; ++p) {
          multiply_panel(rows, std::min(kTile, n - p * kTile), kp, rows_of_a, kp,
                         blocks + p * kp * kTile, k0 > 0 || accumulate, c + r * ldc + p * kTile,
                         ldc);
        }
      }
    });
  }
}

template <class T>
void gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, const T* a,
          int64_t lda, const T* b, int64_t ldb, bool accumulate, float* c, int64_t ldc) {
  if (m == 0 || n == 0) return;
  if (k == 0) {
    for (int64_t r = 0; r < m && !accumulate; ++r)
      std::memset(c + r * ldc, 0, sizeof(float) * static_cast<size_t>(n));
    return;
  }
  const Operand<T> operand{b, ldb, transpose_b};
  if (transpose_a) {
    TRIREME_CHECK(!transpose_b, "no product of two transposed matrices");
    return product_transposed_a(m, n, k, a, lda, operand, accumulate, c, ldc);
  }
  product(m, n, k, a, lda, operand, FloatSink{c, ldc, accumulate});
}

}  // namespace

void transpose(const float* a, int64_t lda, int64_t rows, int64_t cols, float* to, int64_t ldt) {
  transpose_words(a, lda, rows, cols, to, ldt);
}
void transpose(const at::BFloat16* a, int64_t lda, int64_t rows, int64_t cols, at::BFloat16* to,
               int64_t ldt) {
  transpose_words(reinterpret_cast<const uint16_t*>(a), lda, rows, cols,
                  reinterpret_cast<uint16_t*>(to), ldt);
}

void pack_panel(const float* b, int64_t ldb, bool transposed, int64_t kb, int64_t kp, int64_t nb,
                float* panel) {
  if (transposed) {
    transpose(b, ldb, nb, kb, panel, kTile);
  } else {
    for (int64_t k = 0; k < kb; ++k)
      std::memcpy(panel + k * kTile, b + k * ldb, sizeof(float) * static_cast<size_t>(nb));
  }
  if (kp > kb)
    std::memset(panel + kb * kTile, 0, sizeof(float) * static_cast<size_t>((kp - kb) * kTile));
}

void pack_panel(const at::BFloat16* b, int64_t ldb, bool transposed, int64_t kb, int64_t kp,
                int64_t nb, at::BFloat16* panel) {
  const int64_t pairs = kb / 2;
  if (transposed && ldb % 2 == 0 && reinterpret_cast<uintptr_t>(b) % 4 == 0) {
    // A pair is one 32-bit word: moved, never computed with.
    transpose_words(reinterpret_cast<const float*>(b), ldb / 2, nb, pairs,
                    reinterpret_cast<float*>(panel), kTile);
  } else if (transposed) {
    for (int64_t j = 0; j < nb; ++j) {
      const at::BFloat16* from = b + j * ldb;
      for (int64_t k = 0; k < 2 * pairs; ++k) panel[(k / 2) * 2 * kTile + 2 * j + k % 2] = from[k];
    }
  } else {
    for (int64_t p = 0; p < pairs; ++p) {
      const at::BFloat16* row = b + 2 * p * ldb;
      interleave_rows(row, row + ldb, static_cast<size_t>(nb), panel + p * 2 * kTile);
    }
  }
  if (kb % 2 != 0) {
    const int64_t k = kb - 1;
    at::BFloat16* last = panel + k * kTile;
    for (int64_t j = 0; j < nb; ++j) {
      last[2 * j] = transposed ? b[j * ldb + k] : b[k * ldb + j];
      last[2 * j + 1] = at::BFloat16(0.0f);
    }
  }
  const int64_t written = round_up(kb, 2);
  if (kp > written) {
    std::memset(static_cast<void*>(panel + written * kTile), 0,
                sizeof(at::BFloat16) * static_cast<size_t>((kp - written) * kTile));
  }
}

void multiply_panel(int64_t rows, int64_t nb, int64_t inner, const float* a, int64_t lda,
                    const float* panel, bool add, float* c, int64_t ldc) {
  static const bool micro_kernels = has_float_panels();
  if (micro_kernels) return multiply_tiles(rows, nb, inner, a, lda, panel, add, c, ldc);
  multiply_rows(rows, nb, inner, a, lda, panel, add, c, ldc);
}
void multiply_panel(int64_t rows, int64_t nb, int64_t inner, const at::BFloat16* a, int64_t lda,
                    const at::BFloat16* panel, bool add, float* c, int64_t ldc) {
  multiply_tiles(rows, nb, inner, a, lda, panel, add, c, ldc);
}

bool has_float_panels() {
  return processor().avx512;
}

bool has_bf16_panels() {
  return processor().avx512 && processor().avx512_bf16;
}

void panel_gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, const float* a,
                int64_t lda, const float* b, int64_t ldb, bool accumulate, float* c, int64_t ldc) {
  gemm(transpose_a, transpose_b, m, n, k, a, lda, b, ldb, accumulate, c, ldc);
}

void panel_gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k,
                const at::BFloat16* a, int64_t lda, const at::BFloat16* b, int64_t ldb,
                bool accumulate, float* c, int64_t ldc) {
  gemm(transpose_a, transpose_b, m, n, k, a, lda, b, ldb, accumulate, c, ldc);
}

void panel_gemm(bool transpose_b, int64_t m, int64_t n, int64_t k, const at::BFloat16* a,
                int64_t lda, const at::BFloat16* b, int64_t ldb, const ProductStart& start,
                at::BFloat16* c, int64_t ldc) {
  if (m == 0 || n == 0) return;
  TRIREME_CHECK(k > 0, "a product needs an inner dimension");
  product(m, n, k, a, lda, Operand<at::BFloat16>{b, ldb, transpose_b}, Bf16Sink{start, c, ldc});
}

void panel_gram(int64_t m, int64_t k, const at::BFloat16* a, int64_t lda, float* c, int64_t ldc) {
  if (k % 2 != 0) return panel_gemm(false, true, m, m, k, a, lda, a, lda, false, c, ldc);
  const Operand<at::BFloat16> b{a, lda, true};
  const int64_t tiles = ceil_div(m, kTile);
  // Tile t of the list is row block `row` of panel `column`, row <= column: column (column + 1) / 2 lie before its panel.
  const auto rows_of = [&](int64_t tile) { return std::min(kTile, m - tile * kTile); };
  at::parallel_for(0, tiles * (tiles + 1) / 2, 1, [&](int64_t begin, int64_t end) {
    at::BFloat16* panel = scratch().panel<at::BFloat16>();
    for (int64_t column = 0; column < tiles; ++column) {
      const int64_t first = std::max<int64_t>(begin - column * (column + 1) / 2, 0);
      const int64_t last = std::min(end - column * (column + 1) / 2, column + 1);
      if (first >= last) continue;
      const int64_t n0 = column * kTile;
      const int64_t nb = rows_of(column);
      for (int64_t k0 = 0; k0 < k; k0 += kInnerBlock) {
        const int64_t kb = std::min(kInnerBlock, k - k0);
        pack(b, k0, kb, kb, n0, nb, panel);
        for (int64_t row = first; row < last; ++row) {
          const int64_t r = row * kTile;
          multiply_panel(rows_of(row), nb, kb, a + r * lda + k0, lda, panel, k0 > 0,
                         c + r * ldc + n0, ldc);
        }
      }
      for (int64_t row = first; row < last && row < column; ++row) {
        const int64_t r = row * kTile;
        transpose(c + r * ldc + n0, ldc, rows_of(row), nb, c + n0 * ldc + r, ldc);
      }
    }
  });
}

int64_t panel_workspace_elements(int64_t n, int64_t k) {
  return round_up(std::min(k, kWeightBlock), kInnerMultiple) * round_up(n, kTile);
}

}  // namespace trireme::kernels::cpu
