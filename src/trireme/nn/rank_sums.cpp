#include "trireme/nn/rank_sums.h"

#include <ATen/ops/empty.h>

#include "trireme/base/error.h"
#include "trireme/kernels/ops.h"

namespace trireme::nn {

at::Tensor sum_in_order(const at::Tensor& pieces, const at::Tensor& bias,
                        const at::Tensor& residual) {
  TRIREME_CHECK(pieces.dim() == 3 && pieces.is_contiguous(), "pieces of {} dimensions",
                pieces.dim());
  const at::Tensor first = pieces.select(0, 0);
  at::Tensor sum = at::empty(first.sizes(), first.options().dtype(at::kFloat));
  sum.copy_(first);
  const auto add = [&](const at::Tensor& value) {
    if (value.scalar_type() == at::kFloat) {
      kernels::add_(sum, value);
    } else {
      kernels::scaled_sum(sum, 1.0, value, 1.0, sum);
    }
  };
  for (int64_t rank = 1; rank < pieces.size(0); ++rank) add(pieces.select(0, rank));
  if (bias.defined()) sum.add_(bias);
  if (residual.defined()) add(residual);
  if (pieces.scalar_type() == at::kFloat) return sum;
  at::Tensor rounded = at::empty(sum.sizes(), pieces.options());
  kernels::convert(sum, rounded);
  return rounded;
}

std::vector<int64_t> token_counts(const model::TensorShare& share, int64_t tokens, int64_t width) {
  std::vector<int64_t> counts;
  for (int64_t place = 0; place < share.ranks; ++place)
    counts.push_back(model::TensorShare{share.ranks, place}.count(tokens) * width);
  return counts;
}

}  // namespace trireme::nn
