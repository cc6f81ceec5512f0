// Blocked causal attention, forward and backward (Dao et al. 2022), on strided views of a fused qkv
// matrix.
//
// A task is one head of one document: a plain causal problem, so documents cost no masks and no
// wasted products. Tasks are independent and write disjoint places: which thread takes which does
// not matter to the result. The products inside a block run on the task's own thread.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "trireme/kernels/cpu/attention.cpp"
#include "trireme/kernels/cpu/targets.h"
// clang-format off
#include "hwy/foreach_target.h"
#include "trireme/kernels/cpu/simd-inl.h"
// clang-format on

#include <cmath>

HWY_BEFORE_NAMESPACE();
namespace trireme::kernels::HWY_NAMESPACE {

HWY_INLINE float max_of(const float* x, size_t n, float start) {
  const FloatTag d;
  const size_t lanes = hn::Lanes(d);
  auto best = hn::Set(d, start);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) best = hn::Max(best, hn::LoadU(d, x + i));
  float result = hn::GetLane(hn::MaxOfLanes(d, best));
  for (; i < n; ++i) result = x[i] > result ? x[i] : result;
  return result;
}

/// s[0, valid) becomes exp(scale * s - new maximum), the rest of [0, n) zero. Updates the running
/// maximum (of scaled scores) and sum of the row; returns what earlier blocks' results must be
/// multiplied with.
float softmax_row(float* s, size_t valid, size_t n, float scale, float* maximum, float* sum) {
  if (valid == 0) {
    for_lanes(n, [&](auto tag, size_t i) HWY_ATTR { hn::StoreU(hn::Zero(tag), tag, s + i); });
    return 1.0f;
  }
  const float old = *maximum;
  const float raw = max_of(s, valid, s[0]) * scale;
  const float now = raw > old ? raw : old;
  const float part = sum_lanes(valid, [&](auto tag, size_t i) HWY_ATTR {
    const auto e = shifted_exp(tag, hn::LoadU(tag, s + i), scale, now);
    hn::StoreU(e, tag, s + i);
    return e;
  });
  for_lanes(n - valid,
            [&](auto tag, size_t i) HWY_ATTR { hn::StoreU(hn::Zero(tag), tag, s + valid + i); });
  const float correction = std::exp(old - now);
  *maximum = now;
  *sum = *sum * correction + part;
  return correction;
}

void scale_row(float* x, size_t n, float factor) {
  for_lanes(n, [&](auto d, size_t i) HWY_ATTR {
    hn::StoreU(hn::Mul(hn::LoadU(d, x + i), hn::Set(d, factor)), d, x + i);
  });
}

template <class T>
void scale_into(const float* x, size_t n, float factor, T* out) {
  for_lanes(n, [&](auto d, size_t i) HWY_ATTR {
    store(d, hn::Mul(hn::LoadU(d, x + i), hn::Set(d, factor)), out + i);
  });
}
void scale_into_f32(const float* x, size_t n, float factor, float* out) {
  scale_into(x, n, factor, out);
}
void scale_into_bf16(const float* x, size_t n, float factor, at::BFloat16* out) {
  scale_into(x, n, factor, out);
}

/// s becomes the probabilities p = exp(scale * s - lse), dp becomes scale * p * (dp - delta); zero
/// past `valid`.
void backward_row(float* s, float* dp, size_t valid, size_t n, float scale, float lse,
                  float delta) {
  for_lanes(valid, [&](auto d, size_t i) HWY_ATTR {
    const auto p = shifted_exp(d, hn::LoadU(d, s + i), scale, lse);
    const auto ds =
        hn::Mul(hn::Mul(p, hn::Set(d, scale)), hn::Sub(hn::LoadU(d, dp + i), hn::Set(d, delta)));
    hn::StoreU(p, d, s + i);
    hn::StoreU(ds, d, dp + i);
  });
  for_lanes(n - valid, [&](auto d, size_t i) HWY_ATTR {
    hn::StoreU(hn::Zero(d), d, s + valid + i);
    hn::StoreU(hn::Zero(d), d, dp + valid + i);
  });
}

