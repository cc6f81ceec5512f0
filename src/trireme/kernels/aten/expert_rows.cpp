// Rows and weights, moved between the order of tokens and the order of experts.
#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros_like.h>

#include "trireme/kernels/aten/accumulation.h"
#include "trireme/kernels/aten/aten_kernels.h"

namespace trireme::kernels::aten {

namespace {

/// from[index], zero where the index is -1.
at::Tensor rows_or_zero(const at::Tensor& from, const at::Tensor& index) {
  if (from.size(0) == 0) {  // nothing but -1
    std::vector<int64_t> sizes = from.sizes().vec();
    sizes[0] = index.numel();
    return from.new_zeros(sizes);
  }
  at::Tensor missing = index.lt(0);
  for (int64_t i = 1; i < from.dim(); ++i) missing = missing.unsqueeze(-1);
  return from.index_select(0, index.clamp_min(0)).masked_fill(missing, 0.0);
}

}  // namespace

void gather_rows(const at::Tensor& x, const ExpertRows& rows, at::Tensor& y) {
  y.copy_(rows_or_zero(x, rows.tokens));
}

void sum_rows(const at::Tensor& y, const ExpertRows& rows, const at::Tensor& start,
              at::Tensor& out) {
  at::Tensor sum = start.defined() ? wide(start) : at::zeros_like(wide(out));
  for (int64_t j = 0; j < rows.rows.size(1); ++j)
    sum = sum + wide(rows_or_zero(y, rows.rows.select(1, j)));
  put(out, sum);
}

void weights_of_rows(const at::Tensor& weights, const ExpertRows& rows, at::Tensor& of_rows) {
  const at::Tensor row = rows.rows.view(-1);
  const at::Tensor kept = row.ge(0);
  of_rows.zero_();
  of_rows.view(-1).scatter_(0, row.masked_select(kept), weights.view(-1).masked_select(kept));
}

void weights_of_choices(const at::Tensor& of_rows, const ExpertRows& rows, at::Tensor& weights) {
  put(weights, rows_or_zero(of_rows.view(-1), rows.rows.view(-1)));
}

}  // namespace trireme::kernels::aten
