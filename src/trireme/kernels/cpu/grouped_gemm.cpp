// Products by group: rows of many matrices in one, each group with its own weight. The pieces of panel_gemm.h, with one
// list of work for all groups that threads take from, so that skewed groups keep every thread busy. Which thread takes
// what does not enter the arithmetic: an element is one chain of multiply-adds.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>

#include "trireme/base/error.h"
#include "trireme/kernels/cpu/cpu_kernels.h"
#include "trireme/kernels/cpu/flat.h"
#include "trireme/kernels/cpu/panel_gemm.h"
#include "trireme/kernels/cpu/product.h"
#include "trireme/kernels/moe_ops.h"

namespace trireme::kernels {
namespace {

using cpu::kPanelColumns;

constexpr int64_t kTile = kPanelColumns;
constexpr int64_t kInnerBlock = 768;  ///< inner dimension of a packed panel
constexpr int64_t kUnitRows = 512;  ///< rows of a unit of work: one packing of a panel serves them
constexpr int64_t kWeightBlock = 512;   ///< rows of a packed block of a weight gradient
constexpr int64_t kInnerMultiple = 32;  ///< its padding: few distinct micro-kernels

int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}
int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

/// Memory of one thread, held as long as it lives.
struct Scratch {
  static constexpr int64_t kBlock =
      kInnerBlock * kTile;  ///< floats of a panel, also of a tile of A
  static constexpr int64_t kSums = kUnitRows * kTile;
  struct Free {
    void operator()(float* memory) const { std::free(memory); }
  };
  std::unique_ptr<float, Free> memory;
  Scratch()
      : memory(static_cast<float*>(std::aligned_alloc(64, sizeof(float) * (3 * kBlock + kSums)))) {
    if (memory == nullptr) throw std::bad_alloc();
  }
  template <class C>
  C* panel() const {
    return reinterpret_cast<C*>(memory.get());
  }
  template <class C>
  C* rows() const {
    return reinterpret_cast<C*>(memory.get() + kBlock);
  }
  float* widened() const { return memory.get() + 2 * kBlock; }
  float* sums() const { return memory.get() + 3 * kBlock; }
};
const Scratch& scratch() {
  thread_local const Scratch mine;
  return mine;
}

/// Runs body(unit, worker) for every unit of [0, count), each once, on all threads; workers are numbered from 0.
template <class Body>
void for_units(int64_t count, Body&& body) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), count);
  at::parallel_for(0, threads, 1, [&](int64_t worker, int64_t) {
    for (int64_t unit = next++; unit < count; unit = next++) body(unit, worker);
  });
}

/// Asks for a tile of the result, that the product before it hides the way to memory.
void prefetch_tile(float* tile, int64_t rows, int64_t stride) {
#if defined(__GNUC__)
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t column = 0; column < kTile; column += 16)
      __builtin_prefetch(tile + r * stride + column, 1);
  }
#endif
}

/// Packs a block of B for products in C: as it is, or widened first.
template <class T, class C>
void pack(const T* b, int64_t ldb, bool transposed, int64_t kb, int64_t kp, int64_t nb, C* panel) {
  if constexpr (std::is_same_v<T, C>) {
    cpu::pack_panel(b, ldb, transposed, kb, kp, nb, panel);
  } else {
    float* wide = scratch().widened();
    const int64_t rows = transposed ? nb : kb;
    const int64_t cols = transposed ? kb : nb;
    cpu::rows_to_f32(b, ldb, wide, cols, rows, cols);
    cpu::pack_panel(wide, cols, transposed, kb, kp, nb, panel);
  }
}

/// Rows of A as a product in C wants them: where they lie, or a copy that is widened or padded to an even width.
template <class T, class C>
const C* rows_of_a(const T* a, int64_t lda, int64_t rows, int64_t kb, int64_t kp, int64_t& stride) {
  if constexpr (!std::is_same_v<T, C>) {
    float* copy = scratch().rows<float>();
    cpu::rows_to_f32(a, lda, copy, kb, rows, kb);
    stride = kb;
    return copy;
  } else {
    stride = lda;
    if (kb == kp) return a;
    C* copy = scratch().rows<C>();
    for (int64_t r = 0; r < rows; ++r) {
      std::memcpy(static_cast<void*>(copy + r * kp), a + r * lda,
                  sizeof(T) * static_cast<size_t>(kb));
      std::memset(static_cast<void*>(copy + r * kp + kb), 0,
                  sizeof(T) * static_cast<size_t>(kp - kb));
    }
    stride = kp;
    return copy;
  }
}

