// Rotary position embedding, token embedding and its gradient.
#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "trireme/base/error.h"
#include "trireme/kernels/cpu/cpu_kernels.h"
#include "trireme/kernels/cpu/flat.h"
#include "trireme/kernels/cpu/rows.h"
#include "trireme/kernels/ops.h"

namespace trireme::kernels {
namespace {

constexpr int64_t kGrainElements = 16384;

const int64_t* ids_of(const at::Tensor& ids, int64_t count, const char* what) {
  TRIREME_CHECK(ids.scalar_type() == at::kLong && ids.is_contiguous() && ids.numel() == count,
                "{} must be {} contiguous int64 values", what, count);
  return ids.const_data_ptr<int64_t>();
}

/// Names the first id outside [0, limit), if any.
void check_ids(const int64_t* ids, int64_t count, int64_t limit, const char* what) {
  std::atomic<int64_t> bad{count};
  at::parallel_for(0, count, kGrainElements, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      if (ids[n] >= 0 && ids[n] < limit) continue;
      int64_t seen = bad.load();
      while (n < seen && !bad.compare_exchange_weak(seen, n)) {
      }
      return;
    }
  });
  if (bad.load() == count) return;
  TRIREME_USER_CHECK(false, kData,
                     "use the tokenizer that belongs to the model, or a larger vocab_size",
                     "{} {} is outside the table of {} entries", what, ids[bad.load()], limit);
}

template <class T>
void rotary_typed(at::Tensor& x, const at::Tensor& positions, const at::Tensor& cos,
                  const at::Tensor& sin, bool inverse, bool interleaved) {
  const auto rows = cpu::rows_of<T>(x, "x");
  TRIREME_CHECK(x.dim() == 3, "x must be [N, heads, head_dim]");
  const int64_t n = x.size(0);
  const int64_t heads = x.size(1);
  const int64_t half = cos.size(1);
  TRIREME_CHECK(2 * half <= x.size(2) && sin.sizes() == cos.sizes() && cos.is_contiguous() &&
                    sin.is_contiguous(),
                "cos and sin must be contiguous [positions, dim / 2] with dim <= head_dim");
  const int64_t* place = ids_of(positions, n, "positions");
  check_ids(place, n, cos.size(0), "position");
  const float* c = cos.const_data_ptr<float>();
  const float* s = sin.const_data_ptr<float>();
  const auto& kernels = cpu::flat_kernels(T{});
  const auto kernel = interleaved ? kernels.rotate_pairs : kernels.rotate_head;
  const float sign = inverse ? -1.0f : 1.0f;
  const int64_t grain = std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, heads * half));
  at::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t h = 0; h < heads; ++h) {
        T* head = rows.base + i * rows.outer_stride + h * rows.head_stride;
        kernel(head, c + place[i] * half, s + place[i] * half, static_cast<size_t>(half), sign);
      }
    }
  });
}

template <class T>
void embedding_typed(const at::Tensor& tokens, const at::Tensor& weight,
                     const at::Tensor& positions, const at::Tensor& position_weight,
                     at::Tensor& out) {
  const int64_t n = tokens.numel();
  const int64_t d = weight.size(1);
  TRIREME_CHECK(weight.is_contiguous() && out.is_contiguous() && out.numel() == n * d,
                "out must be [{}, {}]", n, d);
  const int64_t* ids = ids_of(tokens, n, "tokens");
  check_ids(ids, n, weight.size(0), "token id");
  const T* table = weight.const_data_ptr<T>();
  const int64_t* place = nullptr;
  const T* position_table = nullptr;
  if (position_weight.defined()) {
    TRIREME_CHECK(position_weight.is_contiguous() && position_weight.size(1) == d,
                  "position_weight must be [P, {}]", d);
    place = ids_of(positions, n, "positions");
    check_ids(place, n, position_weight.size(0), "position");
    position_table = position_weight.const_data_ptr<T>();
  }
  T* to = out.data_ptr<T>();
  const auto sum_two = cpu::flat_kernels(T{}).sum_two;
  const int64_t grain = std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, d));
  at::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* row = table + ids[i] * d;
      if (place == nullptr) {
        std::memcpy(to + i * d, row, sizeof(T) * static_cast<size_t>(d));
      } else {
        sum_two(row, position_table + place[i] * d, static_cast<size_t>(d), to + i * d);
      }
    }
  });
}

/// Each thread owns a range of columns and adds all rows in order: no sorting, no races, the same
/// bits each time.
template <class T>
void embedding_backward_typed(const at::Tensor& tokens, const at::Tensor& dy, at::Tensor& dweight,
                              bool accumulate) {
  const int64_t n = tokens.numel();
  const int64_t d = dweight.size(1);
  const int64_t vocab = dweight.size(0);
  TRIREME_CHECK(dy.is_contiguous() && dweight.is_contiguous() && dy.numel() == n * d,
                "dy must be [{}, {}]", n, d);
  const int64_t* ids = ids_of(tokens, n, "tokens");
  check_ids(ids, n, vocab, "token id");
  const T* grad = dy.const_data_ptr<T>();
  float* sums = dweight.data_ptr<float>();
  if (!accumulate) {
    at::parallel_for(0, vocab * d, kGrainElements, [&](int64_t begin, int64_t end) {
      std::memset(sums + begin, 0, sizeof(float) * static_cast<size_t>(end - begin));
    });
  }
  constexpr int64_t kColumnBlock = 16;
  const auto add_columns = cpu::flat_kernels(T{}).add_columns;
  const int64_t blocks = (d + kColumnBlock - 1) / kColumnBlock;
  const int64_t grain =
      std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, n * kColumnBlock));
  at::parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kColumnBlock;
    const auto width = static_cast<size_t>(std::min(d, end * kColumnBlock) - first);
    for (int64_t i = 0; i < n; ++i)
      add_columns(grad + i * d + first, width, sums + ids[i] * d + first);
  });
}

}  // namespace

namespace cpu {

void rotary_(at::Tensor& x, const at::Tensor& positions, const at::Tensor& cos,
             const at::Tensor& sin, bool inverse, bool interleaved) {
  if (x.scalar_type() == at::kBFloat16)
    return rotary_typed<at::BFloat16>(x, positions, cos, sin, inverse, interleaved);
  rotary_typed<float>(x, positions, cos, sin, inverse, interleaved);
}

void embedding(const at::Tensor& tokens, const at::Tensor& weight, const at::Tensor& positions,
               const at::Tensor& position_weight, at::Tensor& out) {
  if (weight.scalar_type() == at::kBFloat16) {
    return embedding_typed<at::BFloat16>(tokens, weight, positions, position_weight, out);
  }
  embedding_typed<float>(tokens, weight, positions, position_weight, out);
}

void embedding_backward(const at::Tensor& tokens, const at::Tensor& dy, at::Tensor& dweight,
                        bool accumulate) {
  if (dy.scalar_type() == at::kBFloat16) {
    return embedding_backward_typed<at::BFloat16>(tokens, dy, dweight, accumulate);
  }
  embedding_backward_typed<float>(tokens, dy, dweight, accumulate);
}

}  // namespace cpu

}  // namespace trireme::kernels
