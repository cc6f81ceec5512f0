// Blocked causal attention, forward and backward (Dao et al. 2022), on strided views of a fused qkv
// matrix.
//
// A task is one head of one document: a plain causal problem, so documents cost no masks and no
// wasted products. Tasks are independent and write disjoint places: which thread takes which does
// not matter to the result. Products are of packed panels (panel_gemm.h): an element of a score or a
// result is one chain over head_dim or over the keys in order, so a query's bits do not depend on
// how many others there are, and those of a query in generation are those of training.
//
// The backward works on transposed tiles, keys down and queries across: p^T and ds^T are then what
// the products for dv and dk read, and only ds has to be turned for dq.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "trireme/base/error.h"
#include "trireme/kernels/cpu/attention_rows.h"
#include "trireme/kernels/cpu/cpu_kernels.h"
#include "trireme/kernels/cpu/flat.h"
#include "trireme/kernels/cpu/panel_gemm.h"
#include "trireme/kernels/cpu/product.h"
#include "trireme/kernels/ops.h"

namespace trireme::kernels {
namespace {

using cpu::multiply_panel;
using cpu::pack_panel;

constexpr int64_t kTile = cpu::kPanelColumns;  ///< queries of a block, keys of a tile
constexpr int64_t kKeyBlock = 1024;            ///< keys whose scores exist at once
constexpr int64_t kScoreStride =
    kKeyBlock + 16;  ///< not a power of two: rows would share cache sets

int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// A [B, T, H, D] view.
template <class T>
struct View {
  T* base = nullptr;
  int64_t batch_stride = 0;
  int64_t time_stride = 0;
  int64_t head_stride = 0;
  T* at(int64_t b, int64_t t, int64_t h) const {
    return base + b * batch_stride + t * time_stride + h * head_stride;
  }
};

template <class T>
View<T> view_of(const at::Tensor& tensor, const char* what) {
  TRIREME_CHECK(tensor.defined() && tensor.dim() == 4 && tensor.device().is_cpu(),
                "{} must be a CPU [B, T, H, D]", what);
  TRIREME_CHECK(tensor.size(3) <= 1 || tensor.stride(3) == 1, "{}: head_dim must be contiguous",
                what);
  return {tensor.data_ptr<T>(), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

struct Task {
  int64_t batch;
  int64_t head;
  int64_t start;   ///< of the document
  int64_t length;  ///< queries
};

/// One task per row, head and document, longest first so that threads end together.
std::vector<Task> make_tasks(int64_t batch, int64_t heads, int64_t queries,
                             const Segments* segments) {
  std::vector<Task> tasks;
  for (int64_t b = 0; b < batch; ++b) {
    if (segments == nullptr) {
      for (int64_t h = 0; h < heads; ++h) tasks.push_back({b, h, 0, queries});
      continue;
    }
    const auto& starts = (*segments)[static_cast<size_t>(b)];
    TRIREME_CHECK(!starts.empty() && starts[0] == 0, "a row's first document must start at 0");
    for (size_t s = 0; s < starts.size(); ++s) {
      const int64_t end = s + 1 < starts.size() ? starts[s + 1] : queries;
      TRIREME_CHECK(starts[s] < end && end <= queries,
                    "document starts must ascend inside the row");
      for (int64_t h = 0; h < heads; ++h) tasks.push_back({b, h, starts[s], end - starts[s]});
    }
  }
  std::stable_sort(tasks.begin(), tasks.end(),
                   [](const Task& a, const Task& b) { return a.length > b.length; });
  return tasks;
}

/// Runs body(task, scratch) for every task, each worker with its own scratch of `floats`.
template <class Body>
void run_tasks(const std::vector<Task>& tasks, int64_t floats, Body&& body) {
  if (tasks.empty()) return;
  const int64_t workers =
      std::min<int64_t>(at::get_num_threads(), static_cast<int64_t>(tasks.size()));
  at::Tensor scratch = at::empty({workers, floats}, at::TensorOptions().dtype(at::kFloat));
  float* base = scratch.data_ptr<float>();
  std::atomic<size_t> next{0};
  at::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t w = begin; w < end; ++w) {
      for (size_t i = next.fetch_add(1); i < tasks.size(); i = next.fetch_add(1))
        body(tasks[i], base + w * floats);
    }
  });
}

/// Hands out a worker's scratch piece by piece, each beginning on a cache line.
class Scratch {
 public:
  explicit Scratch(float* memory) : next_(memory) {}
  template <class E>
  E* take(int64_t count) {
    auto* piece = reinterpret_cast<E*>(next_);
    next_ += floats<E>(count);
    return piece;
  }
  template <class E>
  static int64_t floats(int64_t count) {
    return round_up(count * static_cast<int64_t>(sizeof(E)), 64) / 4;
  }