template <class T>
float dot(const T* a, const T* b, size_t n) {
  return sum_lanes(
      n, [&](auto d, size_t i) HWY_ATTR { return hn::Mul(load(d, a + i), load(d, b + i)); });
}
float dot_f32(const float* a, const float* b, size_t n) {
  return dot(a, b, n);
}
float dot_bf16(const at::BFloat16* a, const at::BFloat16* b, size_t n) {
  return dot(a, b, n);
}

}  // namespace trireme::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <type_traits>
#include <vector>

#include "trireme/base/error.h"
#include "trireme/kernels/cpu/dispatch.h"
#include "trireme/kernels/cpu/flat.h"
#include "trireme/kernels/cpu/mkl_gemm.h"
#include "trireme/kernels/ops.h"

namespace trireme::kernels {
HWY_EXPORT(softmax_row);
HWY_EXPORT(scale_row);
HWY_EXPORT(scale_into_f32);
HWY_EXPORT(scale_into_bf16);
HWY_EXPORT(backward_row);
HWY_EXPORT(dot_f32);
HWY_EXPORT(dot_bf16);

namespace {

using cpu::serial_sgemm;

/// Queries of a block: small blocks waste less of the triangle, large ones feed the products
/// better.
int64_t query_block(int64_t queries) {
  return queries <= 512 ? 64 : 128;
}
constexpr int64_t kKeyBlock = 1024;

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

/// A head's [rows, D] slice in float32: where it lies, or widened into scratch.
struct Slice {
  const float* data;
  int64_t stride;
};
Slice slice_of(const View<float>& view, int64_t b, int64_t t, int64_t h, int64_t /*rows*/,
               int64_t /*d*/, float*& /*s*/) {
  return {view.at(b, t, h), view.time_stride};
}
Slice slice_of(const View<at::BFloat16>& view, int64_t b, int64_t t, int64_t h, int64_t rows,
               int64_t d, float*& scratch) {
  float* to = scratch;
  scratch += rows * d;
  cpu::rows_to_f32(view.at(b, t, h), view.time_stride, to, d, rows, d);
  return {to, d};
}

int64_t forward_floats(int64_t queries, int64_t keys, int64_t d, bool widened) {
  const int64_t block = query_block(queries);
  return block * std::min(keys, kKeyBlock) + block * d + 2 * block +
         (widened ? (queries + 2 * keys) * d : 0);
}

int64_t backward_floats(int64_t queries, int64_t d, bool widened) {
  const int64_t block = query_block(queries);
  return 2 * block * std::min(queries, kKeyBlock) + block + (widened ? 7 * queries * d : 0);
}

auto scale_into_for(float) {
  return TRIREME_KERNEL(scale_into_f32);
}
auto scale_into_for(at::BFloat16) {
  return TRIREME_KERNEL(scale_into_bf16);
}
auto dot_for(float) {
  return TRIREME_KERNEL(dot_f32);
}
auto dot_for(at::BFloat16) {
  return TRIREME_KERNEL(dot_bf16);
}

template <class T>
void forward_typed(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale,
                   const Segments* segments, const at::Tensor& out, const at::Tensor& logsumexp) {
  const auto qv = view_of<T>(q, "q");
  const auto kv = view_of<T>(k, "k");
  const auto vv = view_of<T>(v, "v");
  const auto ov = view_of<T>(out, "out");
  const int64_t heads = q.size(2);
  const int64_t group = heads / k.size(2);
  const int64_t queries = q.size(1);
  const int64_t past = k.size(1) - queries;
  const int64_t d = q.size(3);
  const auto softmax_row_kernel = TRIREME_KERNEL(softmax_row);
  const auto scale_row_kernel = TRIREME_KERNEL(scale_row);
  const auto store_row = scale_into_for(T{});
  const auto scale32 = static_cast<float>(scale);
  float* lse = logsumexp.defined() ? logsumexp.data_ptr<float>() : nullptr;
  constexpr bool kWidened = !std::is_same_v<T, float>;

  run_tasks(
      make_tasks(q.size(0), heads, queries, segments),
      forward_floats(queries, queries + past, d, kWidened), [&](const Task& task, float* scratch) {
        const int64_t length = task.length;
        const int64_t keys = length + past;
        const int64_t block = query_block(queries);
        float* scores = scratch;
        float* sums_out = scores + block * std::min(queries + past, kKeyBlock);
        float* maxima = sums_out + block * d;
        float* sums = maxima + block;
        float* rest = sums + block;
        const Slice qs = slice_of(qv, task.batch, task.start, task.head, length, d, rest);
        const Slice ks = slice_of(kv, task.batch, task.start, task.head / group, keys, d, rest);
        const Slice vs = slice_of(vv, task.batch, task.start, task.head / group, keys, d, rest);
        for (int64_t q0 = 0; q0 < length; q0 += block) {
          const int64_t rows = std::min(block, length - q0);
          const int64_t visible = q0 + rows + past;
          std::fill(maxima, maxima + rows, -std::numeric_limits<float>::infinity());
          std::fill(sums, sums + rows, 0.0f);
          for (int64_t k0 = 0; k0 < visible; k0 += kKeyBlock) {
            const int64_t cols = std::min(kKeyBlock, visible - k0);
            serial_sgemm(false, true, rows, cols, d, qs.data + q0 * qs.stride, qs.stride,
                         ks.data + k0 * ks.stride, ks.stride, false, scores, cols);
            for (int64_t r = 0; r < rows; ++r) {
              const int64_t valid = std::clamp<int64_t>(q0 + r + past + 1 - k0, 0, cols);
              const float correction =
                  softmax_row_kernel(scores + r * cols, static_cast<size_t>(valid),
                                     static_cast<size_t>(cols), scale32, maxima + r, sums + r);
              if (k0 > 0 && correction != 1.0f)
                scale_row_kernel(sums_out + r * d, static_cast<size_t>(d), correction);
            }
            serial_sgemm(false, false, rows, d, cols, scores, cols, vs.data + k0 * vs.stride,
                         vs.stride, k0 > 0, sums_out, d);
          }
          for (int64_t r = 0; r < rows; ++r) {
            const int64_t t = task.start + q0 + r;
            store_row(sums_out + r * d, static_cast<size_t>(d), 1.0f / sums[r],
                      ov.at(task.batch, t, task.head));
            if (lse != nullptr)
              lse[(task.batch * heads + task.head) * queries + t] = maxima[r] + std::log(sums[r]);
          }
        }
      });
}

template <class T>
void backward_typed(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k,
                    const at::Tensor& v, const at::Tensor& out, const at::Tensor& logsumexp,
                    double scale, const Segments* segments, const at::Tensor& dq,
                    const at::Tensor& dk, const at::Tensor& dv) {
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
  const int64_t d = q.size(3);
  const auto backward_row_kernel = TRIREME_KERNEL(backward_row);
  const auto dot_kernel = dot_for(T{});
  const auto scale32 = static_cast<float>(scale);
  const float* lse = logsumexp.const_data_ptr<float>();
  constexpr bool kWidened = !std::is_same_v<T, float>;

  // One task owns a key-value head: its gradients gather over the group's query heads in order.
  run_tasks(
      make_tasks(q.size(0), kv_heads, queries, segments), backward_floats(queries, d, kWidened),
      [&](const Task& task, float* scratch) {
        const int64_t length = task.length;
        const int64_t block = query_block(queries);
        float* scores = scratch;
        float* grads = scores + block * std::min(queries, kKeyBlock);
        float* deltas = grads + block * std::min(queries, kKeyBlock);
        float* rest = deltas + block;
        const Slice ks = slice_of(kv, task.batch, task.start, task.head, length, d, rest);
        const Slice vs = slice_of(vv, task.batch, task.start, task.head, length, d, rest);
        float* dk_out;
        float* dv_out;
        float* dq_scratch = nullptr;
        int64_t dkv_stride_k = d;
        int64_t dkv_stride_v = d;
        if constexpr (kWidened) {
          dk_out = rest;
          dv_out = rest + length * d;
          dq_scratch = rest + 2 * length * d;
          rest += 3 * length * d;
        } else {
          dk_out = dkv.at(task.batch, task.start, task.head);
          dv_out = dvv.at(task.batch, task.start, task.head);
          dkv_stride_k = dkv.time_stride;
          dkv_stride_v = dvv.time_stride;
        }
        for (int64_t g = 0; g < group; ++g) {
          const int64_t head = task.head * group + g;
          float* head_rest = rest;
          const Slice qs = slice_of(qv, task.batch, task.start, head, length, d, head_rest);
          const Slice dos = slice_of(dov, task.batch, task.start, head, length, d, head_rest);
          float* dq_out;
          int64_t dq_stride = d;
          if constexpr (kWidened) {
            dq_out = dq_scratch;
          } else {
            dq_out = dqv.at(task.batch, task.start, head);
            dq_stride = dqv.time_stride;
          }
          // The last block of queries sees every key: it goes first and overwrites, the others add.
          const int64_t last = (length - 1) / block * block;
          for (int64_t q0 = last; q0 >= 0; q0 -= block) {
            const int64_t rows = std::min(block, length - q0);
            const int64_t visible = q0 + rows;
            const bool add = g > 0 || q0 < last;
            for (int64_t r = 0; r < rows; ++r) {
              const int64_t t = task.start + q0 + r;
              deltas[r] = dot_kernel(dov.at(task.batch, t, head), ov.at(task.batch, t, head),
                                     static_cast<size_t>(d));
            }
            for (int64_t k0 = 0; k0 < visible; k0 += kKeyBlock) {
              const int64_t cols = std::min(kKeyBlock, visible - k0);
              serial_sgemm(false, true, rows, cols, d, qs.data + q0 * qs.stride, qs.stride,
                           ks.data + k0 * ks.stride, ks.stride, false, scores, cols);
              serial_sgemm(false, true, rows, cols, d, dos.data + q0 * dos.stride, dos.stride,
                           vs.data + k0 * vs.stride, vs.stride, false, grads, cols);
              for (int64_t r = 0; r < rows; ++r) {
                const int64_t valid = std::clamp<int64_t>(q0 + r + 1 - k0, 0, cols);
                const float row_lse =
                    lse[(task.batch * heads + head) * queries + task.start + q0 + r];
                backward_row_kernel(scores + r * cols, grads + r * cols, static_cast<size_t>(valid),
                                    static_cast<size_t>(cols), scale32, row_lse, deltas[r]);
              }
              serial_sgemm(true, false, cols, d, rows, scores, cols, dos.data + q0 * dos.stride,
                           dos.stride, add, dv_out + k0 * dkv_stride_v, dkv_stride_v);
              serial_sgemm(true, false, cols, d, rows, grads, cols, qs.data + q0 * qs.stride,
                           qs.stride, add, dk_out + k0 * dkv_stride_k, dkv_stride_k);
              serial_sgemm(false, false, rows, d, cols, grads, cols, ks.data + k0 * ks.stride,
                           ks.stride, k0 > 0, dq_out + q0 * dq_stride, dq_stride);
            }
          }
          if constexpr (kWidened) {
            cpu::rows_to_bf16(dq_scratch, d, dqv.at(task.batch, task.start, head), dqv.time_stride,
                              length, d);
          }
        }
        if constexpr (kWidened) {
          cpu::rows_to_bf16(dk_out, d, dkv.at(task.batch, task.start, task.head), dkv.time_stride,
                            length, d);
          cpu::rows_to_bf16(dv_out, d, dvv.at(task.batch, task.start, task.head), dvv.time_stride,
                            length, d);
        }
      });
}

void check_shapes(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                  const Segments* segments) {
  TRIREME_CHECK(q.dim() == 4 && k.dim() == 4 && v.sizes() == k.sizes(),
                "q, k, v must be [B, T, H, D]");
  TRIREME_CHECK(q.size(0) == k.size(0) && q.size(3) == k.size(3) && q.size(1) <= k.size(1) &&
                    k.size(2) > 0 && q.size(2) % k.size(2) == 0,
                "q [{}, {}, {}, {}] does not fit k [{}, {}, {}, {}]", q.size(0), q.size(1),
                q.size(2), q.size(3), k.size(0), k.size(1), k.size(2), k.size(3));
  if (segments == nullptr) return;
  TRIREME_CHECK(q.size(1) == k.size(1), "documents need as many keys as queries");
  TRIREME_CHECK(static_cast<int64_t>(segments->size()) == q.size(0),
                "documents of {} rows for a batch of {}", segments->size(), q.size(0));
}

void check_logsumexp(const at::Tensor& logsumexp, const at::Tensor& q) {
  TRIREME_CHECK(logsumexp.is_contiguous() &&
                    logsumexp.numel() == q.size(0) * q.size(1) * q.size(2) &&
                    logsumexp.scalar_type() == at::kFloat,
                "logsumexp must be a contiguous float32 [B, Hq, Tq]");
}

}  // namespace

void attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale,
               const Segments* segments, at::Tensor& out, at::Tensor logsumexp) {
  check_shapes(q, k, v, segments);
  TRIREME_CHECK(out.sizes() == q.sizes(), "out must have q's shape");
  if (logsumexp.defined()) check_logsumexp(logsumexp, q);
  if (q.numel() == 0) return;
  if (q.scalar_type() == at::kBFloat16)
    return forward_typed<at::BFloat16>(q, k, v, scale, segments, out, logsumexp);
  forward_typed<float>(q, k, v, scale, segments, out, logsumexp);
}