/// A piece of all groups' weights: its own tensor [G, rows, in].
template <class T>
struct Piece {
  T* data;
  int64_t rows;
  int64_t first_row;  ///< of the whole
  int64_t group_stride;
  int64_t row_stride;
};

template <class T, class Tensors>
std::vector<Piece<T>> pieces_of(const Tensors& weights, int64_t groups, int64_t in) {
  std::vector<Piece<T>> pieces;
  int64_t first = 0;
  for (const at::Tensor& weight : weights) {
    TRIREME_CHECK(weight.dim() == 3 && weight.size(0) == groups && weight.size(2) == in &&
                      weight.stride(2) == 1,
                  "a weight of groups must be [{}, out, {}]", groups, in);
    T* data = nullptr;
    if constexpr (std::is_const_v<T>) {
      data = weight.const_data_ptr<std::remove_const_t<T>>();
    } else {
      data = weight.data_ptr<T>();
    }
    pieces.push_back({data, weight.size(1), first, weight.stride(0), weight.stride(1)});
    first += weight.size(1);
  }
  return pieces;
}

/// A block of columns of the weight of one group, over all its inner blocks.
template <class T>
struct Panel {
  int64_t first_column;  ///< of the result
  int64_t columns;
  /// Of one inner block: B of a group is at data + group * group_stride.
  struct Block {
    const T* data;
    int64_t group_stride;
    int64_t stride;
    int64_t first_inner;  ///< of A's columns
    int64_t inner;
  };
  std::vector<Block> blocks;
};

/// W^T of the pieces: columns are rows of a piece, never of two.
template <class T>
std::vector<Panel<T>> forward_panels(const std::vector<Piece<const T>>& pieces, int64_t in) {
  std::vector<Panel<T>> panels;
  for (const auto& piece : pieces) {
    for (int64_t n0 = 0; n0 < piece.rows; n0 += kTile) {
      Panel<T> panel{piece.first_row + n0, std::min(kTile, piece.rows - n0), {}};
      for (int64_t k0 = 0; k0 < in; k0 += kInnerBlock) {
        panel.blocks.push_back({piece.data + n0 * piece.row_stride + k0, piece.group_stride,
                                piece.row_stride, k0, std::min(kInnerBlock, in - k0)});
      }
      panels.push_back(std::move(panel));
    }
  }
  return panels;
}

/// W of the pieces: the inner dimension runs over the rows of one piece after the other.
template <class T>
std::vector<Panel<T>> backward_panels(const std::vector<Piece<const T>>& pieces, int64_t in) {
  std::vector<Panel<T>> panels;
  for (int64_t n0 = 0; n0 < in; n0 += kTile) {
    Panel<T> panel{n0, std::min(kTile, in - n0), {}};
    for (const auto& piece : pieces) {
      for (int64_t k0 = 0; k0 < piece.rows; k0 += kInnerBlock) {
        panel.blocks.push_back({piece.data + k0 * piece.row_stride + n0, piece.group_stride,
                                piece.row_stride, piece.first_row + k0,
                                std::min(kInnerBlock, piece.rows - k0)});
      }
    }
    panels.push_back(std::move(panel));
  }
  return panels;
}

struct RowBlock {
  int64_t group;
  int64_t begin;
  int64_t end;
};