 private:
  float* next_;
};

/// A head's [rows, d] slice as the products read it: where it lies, or widened into scratch.
template <class E>
struct Slice {
  const E* data;
  int64_t stride;
  const E* row(int64_t r) const { return data + r * stride; }
};
template <class E, class T>
Slice<E> slice_of(const View<T>& view, int64_t b, int64_t t, int64_t h, int64_t rows, int64_t d,
                  Scratch& scratch) {
  if constexpr (std::is_same_v<E, T>) {
    return {view.at(b, t, h), view.time_stride};
  } else {
    float* to = scratch.take<float>(rows * d);
    cpu::rows_to_f32(view.at(b, t, h), view.time_stride, to, d, rows, d);
    return {to, d};
  }
}

/// Sizes of one problem.
struct Shape {
  int64_t queries;
  int64_t keys;
  int64_t d;        ///< of a query and a key
  int64_t value_d;  ///< of a value
};

template <class T, class E>
int64_t forward_floats(const Shape& s) {
  const int64_t padded = round_up(s.keys, kTile);
  const int64_t value_columns = round_up(s.value_d, kTile);
  int64_t sum = Scratch::floats<E>(padded * round_up(s.d, 2)) +
                Scratch::floats<E>(padded * value_columns) +
                Scratch::floats<float>(kTile * kScoreStride) +
                Scratch::floats<float>(kTile * value_columns) + 2 * Scratch::floats<float>(kTile);
  if (!std::is_same_v<E, float>) sum += Scratch::floats<E>(kTile * kScoreStride);
  if (!std::is_same_v<E, T>) {
    sum += Scratch::floats<float>(s.queries * s.d) + Scratch::floats<float>(s.keys * s.d) +
           Scratch::floats<float>(s.keys * s.value_d);
  }
  return sum;
}

template <class T, class E>
int64_t backward_floats(const Shape& s) {
  const int64_t columns = round_up(s.d, kTile);
  const int64_t value_columns = round_up(s.value_d, kTile);
  int64_t sum = Scratch::floats<E>(round_up(s.keys, kTile) * columns) +
                Scratch::floats<E>(kTile * round_up(s.d, 2)) +
                Scratch::floats<E>(kTile * round_up(s.value_d, 2)) +
                Scratch::floats<E>(kTile * columns) + Scratch::floats<E>(kTile * value_columns) +
                2 * Scratch::floats<float>(kTile * kTile) + Scratch::floats<E>(kTile * kTile) +
                Scratch::floats<float>(kTile);
  if (!std::is_same_v<E, float>) sum += 2 * Scratch::floats<E>(kTile * kTile);
  if (!std::is_same_v<T, float>) {
    sum += Scratch::floats<float>(kTile * s.d) + Scratch::floats<float>(s.keys * s.d) +
           Scratch::floats<float>(s.keys * s.value_d);
  }
  if (!std::is_same_v<E, T>) {
    for (const int64_t rows : {s.keys, s.queries})
      sum += Scratch::floats<float>(rows * s.d) + Scratch::floats<float>(rows * s.value_d);
  }
  return sum;
}

/// Columns [0, d) of B[rows, d] as panels of kTile columns, each [padded, kTile], zero from `rows` on.
template <class E>
void pack_columns(const Slice<E>& b, int64_t rows, int64_t padded, int64_t d, E* panels) {
  for (int64_t c = 0; c < d; c += kTile) {
    pack_panel(b.data + c, b.stride, false, rows, padded, std::min(kTile, d - c),
               panels + c * padded);
  }
}

/// C[rows, d] (= or +=) A[rows, inner] times rows [first, first + inner) of such panels.
template <class E>
void multiply_columns(int64_t rows, int64_t inner, const E* a, int64_t lda, const E* panels,
                      int64_t padded, int64_t first, int64_t d, bool add, float* c, int64_t ldc) {
  for (int64_t column = 0; column < d; column += kTile) {
    multiply_panel(rows, std::min(kTile, d - column), inner, a, lda,
                   panels + column * padded + first * kTile, add, c + column, ldc);
  }
}

/// Products' inner dimension of head_dim: bfloat16 goes in pairs.
template <class E>
int64_t inner_of(int64_t d) {
  return std::is_same_v<E, float> ? d : round_up(d, 2);
}

/// T: of the tensors. E: what the products multiply, T or float.
template <class T, class E>
void forward_typed(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                   const AttentionOptions& options, const at::Tensor& out,
                   const at::Tensor& logsumexp) {
  const auto qv = view_of<T>(q, "q");
  const auto kv = view_of<T>(k, "k");
  const auto vv = view_of<T>(v, "v");
  const auto ov = view_of<T>(out, "out");
  const int64_t heads = q.size(2);
  const int64_t group = heads / k.size(2);
  const int64_t queries = q.size(1);
  const int64_t past = options.past >= 0 ? options.past : k.size(1) - queries;
  const Shape shape{queries, k.size(1), q.size(3), v.size(3)};
  const int64_t value_columns = round_up(shape.value_d, kTile);
  const int64_t inner = inner_of<E>(shape.d);
  const int64_t window = options.window > 0 ? options.window : past + queries;
  const cpu::ScoreMap map{static_cast<float>(options.scale), static_cast<float>(options.softcap)};
  const float* sinks = options.sinks.defined() ? options.sinks.const_data_ptr<float>() : nullptr;
  float* lse = logsumexp.defined() ? logsumexp.data_ptr<float>() : nullptr;

  const auto body = [&](const Task& task, float* memory) {
    Scratch scratch(memory);
    const int64_t length = task.length;
    const int64_t keys = options.segments == nullptr ? shape.keys : length;
    const int64_t padded = round_up(keys, kTile);
    const auto qs = slice_of<E>(qv, task.batch, task.start, task.head, length, shape.d, scratch);
    const auto ks =
        slice_of<E>(kv, task.batch, task.start, task.head / group, keys, shape.d, scratch);
    const auto vs =
        slice_of<E>(vv, task.batch, task.start, task.head / group, keys, shape.value_d, scratch);
    E* key_panels = scratch.take<E>(padded * inner);
    E* value_panels = scratch.take<E>(padded * value_columns);
    float* scores = scratch.take<float>(kTile * kScoreStride);
    float* sums_out = scratch.take<float>(kTile * value_columns);
    float* maxima = scratch.take<float>(kTile);
    float* sums = scratch.take<float>(kTile);
    E* probabilities;
    if constexpr (std::is_same_v<E, float>) {
      probabilities = scores;
    } else {
      probabilities = scratch.take<E>(kTile * kScoreStride);
    }
    for (int64_t k0 = 0; k0 < keys; k0 += kTile) {
      pack_panel(ks.row(k0), ks.stride, true, shape.d, inner, std::min(kTile, keys - k0),
                 key_panels + k0 * inner);
    }
    pack_columns(vs, keys, padded, shape.value_d, value_panels);

    for (int64_t q0 = 0; q0 < length; q0 += kTile) {
      const int64_t rows = std::min(kTile, length - q0);
      const int64_t visible = std::min(q0 + rows + past, keys);
      const float sink =
          sinks == nullptr ? -std::numeric_limits<float>::infinity() : sinks[task.head];
      std::fill(maxima, maxima + rows, sink);
      std::fill(sums, sums + rows, sinks == nullptr ? 0.0f : 1.0f);
      const int64_t first = std::max<int64_t>(0, q0 + past + 1 - window) / kTile * kTile;
      for (int64_t k0 = first; k0 < visible;) {
        // Blocks end at multiples of kKeyBlock, wherever the window begins.
        const int64_t end = std::min((k0 / kKeyBlock + 1) * kKeyBlock, round_up(visible, kTile));
        const int64_t cols = end - k0;
        for (int64_t c = 0; c < cols; c += kTile) {
          multiply_panel(rows, kTile, inner, qs.row(q0), qs.stride, key_panels + (k0 + c) * inner,
                         false, scores + c, kScoreStride);
        }
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t at = q0 + r + past;  // the query's own key
          const auto begin =
              static_cast<size_t>(std::clamp<int64_t>(at + 1 - window - k0, 0, cols));
          const auto valid =
              static_cast<size_t>(std::clamp<int64_t>(std::min(at + 1, keys) - k0, 0, cols));
          const float correction =
              cpu::softmax_row(scores + r * kScoreStride, begin, valid, static_cast<size_t>(cols),
                               map, maxima + r, sums + r);
          if (k0 > first && correction != 1.0f)
            cpu::scale_row(sums_out + r * value_columns, static_cast<size_t>(shape.value_d),
                           correction);
        }
        if constexpr (!std::is_same_v<E, float>)
          cpu::rows_to_bf16(scores, kScoreStride, probabilities, kScoreStride, rows, cols);
        multiply_columns(rows, cols, probabilities, kScoreStride, value_panels, padded, k0,
                         shape.value_d, k0 > first, sums_out, value_columns);
        k0 = end;
      }
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t t = task.start + q0 + r;
        cpu::scale_into(sums_out + r * value_columns, static_cast<size_t>(shape.value_d),
                        1.0f / sums[r], ov.at(task.batch, t, task.head));
        if (lse != nullptr)
          lse[(task.batch * heads + task.head) * queries + t] = maxima[r] + std::log(sums[r]);
      }
    }
  };
  run_tasks(make_tasks(q.size(0), heads, queries, options.segments), forward_floats<T, E>(shape),
            body);
}