void attention_backward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k,
                        const at::Tensor& v, const at::Tensor& out, const at::Tensor& logsumexp,
                        double scale, const Segments* segments, at::Tensor& dq, at::Tensor& dk,
                        at::Tensor& dv) {
  check_shapes(q, k, v, segments);
  TRIREME_CHECK(q.size(1) == k.size(1), "the backward needs as many keys as queries");
  TRIREME_CHECK(dout.sizes() == q.sizes() && out.sizes() == q.sizes() && dq.sizes() == q.sizes() &&
                    dk.sizes() == k.sizes() && dv.sizes() == v.sizes(),
                "gradients must have the shapes of what they belong to");
  check_logsumexp(logsumexp, q);
  if (q.numel() == 0) return;
  if (q.scalar_type() == at::kBFloat16) {
    return backward_typed<at::BFloat16>(dout, q, k, v, out, logsumexp, scale, segments, dq, dk, dv);
  }
  backward_typed<float>(dout, q, k, v, out, logsumexp, scale, segments, dq, dk, dv);
}

int64_t attention_workspace_bytes(int64_t batch, int64_t seq_len, int64_t heads, int64_t kv_heads,
                                  int64_t head_dim, at::ScalarType dtype, bool backward,
                                  int threads) {
  const bool widened = dtype != at::kFloat;
  const int64_t tasks = batch * (backward ? kv_heads : heads);
  const int64_t floats = backward ? backward_floats(seq_len, head_dim, widened)
                                  : forward_floats(seq_len, seq_len, head_dim, widened);
  return 4 * floats * std::min<int64_t>(threads, tasks);
}

}  // namespace trireme::kernels
#endif  // HWY_ONCE