/// Every group's rows in about equal blocks of at most kUnitRows, whole tiles but for a group's last one.
std::vector<RowBlock> row_blocks(const GroupOffsets& offsets) {
  std::vector<RowBlock> blocks;
  for (size_t g = 0; g + 1 < offsets.size(); ++g) {
    const int64_t rows = offsets[g + 1] - offsets[g];
    if (rows == 0) continue;
    const int64_t size = round_up(ceil_div(rows, ceil_div(rows, kUnitRows)), kTile);
    for (int64_t r = offsets[g]; r < offsets[g + 1]; r += size)
      blocks.push_back({static_cast<int64_t>(g), r, std::min(offsets[g + 1], r + size)});
  }
  return blocks;
}

/// C = A B_g (+ C) for every group's rows. C is float32 where T is; else sums are rounded once.
template <class T, class C>
void row_product(const T* a, int64_t lda, const std::vector<Panel<T>>& panels, bool transposed,
                 const GroupOffsets& offsets, bool accumulate, T* c, int64_t ldc) {
  const std::vector<RowBlock> blocks = row_blocks(offsets);
  const auto num_panels = static_cast<int64_t>(panels.size());
  constexpr bool kInPlace = std::is_same_v<T, float>;
  for_units(static_cast<int64_t>(blocks.size()) * num_panels,
            [&](int64_t unit, int64_t /*worker*/) {
              const RowBlock& rows = blocks[static_cast<size_t>(unit / num_panels)];
              const Panel<T>& panel = panels[static_cast<size_t>(unit % num_panels)];
              C* packed = scratch().panel<C>();
              float* sums = scratch().sums();
              const int64_t n0 = panel.first_column;
              const int64_t nb = panel.columns;
              for (size_t b = 0; b < panel.blocks.size(); ++b) {
                const auto& block = panel.blocks[b];
                const int64_t kb = block.inner;
                const int64_t kp = std::is_same_v<C, at::BFloat16> ? round_up(kb, 2) : kb;
                pack<T, C>(block.data + rows.group * block.group_stride, block.stride, transposed,
                           kb, kp, nb, packed);
                for (int64_t r = rows.begin; r < rows.end; r += kTile) {
                  const int64_t count = std::min(kTile, rows.end - r);
                  float* to = nullptr;
                  int64_t to_stride = kTile;
                  if constexpr (kInPlace) {
                    to = c + r * ldc + n0;
                    to_stride = ldc;
                  } else {
                    to = sums + (r - rows.begin) * kTile;
                    if (b == 0 && accumulate)
                      cpu::rows_to_f32(c + r * ldc + n0, ldc, to, kTile, count, nb);
                  }
                  int64_t stride = 0;
                  const C* from =
                      rows_of_a<T, C>(a + r * lda + block.first_inner, lda, count, kb, kp, stride);
                  cpu::multiply_panel(count, nb, kp, from, stride, packed, b > 0 || accumulate, to,
                                      to_stride);
                  if constexpr (!kInPlace) {
                    if (b + 1 == panel.blocks.size())
                      cpu::rows_to_bf16(to, kTile, c + r * ldc + n0, ldc, count, nb);
                  }
                }
              }
            });
}

/// A group's rows in blocks of kWeightBlock, with the place of each in the packed memory.
struct WeightBlock {
  int64_t group;
  int64_t begin;
  int64_t rows;
  int64_t padded;
  int64_t place;  ///< in padded rows
};

/// dW_g (= or +=) dy_g^T x_g. Large groups have x packed once for all threads; of small ones each is one thread's from
/// packing to products, in a buffer that stays in its cache: with many experts the ways to memory would cost more than
/// the products' last quarter.
template <class T, class C>
class WeightProduct {
 public:
  WeightProduct(const T* dy, int64_t ld_dy, const T* x, int64_t ldx, int64_t in,
                const GroupOffsets& offsets, const std::vector<Piece<float>>& pieces,
                bool accumulate)
      : dy_(dy),
        ld_dy_(ld_dy),
        x_(x),
        ldx_(ldx),
        in_(in),
        panels_(ceil_div(in, kTile)),
        groups_(static_cast<int64_t>(offsets.size()) - 1),
        pieces_(pieces),
        accumulate_(accumulate) {
    for (int64_t g = 0; g < groups_; ++g) {
      first_block_.push_back(blocks_.size());
      const int64_t end = offsets[static_cast<size_t>(g) + 1];
      for (int64_t r = offsets[static_cast<size_t>(g)]; r < end; r += kWeightBlock) {
        const int64_t rows = std::min(kWeightBlock, end - r);
        blocks_.push_back({g, r, rows, round_up(rows, kInnerMultiple), padded_rows_});
        padded_rows_ += blocks_.back().padded;
      }
    }
    first_block_.push_back(blocks_.size());
  }