template <class T, class E>
void backward_typed(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k,
                    const at::Tensor& v, const at::Tensor& out, const at::Tensor& logsumexp,
                    const AttentionOptions& options, const at::Tensor& dq, const at::Tensor& dk,
                    const at::Tensor& dv) {
  const auto dov = view_of<T>(dout, "dout");
  const auto qv = view_of<T>(q, "q");
  const auto kv = view_of<T>(k, "k");
  const auto vv = view_of<T>(v, "v");
  const auto ov = view_of<T>(out, "out");
  const auto dqv = view_of<T>(dq, "dq");
  const auto dkv = view_of<T>(dk, "dk");
  const auto dvv = view_of<T>(dv, "dv");
  const int64_t heads = q.size(2);
  const int64_t kv_heads = k.size(2);
  const int64_t group = heads / kv_heads;
  const int64_t queries = q.size(1);
  const int64_t past = options.past >= 0 ? options.past : k.size(1) - queries;
  const Shape shape{queries, k.size(1), q.size(3), v.size(3)};
  const int64_t d = shape.d;
  const int64_t value_d = shape.value_d;
  const int64_t inner = inner_of<E>(d);
  const int64_t value_inner = inner_of<E>(value_d);
  const int64_t window = options.window > 0 ? options.window : past + queries;
  const cpu::ScoreMap map{static_cast<float>(options.scale), static_cast<float>(options.softcap)};
  const float* lse = logsumexp.const_data_ptr<float>();
  constexpr bool kLow = !std::is_same_v<T, float>;  // gradients gather in float32 scratch

  // One task owns a key-value head: its gradients gather over the group's query heads in order.
  const auto body = [&](const Task& task, float* memory) {
    Scratch scratch(memory);
    const int64_t length = task.length;
    const int64_t all_keys = options.segments == nullptr ? shape.keys : length;
    const int64_t padded = round_up(all_keys, kTile);
    const auto ks = slice_of<E>(kv, task.batch, task.start, task.head, all_keys, d, scratch);
    const auto vs = slice_of<E>(vv, task.batch, task.start, task.head, all_keys, value_d, scratch);
    E* key_columns = scratch.take<E>(padded * round_up(d, kTile));
    pack_columns(ks, all_keys, padded, d, key_columns);
    E* query_panel = scratch.take<E>(kTile * inner);
    E* dout_panel = scratch.take<E>(kTile * value_inner);
    E* query_columns = scratch.take<E>(kTile * round_up(d, kTile));
    E* dout_columns = scratch.take<E>(kTile * round_up(value_d, kTile));
    float* scores = scratch.take<float>(kTile * kTile);
    float* grads = scratch.take<float>(kTile * kTile);
    E* turned = scratch.take<E>(kTile * kTile);
    float* deltas = scratch.take<float>(kTile);
    E* p;
    E* ds;
    if constexpr (std::is_same_v<E, float>) {
      p = scores;
      ds = grads;
    } else {
      p = scratch.take<E>(kTile * kTile);
      ds = scratch.take<E>(kTile * kTile);
    }
    float* dq_block = nullptr;
    float* dk_out;
    float* dv_out;
    int64_t dk_stride = d;
    int64_t dv_stride = value_d;
    if constexpr (kLow) {
      dq_block = scratch.take<float>(kTile * d);
      dk_out = scratch.take<float>(all_keys * d);
      dv_out = scratch.take<float>(all_keys * value_d);
    } else {
      dk_out = dkv.at(task.batch, task.start, task.head);
      dv_out = dvv.at(task.batch, task.start, task.head);
      dk_stride = dkv.time_stride;
      dv_stride = dvv.time_stride;
    }
    // What no query sees: tiles before the first one's window, and behind the last one.
    const int64_t first_seen = std::max<int64_t>(0, past + 1 - window) / kTile * kTile;
    for (int64_t t = 0; t < all_keys; ++t) {
      if (t == first_seen) t = round_up(length + past, kTile);
      if (t >= all_keys) break;
      std::fill_n(dk_out + t * dk_stride, d, 0.0f);
      std::fill_n(dv_out + t * dv_stride, value_d, 0.0f);
    }
    for (int64_t g = 0; g < group; ++g) {
      const int64_t head = task.head * group + g;
      Scratch rest = scratch;
      const auto qs = slice_of<E>(qv, task.batch, task.start, head, length, d, rest);
      const auto dos = slice_of<E>(dov, task.batch, task.start, head, length, value_d, rest);
      for (int64_t q0 = 0; q0 < length; q0 += kTile) {
        const int64_t rows = std::min(kTile, length - q0);
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t t = task.start + q0 + r;
          deltas[r] = cpu::dot(dov.at(task.batch, t, head), ov.at(task.batch, t, head),
                               static_cast<size_t>(value_d));
        }
        pack_panel(qs.row(q0), qs.stride, true, d, inner, rows, query_panel);
        pack_panel(dos.row(q0), dos.stride, true, value_d, value_inner, rows, dout_panel);
        pack_columns(Slice<E>{qs.row(q0), qs.stride}, rows, kTile, d, query_columns);
        pack_columns(Slice<E>{dos.row(q0), dos.stride}, rows, kTile, value_d, dout_columns);
        float* dq_out = dq_block;
        int64_t dq_stride = d;
        if constexpr (!kLow) {
          dq_out = dqv.at(task.batch, task.start + q0, head);
          dq_stride = dqv.time_stride;
        }
        const int64_t first = std::max<int64_t>(0, q0 + past + 1 - window) / kTile * kTile;
        // Tiles that blocks before this one have met.
        const int64_t met = q0 == 0 ? 0 : round_up(q0 + past, kTile);
        for (int64_t k0 = first; k0 < std::min(q0 + past + rows, all_keys); k0 += kTile) {
          const int64_t keys = std::min(kTile, all_keys - k0);
          multiply_panel(keys, kTile, inner, ks.row(k0), ks.stride, query_panel, false, scores,
                         kTile);
          multiply_panel(keys, kTile, value_inner, vs.row(k0), vs.stride, dout_panel, false, grads,
                         kTile);
          cpu::backward_tile(
              cpu::BackwardTile<E>{scores, grads,
                                   lse + (task.batch * heads + head) * queries + task.start + q0,
                                   deltas, keys, rows, q0 + past - k0, window, p, ds},
              map);
          const bool add = g > 0 || k0 < met;
          multiply_columns(keys, kTile, p, kTile, dout_columns, kTile, 0, value_d, add,
                           dv_out + k0 * dv_stride, dv_stride);
          multiply_columns(keys, kTile, ds, kTile, query_columns, kTile, 0, d, add,
                           dk_out + k0 * dk_stride, dk_stride);
          // Keys past the document's end: zero times the zeros of the packed columns.
          std::fill(ds + keys * kTile, ds + kTile * kTile, E(0.0f));
          cpu::transpose(ds, kTile, kTile, kTile, turned, kTile);
          multiply_columns(rows, kTile, turned, kTile, key_columns, padded, k0, d, k0 > first,
                           dq_out, dq_stride);
        }
        if constexpr (kLow) {
          cpu::rows_to_bf16(dq_block, d, dqv.at(task.batch, task.start + q0, head), dqv.time_stride,
                            rows, d);
        }
      }
    }
    if constexpr (kLow) {
      cpu::rows_to_bf16(dk_out, d, dkv.at(task.batch, task.start, task.head), dkv.time_stride,
                        all_keys, d);
      cpu::rows_to_bf16(dv_out, value_d, dvv.at(task.batch, task.start, task.head), dvv.time_stride,
                        all_keys, value_d);
    }
  };
  run_tasks(make_tasks(q.size(0), kv_heads, queries, options.segments),
            backward_floats<T, E>(shape), body);
}

