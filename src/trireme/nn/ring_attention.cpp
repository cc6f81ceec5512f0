#include "trireme/nn/ring_attention.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/logaddexp.h>
#include <ATen/ops/zeros.h>

#include <limits>

#include "trireme/nn/attention_tiles.h"

namespace trireme::nn {

template <class Body>
void RingAttention::each_tile(int64_t rank, Body&& body) const {
  const auto keys = cluster::zigzag_pieces(batch_.whole_len, batch_.context_ranks, rank);
  for (const AttentionTile& tile : ring_tiles(batch_.rows, batch_.pieces, keys,
                                              cut_ ? &batch_.segments : nullptr, options_.window)) {
    kernels::AttentionOptions options = options_;
    options.past = tile.past;
    if (!tile.own) options.sinks = at::Tensor();
    const auto queries = [&](const at::Tensor& x) {
      return x.narrow(0, tile.row, tile.rows).narrow(1, tile.query, tile.queries);
    };
    const auto seen = [&](const at::Tensor& x) {
      return x.narrow(0, tile.row, tile.rows).narrow(1, tile.key, tile.keys);
    };
    const auto sums = [&](const at::Tensor& x) {
      return x.narrow(0, tile.row, tile.rows).narrow(2, tile.query, tile.queries);
    };
    body(options, queries, seen, sums);
  }
}

RingAttention::Sums RingAttention::begin(const at::Tensor& q) const {
  const auto floats = q.options().dtype(at::kFloat);
  return {at::zeros(q.sizes(), floats), at::full({q.size(0), q.size(2), q.size(1)},
                                                 -std::numeric_limits<double>::infinity(), floats)};
}

void RingAttention::attend(const at::Tensor& q, const at::Tensor& keys, int64_t rank,
                           const Sums& so_far) const {
  each_tile(rank, [&](const kernels::AttentionOptions& options, const auto& queries,
                      const auto& seen, const auto& sums) {
    const at::Tensor asking = queries(q);
    at::Tensor out = at::empty(asking.sizes(), q.options());
    const at::Tensor lse = at::empty(sums(so_far.logsumexp).sizes(), so_far.logsumexp.options());
    kernels::attention(asking, seen(keys).select(2, 0), seen(keys).select(2, 1), options, out, lse);
    at::Tensor all = sums(so_far.logsumexp);
    const at::Tensor together = at::logaddexp(all, lse);
    const auto share = [&](const at::Tensor& of) {
      return (of - together).exp_().transpose(1, 2).unsqueeze(3);
    };
    at::Tensor result = queries(so_far.out);
    result.mul_(share(all)).addcmul_(out.to(at::kFloat), share(lse));
    all.copy_(together);
  });
}

void RingAttention::backward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& keys,
                             int64_t rank, const at::Tensor& out, const at::Tensor& logsumexp,
                             const at::Tensor& dq, const at::Tensor& d_keys,
                             const at::Tensor& d_sinks) const {
  each_tile(rank, [&](const kernels::AttentionOptions& options, const auto& queries,
                      const auto& seen, const auto& sums) {
    const at::Tensor asked = seen(keys);
    at::Tensor by_q = at::empty(queries(q).sizes(), q.options());
    const at::Tensor by_keys = at::empty(asked.sizes(), keys.options());
    at::Tensor by_k = by_keys.select(2, 0);
    at::Tensor by_v = by_keys.select(2, 1);
    const at::Tensor by_sinks =
        options.sinks.defined() ? at::empty(d_sinks.sizes(), d_sinks.options()) : at::Tensor();
    kernels::attention_backward(queries(dout), queries(q), asked.select(2, 0), asked.select(2, 1),
                                queries(out), sums(logsumexp).contiguous(), options, by_q, by_k,
                                by_v, by_sinks);
    queries(dq).add_(by_q);
    seen(d_keys).add_(by_keys);
    if (by_sinks.defined()) at::Tensor(d_sinks).add_(by_sinks);
  });
}

}  // namespace trireme::nn