  void run() {
    std::vector<int64_t> small;
    std::vector<int64_t> large;
    int64_t slot = 0;  // padded rows of the largest small group
    for (int64_t g = 0; g < groups_; ++g) {
      const int64_t rows = padded_rows(g);
      const bool is_small =
          rows <= kSmallGroup && rows * kUnitsPerThread * at::get_num_threads() <= padded_rows_;
      (is_small ? small : large).push_back(g);
      if (is_small) slot = std::max(slot, rows);
    }
    const int64_t width = panels_ * kTile;
    const at::Tensor workspace = at::empty(
        {padded_rows_ * width}, at::TensorOptions().dtype(c10::CppTypeToScalarType<C>::value));
    C* packed = workspace.data_ptr<C>();
    run_large(large, packed);
    // The places of the large groups are free again, and small ones are small against the whole: a slot each thread fits.
    for_units(static_cast<int64_t>(small.size()), [&](int64_t unit, int64_t worker) {
      const int64_t g = small[static_cast<size_t>(unit)];
      C* mine = packed + worker * slot * width;
      const size_t first = first_block_[static_cast<size_t>(g)];
      const size_t last = first_block_[static_cast<size_t>(g) + 1];
      for (size_t b = first; b < last; ++b) {
        for (int64_t p = 0; p < panels_; ++p)
          pack_block(blocks_[b], p, mine + (blocks_[b].place - blocks_[first].place) * width);
      }
      for (const Piece<float>& piece : pieces_) {
        for (int64_t row = 0; row < piece.rows; row += kTile) {
          multiply({g, &piece, row, 0, panels_}, mine, first == last ? 0 : blocks_[first].place);
        }
      }
    });
  }

 private:
  static constexpr int64_t kSmallGroup = 2 * kWeightBlock;
  static constexpr int64_t kUnitsPerThread = 8;  ///< that the last one does not keep all waiting

  struct Unit {
    int64_t group;
    const Piece<float>* piece;
    int64_t row;  ///< of the piece
    int64_t first_panel;
    int64_t last_panel;
  };

  int64_t padded_rows(int64_t group) const {
    int64_t rows = 0;
    for (size_t b = first_block_[static_cast<size_t>(group)];
         b < first_block_[static_cast<size_t>(group) + 1]; ++b)
      rows += blocks_[b].padded;
    return rows;
  }

  void pack_block(const WeightBlock& block, int64_t panel, C* to) const {
    const int64_t column = panel * kTile;
    pack<T, C>(x_ + block.begin * ldx_ + column, ldx_, false, block.rows, block.padded,
               std::min(kTile, in_ - column), to + column * block.padded);
  }

  void run_large(const std::vector<int64_t>& groups, C* packed) const {
    std::vector<const WeightBlock*> blocks;
    for (const int64_t g : groups) {
      for (size_t b = first_block_[static_cast<size_t>(g)];
           b < first_block_[static_cast<size_t>(g) + 1]; ++b)
        blocks.push_back(&blocks_[b]);
    }
    for_units(static_cast<int64_t>(blocks.size()) * panels_, [&](int64_t unit, int64_t /*worker*/) {
      const WeightBlock& block = *blocks[static_cast<size_t>(unit / panels_)];
      pack_block(block, unit % panels_, packed + block.place * panels_ * kTile);
    });
    std::vector<Unit> units;
    int64_t tiles = 0;
    for (const auto& piece : pieces_)
      tiles += static_cast<int64_t>(groups.size()) * ceil_div(piece.rows, kTile);
    if (tiles == 0) return;
    const int64_t parts =
        std::clamp<int64_t>(ceil_div(4 * at::get_num_threads(), tiles), 1, panels_);
    for (const int64_t g : groups) {
      for (const auto& piece : pieces_) {
        for (int64_t row = 0; row < piece.rows; row += kTile) {
          for (int64_t part = 0; part < parts; ++part)
            units.push_back({g, &piece, row, panels_ * part / parts, panels_ * (part + 1) / parts});
        }
      }
    }
    for_units(static_cast<int64_t>(units.size()), [&](int64_t index, int64_t /*worker*/) {
      multiply(units[static_cast<size_t>(index)], packed, 0);
    });
  }