/// d_sinks[h] = -sum over queries of exp(sink - lse) delta, in order.
template <class T>
void sink_gradient(const at::Tensor& dout, const at::Tensor& out, const at::Tensor& logsumexp,
                   const at::Tensor& sinks, const at::Tensor& d_sinks) {
  const auto dov = view_of<T>(dout, "dout");
  const auto ov = view_of<T>(out, "out");
  const float* lse = logsumexp.const_data_ptr<float>();
  const float* sink = sinks.const_data_ptr<float>();
  float* result = d_sinks.data_ptr<float>();
  const int64_t heads = out.size(2);
  const int64_t queries = out.size(1);
  at::parallel_for(0, heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t h = begin; h < end; ++h) {
      double sum = 0.0;
      for (int64_t b = 0; b < out.size(0); ++b) {
        for (int64_t t = 0; t < queries; ++t) {
          const float delta =
              cpu::dot(dov.at(b, t, h), ov.at(b, t, h), static_cast<size_t>(out.size(3)));
          sum += std::exp(static_cast<double>(sink[h]) -
                          static_cast<double>(lse[(b * heads + h) * queries + t])) *
                 static_cast<double>(delta);
        }
      }
      result[h] = static_cast<float>(-sum);
    }
  });
}

void check_shapes(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                  const AttentionOptions& options) {
  TRIREME_CHECK(q.dim() == 4 && k.dim() == 4 && v.dim() == 4, "q, k, v must be [B, T, H, D]");
  TRIREME_CHECK(q.size(0) == k.size(0) && q.size(3) == k.size(3) &&
                    (q.size(1) <= k.size(1) || options.past >= 0) && k.size(2) > 0 &&
                    q.size(2) % k.size(2) == 0 && v.size(0) == k.size(0) &&
                    v.size(1) == k.size(1) && v.size(2) == k.size(2),
                "q [{}, {}, {}, {}] does not fit k [{}, {}, {}, {}] and v [{}, {}, {}, {}]",
                q.size(0), q.size(1), q.size(2), q.size(3), k.size(0), k.size(1), k.size(2),
                k.size(3), v.size(0), v.size(1), v.size(2), v.size(3));
  TRIREME_CHECK(options.scale > 0.0 && options.softcap >= 0.0 && options.window >= 0,
                "attention with scale {}, softcap {}, window {}", options.scale, options.softcap,
                options.window);
  if (options.sinks.defined()) {
    TRIREME_CHECK(options.sinks.is_contiguous() && options.sinks.numel() == q.size(2) &&
                      options.sinks.scalar_type() == at::kFloat,
                  "sinks must be {} contiguous float32 values", q.size(2));
  }
  TRIREME_CHECK(options.past < 0 || options.window == 0 ||
                    options.past + q.size(1) - options.window < k.size(1),
                "a query at place {} has no key among {} in its window of {}",
                options.past + q.size(1) - 1, k.size(1), options.window);
  if (options.segments == nullptr) return;
  TRIREME_CHECK(q.size(1) == k.size(1) && options.past < 0,
                "documents need as many keys as queries");
  TRIREME_CHECK(static_cast<int64_t>(options.segments->size()) == q.size(0),
                "documents of {} rows for a batch of {}", options.segments->size(), q.size(0));
}

