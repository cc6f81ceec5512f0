// Attention through the wheel's FlashAttention (Dao 2023) in bfloat16: documents as sequences of their own lengths, windows,
// sinks. What that does not have (float32, soft caps, heads wider than 256) is the reference's, a slice at a time.
#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/_flash_attention_backward.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/logaddexp.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/tensor.h>

#include <algorithm>

#include "trireme/kernels/aten/aten_kernels.h"
#include "trireme/kernels/cuda/cuda_kernels.h"
#include "trireme/kernels/cuda/operands.h"

namespace trireme::kernels::gpu {

namespace {

constexpr int64_t kWidest = 256;
constexpr int64_t kMultiple = 8;  ///< of the width and of strides: 16 bytes

/// Every query sees every key.
bool sees_all(const at::Tensor& k, const AttentionOptions& options) {
  return options.window == 0 && options.past >= k.size(1) - 1;
}

bool takes_flash(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                 const AttentionOptions& options) {
  const int64_t width = q.size(3);
  // Its masks end at the last key.
  if (options.past >= 0 && options.past != k.size(1) - q.size(1) && !sees_all(k, options))
    return false;
  return q.scalar_type() == at::kBFloat16 && q.numel() > 0 && options.softcap == 0.0 &&
         width <= kWidest && width % kMultiple == 0 && v.size(3) <= width;
}

/// As its loads want it: where it lies, or a copy.
at::Tensor loadable(const at::Tensor& x) {
  bool fits = reinterpret_cast<uintptr_t>(x.data_ptr()) % 16 == 0 && x.stride(-1) == 1;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) fits = fits && x.stride(i) % kMultiple == 0;
  return fits ? x : x.contiguous();
}

/// Values as wide as keys: zeros beyond, whose results are zeros.
at::Tensor widened(const at::Tensor& v, int64_t width) {
  return v.size(-1) == width ? loadable(v) : at::constant_pad_nd(v, {0, width - v.size(-1)});
}

/// Sequences of a call: the rows of the batch, or their documents one after the other.
struct Sequences {
  at::Tensor starts;  ///< int32 [sequences + 1] on the device; undefined: the rows
  int64_t longest_q;
  int64_t longest_k;
};

Sequences sequences_of(const at::Tensor& q, const at::Tensor& k, const AttentionOptions& options) {
  if (options.segments == nullptr) return {{}, q.size(1), k.size(1)};
  const int64_t places = q.size(1);
  std::vector<int32_t> starts;
  for (size_t row = 0; row < options.segments->size(); ++row) {
    for (const int32_t start : (*options.segments)[row])
      starts.push_back(static_cast<int32_t>(static_cast<int64_t>(row) * places) + start);
  }
  starts.push_back(static_cast<int32_t>(q.size(0) * places));
  int32_t longest = 0;
  for (size_t i = 0; i + 1 < starts.size(); ++i)
    longest = std::max(longest, starts[i + 1] - starts[i]);
  return {on_device(at::tensor(starts, at::kInt), q.device()), longest, longest};
}

/// [B, T, H, D] as the call takes it: of documents [B T, H, D].
at::Tensor as_sequences(const at::Tensor& x, const Sequences& sequences) {
  return sequences.starts.defined() ? x.flatten(0, 1) : x;
}

std::optional<at::Tensor> optional(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

// A window is its own mask; without one, the causal mask. Both end at the query's own place.
bool causal(const at::Tensor& k, const AttentionOptions& options) {
  return options.window == 0 && !sees_all(k, options);
}
std::optional<int64_t> window_left(const AttentionOptions& options) {
  return options.window == 0 ? std::nullopt : std::optional(options.window - 1);
}
std::optional<int64_t> window_right(const AttentionOptions& options) {
  return options.window == 0 ? std::nullopt : std::optional(int64_t{0});
}

/// While it lives, the wheel's backward adds in a fixed order.
class Deterministic {
 public:
  Deterministic()
      : algorithms_(at::globalContext().deterministicAlgorithms()),
        warn_only_(at::globalContext().deterministicAlgorithmsWarnOnly()),
        fill_(at::globalContext().deterministicFillUninitializedMemory()) {
    at::globalContext().setDeterministicAlgorithms(true, false);
    at::globalContext().setDeterministicFillUninitializedMemory(false);
  }
  ~Deterministic() {
    at::globalContext().setDeterministicAlgorithms(algorithms_, warn_only_);
    at::globalContext().setDeterministicFillUninitializedMemory(fill_);
  }
  Deterministic(const Deterministic&) = delete;
  Deterministic& operator=(const Deterministic&) = delete;

 private:
  bool algorithms_;
  bool warn_only_;
  bool fill_;
};

// --- The reference by slices -------------------------------------------------------------------------

/// Rows of the batch and key heads with their queries.
struct Slice {
  int64_t row;
  int64_t rows;
  int64_t head;
  int64_t heads;
  int64_t queries_of_head;

  at::Tensor keys(const at::Tensor& x) const {
    return x.narrow(0, row, rows).narrow(2, head, heads);
  }
  at::Tensor queries(const at::Tensor& x) const {
    return x.narrow(0, row, rows).narrow(2, head * queries_of_head, heads * queries_of_head);
  }
  at::Tensor sums(const at::Tensor& x) const {
    if (!x.defined()) return {};
    return x.narrow(0, row, rows).narrow(1, head * queries_of_head, heads * queries_of_head);
  }
  at::Tensor sinks(const at::Tensor& x) const {
    return x.defined() ? x.narrow(0, head * queries_of_head, heads * queries_of_head) : x;
  }
};

/// Calls body(slice, its options) for slices whose scores have room.
template <class Body>
void for_slices(const at::Tensor& q, const at::Tensor& k, const AttentionOptions& options,
                Body&& body) {
  const int64_t group = q.size(2) / k.size(2);
  const int64_t of_head = 4 * group * q.size(1) * k.size(1);
  const int64_t of_row = of_head * k.size(2);
  const int64_t rows = of_row * q.size(0) <= attention_score_bytes() ? q.size(0) : 1;
  const int64_t heads = of_row <= attention_score_bytes() ? k.size(2) : 1;
  for (int64_t row = 0; row < q.size(0); row += rows) {
    for (int64_t head = 0; head < k.size(2); head += heads) {
      const Slice slice{row, rows, head, heads, group};
      AttentionOptions mine = options;
      mine.sinks = slice.sinks(options.sinks);
      Segments segments;
      if (options.segments != nullptr && rows < q.size(0)) {
        segments = {(*options.segments)[static_cast<size_t>(row)]};
        mine.segments = &segments;
      }
      body(slice, mine);
    }
  }
}

void attention_by_slices(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                         const AttentionOptions& options, const at::Tensor& out,
                         const at::Tensor& logsumexp) {
  for_slices(q, k, options, [&](const Slice& slice, const AttentionOptions& mine) {
    at::Tensor result = slice.queries(out);
    aten::attention(slice.queries(q), slice.keys(k), slice.keys(v), mine, result,
                    slice.sums(logsumexp));
  });
}

void attention_backward_by_slices(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k,
                                  const at::Tensor& v, const at::Tensor& out,
                                  const at::Tensor& logsumexp, const AttentionOptions& options,
                                  const at::Tensor& dq, const at::Tensor& dk, const at::Tensor& dv,
                                  const at::Tensor& d_sinks) {
  if (d_sinks.defined()) d_sinks.zero_();
  for_slices(q, k, options, [&](const Slice& slice, const AttentionOptions& mine) {
    at::Tensor by_q = slice.queries(dq);
    at::Tensor by_k = slice.keys(dk);
    at::Tensor by_v = slice.keys(dv);
    at::Tensor by_sinks;
    if (d_sinks.defined()) by_sinks = at::empty(mine.sinks.sizes(), d_sinks.options());
    aten::attention_backward(slice.queries(dout), slice.queries(q), slice.keys(k), slice.keys(v),
                             slice.queries(out), slice.sums(logsumexp), mine, by_q, by_k, by_v,
                             by_sinks);
    if (d_sinks.defined()) slice.sinks(d_sinks).add_(by_sinks);
  });
}

at::Tensor sinks_of_rows(const AttentionOptions& options) {
  return options.sinks.view({1, -1, 1});
}

}  // namespace

namespace ops {

void attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
               const AttentionOptions& options, at::Tensor& out, at::Tensor logsumexp) {
  if (!takes_flash(q, k, v, options)) {
    attention_by_slices(q, k, v, options, out, logsumexp);
    return;
  }
  const Place place(q);
  const Sequences sequences = sequences_of(q, k, options);
  const int64_t batch = q.size(0);
  const int64_t places = q.size(1);
  const int64_t heads = q.size(2);
  auto [result, sums, seed, unused, mask] = at::_flash_attention_forward(
      as_sequences(loadable(q), sequences), as_sequences(loadable(k), sequences),
      as_sequences(widened(v, q.size(3)), sequences), optional(sequences.starts),
      optional(sequences.starts), sequences.longest_q, sequences.longest_k, /*dropout_p=*/0.0,
      causal(k, options), /*return_debug_mask=*/false, options.scale, window_left(options),
      window_right(options));
  // [heads, B T] of documents, [B, heads, T] of rows.
  if (sequences.starts.defined()) sums = sums.view({heads, batch, places}).transpose(0, 1);
  const at::Tensor values = result.view({batch, places, heads, q.size(3)}).narrow(3, 0, v.size(3));
  if (options.sinks.defined()) {
    // One more logit, without a value: every weight shrinks by the same share.
    const at::Tensor with_sink = at::logaddexp(sums, sinks_of_rows(options));
    at::mul_out(out, values, (sums - with_sink).exp().transpose(1, 2).unsqueeze(3));
    sums = with_sink;
  } else {
    out.copy_(values);
  }
  if (logsumexp.defined()) logsumexp.copy_(sums);
}

void attention_backward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k,
                        const at::Tensor& v, const at::Tensor& out, const at::Tensor& logsumexp,
                        const AttentionOptions& options, at::Tensor& dq, at::Tensor& dk,
                        at::Tensor& dv, at::Tensor d_sinks) {
  if (!takes_flash(q, k, v, options)) {
    attention_backward_by_slices(dout, q, k, v, out, logsumexp, options, dq, dk, dv, d_sinks);
    return;
  }
  const Place place(q);
  const Sequences sequences = sequences_of(q, k, options);
  const int64_t width = q.size(3);
  const int64_t heads = q.size(2);
  const at::Tensor sums = sequences.starts.defined()
                              ? logsumexp.transpose(0, 1).contiguous().view({heads, -1})
                              : logsumexp;
  // Nothing is dropped, so nothing was drawn.
  const at::Tensor seed = at::empty({2}, q.options().dtype(at::kUInt64));
  const at::Tensor unused = at::empty({0}, q.options().dtype(at::kUInt64));
  const Deterministic deterministic;
  // The sums and the output have the sink in them, and with these the gradients by the keys do, too.
  const auto [by_q, by_k, by_v] = at::_flash_attention_backward(
      as_sequences(widened(dout, width), sequences), as_sequences(loadable(q), sequences),
      as_sequences(loadable(k), sequences), as_sequences(widened(v, width), sequences),
      as_sequences(widened(out, width), sequences), sums, sequences.starts, sequences.starts,
      sequences.longest_q, sequences.longest_k, /*dropout_p=*/0.0, causal(k, options), seed, unused,
      options.scale, window_left(options), window_right(options));
  dq.copy_(by_q.view(q.sizes()));
  dk.copy_(by_k.view(k.sizes()));
  dv.copy_(by_v.view({k.size(0), k.size(1), k.size(2), width}).narrow(3, 0, v.size(3)));
  if (d_sinks.defined()) {
    const at::Tensor share = (sinks_of_rows(options) - logsumexp).exp();
    const at::Tensor along = (dout.to(at::kFloat) * out.to(at::kFloat)).sum(3).transpose(1, 2);
    d_sinks.copy_((share * along).sum(at::IntArrayRef({0, 2})).neg());
  }
}

}  // namespace ops

}  // namespace trireme::kernels::gpu