  /// A tile of rows of a gradient; packed starts with the block that is at first_place.
  void multiply(const Unit& unit, const C* packed, int64_t first_place) const {
    const Piece<float>& piece = *unit.piece;
    const int64_t rows = std::min(kTile, piece.rows - unit.row);
    float* corner = piece.data + unit.group * piece.group_stride + unit.row * piece.row_stride;
    const size_t first = first_block_[static_cast<size_t>(unit.group)];
    const size_t last = first_block_[static_cast<size_t>(unit.group) + 1];
    if (first == last && !accumulate_) {
      const int64_t begin = unit.first_panel * kTile;
      const int64_t end = std::min(in_, unit.last_panel * kTile);
      for (int64_t r = 0; r < rows; ++r)
        std::fill(corner + r * piece.row_stride + begin, corner + r * piece.row_stride + end, 0.0f);
    }
    for (size_t b = first; b < last; ++b) {
      const WeightBlock& block = blocks_[b];
      const T* from = dy_ + block.begin * ld_dy_ + piece.first_row + unit.row;
      prefetch_tile(corner + unit.first_panel * kTile, rows, piece.row_stride);
      C* a = scratch().rows<C>();
      if constexpr (std::is_same_v<T, C>) {
        cpu::transpose(from, ld_dy_, block.rows, rows, a, block.padded);
      } else {
        float* wide = scratch().widened();
        cpu::rows_to_f32(from, ld_dy_, wide, rows, block.rows, rows);
        cpu::transpose(wide, rows, block.rows, rows, a, block.padded);
      }
      for (int64_t r = 0; r < rows && block.padded > block.rows; ++r) {
        std::memset(static_cast<void*>(a + r * block.padded + block.rows), 0,
                    sizeof(C) * static_cast<size_t>(block.padded - block.rows));
      }
      for (int64_t p = unit.first_panel; p < unit.last_panel; ++p) {
        if (p + 1 < unit.last_panel)
          prefetch_tile(corner + (p + 1) * kTile, rows, piece.row_stride);
        cpu::multiply_panel(
            rows, std::min(kTile, in_ - p * kTile), block.padded, a, block.padded,
            packed + (block.place - first_place) * panels_ * kTile + p * block.padded * kTile,
            b > first || accumulate_, corner + p * kTile, piece.row_stride);
      }
    }
  }

  const T* dy_;
  int64_t ld_dy_;
  const T* x_;
  int64_t ldx_;
  int64_t in_;
  int64_t panels_;
  int64_t groups_;
  const std::vector<Piece<float>>& pieces_;
  bool accumulate_;
  std::vector<WeightBlock> blocks_;
  std::vector<size_t> first_block_;  ///< of every group
  int64_t padded_rows_ = 0;
};

bool multiplies_bf16() {
  return cpu::product_choice().bfloat16 == cpu::Bf16Product::kPanels;
}

struct Matrix {
  int64_t rows;
  int64_t cols;
  int64_t stride;
};

Matrix matrix_of(const at::Tensor& tensor, const GroupOffsets& offsets, const char* what) {
  TRIREME_CHECK(!offsets.empty() && offsets.front() == 0 && tensor.dim() == 2 &&
                    tensor.size(0) == offsets.back() &&
                    (tensor.size(1) <= 1 || tensor.stride(1) == 1),
                "{} must have {} contiguous rows", what, offsets.empty() ? 0 : offsets.back());
  return {tensor.size(0), tensor.size(1), std::max(tensor.stride(0), tensor.size(1))};
}