void check_out(const at::Tensor& out, const at::Tensor& q, const at::Tensor& v, const char* what) {
  TRIREME_CHECK(out.dim() == 4 && out.size(0) == q.size(0) && out.size(1) == q.size(1) &&
                    out.size(2) == q.size(2) && out.size(3) == v.size(3),
                "{} must be [B, Tq, Hq, Dv]", what);
}

void check_logsumexp(const at::Tensor& logsumexp, const at::Tensor& q) {
  TRIREME_CHECK(logsumexp.is_contiguous() &&
                    logsumexp.numel() == q.size(0) * q.size(1) * q.size(2) &&
                    logsumexp.scalar_type() == at::kFloat,
                "logsumexp must be a contiguous float32 [B, Hq, Tq]");
}

/// Whether bfloat16 is multiplied as it is. Rows of an odd number of elements would be read past their end.
bool multiplies_bf16(int64_t d, int64_t value_d) {
  return cpu::product_choice().bfloat16 == cpu::Bf16Product::kPanels && d % 2 == 0 &&
         value_d % 2 == 0;
}

}  // namespace

namespace cpu {

void attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
               const AttentionOptions& options, at::Tensor& out, at::Tensor logsumexp) {
  check_shapes(q, k, v, options);
  check_out(out, q, v, "out");
  if (logsumexp.defined()) check_logsumexp(logsumexp, q);
  if (q.numel() == 0) return;
  if (q.scalar_type() == at::kFloat)
    return forward_typed<float, float>(q, k, v, options, out, logsumexp);
  if (multiplies_bf16(q.size(3), v.size(3)))
    return forward_typed<at::BFloat16, at::BFloat16>(q, k, v, options, out, logsumexp);
  forward_typed<at::BFloat16, float>(q, k, v, options, out, logsumexp);
}

