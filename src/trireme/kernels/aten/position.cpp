// Rotary position embedding, token embedding, and latent attention's keys.
#include <ATen/TensorOperators.h>

#include "trireme/base/error.h"
#include "trireme/kernels/aten/accumulation.h"
#include "trireme/kernels/aten/aten_kernels.h"

namespace trireme::kernels::aten {

namespace {

void check_ids(const at::Tensor& ids, int64_t limit, const char* what) {
  if (ids.numel() == 0) return;
  const at::Tensor wrong = ids.masked_select(ids.lt(0).logical_or(ids.ge(limit)));
  TRIREME_USER_CHECK(wrong.numel() == 0, kData,
                     "use the tokenizer that belongs to the model, or a larger vocab_size",
                     "{} {} is outside the table of {} entries", what,
                     wrong.view(-1).select(0, 0).item<int64_t>(), limit);
}

}  // namespace

void rotary_(at::Tensor& x, const at::Tensor& positions, const at::Tensor& cos,
             const at::Tensor& sin, bool inverse, bool interleaved) {
  const int64_t half = cos.size(1);
  check_ids(positions, cos.size(0), "position");
  const at::Tensor c = cos.index_select(0, positions).unsqueeze(1);
  const at::Tensor s = sin.index_select(0, positions).unsqueeze(1) * (inverse ? -1.0 : 1.0);
  const at::Tensor first = interleaved ? x.slice(2, 0, 2 * half, 2) : x.narrow(2, 0, half);
  const at::Tensor second = interleaved ? x.slice(2, 1, 2 * half, 2) : x.narrow(2, half, half);
  const at::Tensor a = wide(first);
  const at::Tensor b = wide(second);
  const at::Tensor turned = b * c + a * s;
  put(first, a * c - b * s);
  put(second, turned);
}

void join_shared_key(const at::Tensor& own, const at::Tensor& shared, at::Tensor& k) {
  const int64_t a = own.size(2);
  const int64_t b = shared.size(2);
  k.narrow(2, 0, a).copy_(own);
  k.narrow(2, a, b).copy_(shared.expand({-1, k.size(1), -1}));
}

void join_shared_key_backward(const at::Tensor& dk, at::Tensor& d_own, at::Tensor& d_shared) {
  const int64_t a = d_own.size(2);
  const int64_t b = d_shared.size(2);
  put(d_shared, wide(dk.narrow(2, a, b)).sum(1, /*keepdim=*/true));
  d_own.copy_(dk.narrow(2, 0, a));
}

void embedding(const at::Tensor& tokens, const at::Tensor& weight, const at::Tensor& positions,
               const at::Tensor& position_weight, at::Tensor& out) {
  check_ids(tokens, weight.size(0), "token id");
  at::Tensor rows = wide(weight.index_select(0, tokens.view(-1)));
  if (position_weight.defined()) {
    check_ids(positions, position_weight.size(0), "position");
    rows = rows + wide(position_weight.index_select(0, positions.view(-1)));
  }
  put(out, rows);
}

void embedding_backward(const at::Tensor& tokens, const at::Tensor& dy, at::Tensor& dweight,
                        bool accumulate) {
  check_ids(tokens, dweight.size(0), "token id");
  if (!accumulate) dweight.zero_();
  dweight.index_add_(0, tokens.view(-1), wide(dy).view({tokens.numel(), dweight.size(1)}));
}

}  // namespace trireme::kernels::aten
