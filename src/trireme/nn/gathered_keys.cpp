#include "trireme/nn/gathered_keys.h"

#include <ATen/ops/empty.h>

#include <vector>

#include "trireme/base/error.h"

namespace trireme::nn {

namespace {

std::vector<cluster::PlaceRange> pieces_of(const BatchTensors& batch, int64_t rank) {
  return cluster::zigzag_pieces(batch.whole_len, batch.context_ranks, rank);
}

}  // namespace

at::Tensor keys_in_order(const BatchTensors& batch, const at::Tensor& all, int64_t heads,
                         int64_t head_dim) {
  const int64_t rows = batch.tokens.size(0);
  const int64_t last = batch.pieces.back().last;
  const at::Tensor by_rank =
      all.view({batch.context_ranks, rows, batch.tokens.size(1), 2, heads, head_dim});
  at::Tensor keys = at::empty({rows, last, 2, heads, head_dim}, all.options());
  for (int64_t rank = 0; rank < batch.context_ranks; ++rank) {
    int64_t at = 0;
    for (const cluster::PlaceRange& piece : pieces_of(batch, rank)) {
      if (piece.last <= last)
        keys.narrow(1, piece.first, piece.count())
            .copy_(by_rank.select(0, rank).narrow(1, at, piece.count()));
      at += piece.count();
    }
  }
  return keys;
}

at::Tensor gradients_by_owner(const BatchTensors& batch, const at::Tensor& d_keys) {
  const at::Tensor sent = at::empty({d_keys.numel()}, d_keys.options());
  int64_t at = 0;
  for (int64_t rank = 0; rank < batch.context_ranks; ++rank) {
    std::vector<cluster::PlaceRange> pieces = pieces_of(batch, rank);
    if (!cluster::sees_second_piece(batch.context_rank, rank)) pieces.pop_back();
    std::vector<int64_t> sizes = d_keys.sizes().vec();
    sizes[1] = 0;
    for (const cluster::PlaceRange& piece : pieces) sizes[1] += piece.count();
    const int64_t elements = sizes[0] * sizes[1] * (d_keys.numel() / (sizes[0] * d_keys.size(1)));
    const at::Tensor to = sent.narrow(0, at, elements).view(sizes);
    int64_t place = 0;
    for (const cluster::PlaceRange& piece : pieces) {
      to.narrow(1, place, piece.count()).copy_(d_keys.narrow(1, piece.first, piece.count()));
      place += piece.count();
    }
    at += elements;
  }
  TRIREME_CHECK(at == sent.numel(), "{} of {} gradients of keys have an owner", at, sent.numel());
  return sent;
}

}  // namespace trireme::nn