void attention_backward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k,
                        const at::Tensor& v, const at::Tensor& out, const at::Tensor& logsumexp,
                        const AttentionOptions& options, at::Tensor& dq, at::Tensor& dk,
                        at::Tensor& dv, at::Tensor d_sinks) {
  check_shapes(q, k, v, options);
  check_out(dout, q, v, "dout");
  check_out(out, q, v, "out");
  TRIREME_CHECK(dq.sizes() == q.sizes() && dk.sizes() == k.sizes() && dv.sizes() == v.sizes(),
                "gradients must have the shapes of what they belong to");
  check_logsumexp(logsumexp, q);
  TRIREME_CHECK(d_sinks.defined() == options.sinks.defined(), "d_sinks goes with sinks");
  const bool low = q.scalar_type() != at::kFloat;
  if (d_sinks.defined()) {
    TRIREME_CHECK(d_sinks.is_contiguous() && d_sinks.sizes() == options.sinks.sizes() &&
                      d_sinks.scalar_type() == at::kFloat,
                  "d_sinks must be like sinks");
    low ? sink_gradient<at::BFloat16>(dout, out, logsumexp, options.sinks, d_sinks)
        : sink_gradient<float>(dout, out, logsumexp, options.sinks, d_sinks);
  }
  if (q.numel() == 0) return;
  if (!low) return backward_typed<float, float>(dout, q, k, v, out, logsumexp, options, dq, dk, dv);
  if (multiplies_bf16(q.size(3), v.size(3)))
    return backward_typed<at::BFloat16, at::BFloat16>(dout, q, k, v, out, logsumexp, options, dq,
                                                      dk, dv);
  backward_typed<at::BFloat16, float>(dout, q, k, v, out, logsumexp, options, dq, dk, dv);
}

}  // namespace cpu

int64_t attention_workspace_bytes(const AttentionShape& s, at::ScalarType dtype, bool backward,
                                  int threads) {
  const Shape shape{s.seq_len, s.seq_len, s.head_dim, s.value_dim};
  int64_t floats;
  if (dtype == at::kFloat) {
    floats = backward ? backward_floats<float, float>(shape) : forward_floats<float, float>(shape);
  } else if (multiplies_bf16(s.head_dim, s.value_dim)) {
    floats = backward ? backward_floats<at::BFloat16, at::BFloat16>(shape)
                      : forward_floats<at::BFloat16, at::BFloat16>(shape);
  } else {
    floats = backward ? backward_floats<at::BFloat16, float>(shape)
                      : forward_floats<at::BFloat16, float>(shape);
  }
  return 4 * floats * std::min<int64_t>(threads, s.batch * (backward ? s.kv_heads : s.heads));
}

}  // namespace trireme::kernels