template <class T>
void row_product(const at::Tensor& a, const std::vector<at::Tensor>& weights, bool forward,
                 const GroupOffsets& offsets, bool accumulate, at::Tensor& c) {
  const Matrix from = matrix_of(a, offsets, "the input");
  const Matrix to = matrix_of(c, offsets, "the result");
  const int64_t in = forward ? from.cols : to.cols;
  const auto pieces = pieces_of<const T>(weights, static_cast<int64_t>(offsets.size()) - 1, in);
  const int64_t out = pieces.back().first_row + pieces.back().rows;
  TRIREME_CHECK(out == (forward ? to.cols : from.cols), "weights of {} rows, not {}", out,
                forward ? to.cols : from.cols);
  const auto panels = forward ? forward_panels<T>(pieces, in) : backward_panels<T>(pieces, in);
  const T* data = a.const_data_ptr<T>();
  T* result = c.data_ptr<T>();
  if constexpr (std::is_same_v<T, float>) {
    row_product<float, float>(data, from.stride, panels, forward, offsets, accumulate, result,
                              to.stride);
  } else if (multiplies_bf16()) {
    row_product<T, T>(data, from.stride, panels, forward, offsets, accumulate, result, to.stride);
  } else {
    row_product<T, float>(data, from.stride, panels, forward, offsets, accumulate, result,
                          to.stride);
  }
}

}  // namespace

namespace cpu {

void grouped_linear(const at::Tensor& x, const std::vector<at::Tensor>& weights,
                    const GroupOffsets& offsets, bool accumulate, at::Tensor& y) {
  if (x.scalar_type() == at::kBFloat16)
    return row_product<at::BFloat16>(x, weights, true, offsets, accumulate, y);
  row_product<float>(x, weights, true, offsets, accumulate, y);
}

void grouped_linear_backward_input(const at::Tensor& dy, const std::vector<at::Tensor>& weights,
                                   const GroupOffsets& offsets, at::Tensor& dx) {
  if (dy.scalar_type() == at::kBFloat16)
    return row_product<at::BFloat16>(dy, weights, false, offsets, false, dx);
  row_product<float>(dy, weights, false, offsets, false, dx);
}

void grouped_linear_backward_weight(const at::Tensor& dy, const at::Tensor& x,
                                    const GroupOffsets& offsets,
                                    const std::vector<at::Tensor>& dweights, bool accumulate) {
  const Matrix grad = matrix_of(dy, offsets, "dy");
  const Matrix in = matrix_of(x, offsets, "x");
  const auto pieces = pieces_of<float>(dweights, static_cast<int64_t>(offsets.size()) - 1, in.cols);
  TRIREME_CHECK(pieces.back().first_row + pieces.back().rows == grad.cols,
                "gradients of {} rows, not {}", pieces.back().first_row + pieces.back().rows,
                grad.cols);
  if (x.scalar_type() == at::kFloat) {
    WeightProduct<float, float>(dy.const_data_ptr<float>(), grad.stride, x.const_data_ptr<float>(),
                                in.stride, in.cols, offsets, pieces, accumulate)
        .run();
    return;
  }
  const auto* d = dy.const_data_ptr<at::BFloat16>();
  const auto* a = x.const_data_ptr<at::BFloat16>();
  if (multiplies_bf16()) {
    WeightProduct<at::BFloat16, at::BFloat16>(d, grad.stride, a, in.stride, in.cols, offsets,
                                              pieces, accumulate)
        .run();
  } else {
    WeightProduct<at::BFloat16, float>(d, grad.stride, a, in.stride, in.cols, offsets, pieces,
                                       accumulate)
        .run();
  }
}

}  // namespace cpu

int64_t grouped_weight_workspace_bytes(int64_t rows, int64_t groups, int64_t in,
                                       at::ScalarType dtype) {
  const int64_t padding = (groups + ceil_div(rows, kWeightBlock)) * (kInnerMultiple - 1);
  const int64_t element = dtype == at::kBFloat16 && multiplies_bf16() ? 2 : 4;
  return (rows + std::min(padding, rows * (kInnerMultiple - 1))) * round_up(in, kTile) * element;
}

}  // namespace trireme::kernels
