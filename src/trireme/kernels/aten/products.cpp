// Products, and products by group: one matmul each.
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/matmul.h>

#include "trireme/kernels/aten/accumulation.h"
#include "trireme/kernels/aten/aten_kernels.h"

namespace trireme::kernels::aten {

void linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
            const std::optional<at::Tensor>& residual, at::Tensor& y) {
  at::Tensor result = at::matmul(wide(x), wide(weight).t());
  if (bias) result = result + wide(*bias);
  if (residual) result = result + wide(*residual);
  put(y, result);
}

void linear_backward_input(const at::Tensor& dy, const at::Tensor& weight, at::Tensor& dx,
                           bool accumulate) {
  put(dx, at::matmul(wide(dy), wide(weight)), accumulate);
}

void linear_backward_weight(const at::Tensor& dy, const at::Tensor& x, at::Tensor& dweight,
                            bool accumulate) {
  put(dweight, at::matmul(wide(dy).t(), wide(x)), accumulate);
}

void bias_gradient(const at::Tensor& dy, at::Tensor& dbias, bool accumulate) {
  put(dbias, wide(dy).sum(0), accumulate);
}

void gram(const at::Tensor& x, at::Tensor& y) {
  put(y, at::matmul(wide(x), wide(x).t()));
}

namespace {

/// Calls body(group, its rows of each tensor ...) for every group that has rows.
template <class Body, class... Tensors>
void for_groups(const GroupOffsets& offsets, Body&& body, const Tensors&... tensors) {
  for (size_t g = 0; g + 1 < offsets.size(); ++g) {
    const int64_t count = offsets[g + 1] - offsets[g];
    if (count > 0) body(static_cast<int64_t>(g), tensors.narrow(0, offsets[g], count)...);
  }
}

/// A group's matrix [out, in], of all its parts.
at::Tensor matrix_of(const std::vector<at::Tensor>& weights, int64_t group) {
  std::vector<at::Tensor> parts;
  for (const at::Tensor& part : weights) parts.push_back(wide(part.select(0, group)));
  return at::cat(parts, 0);
}

}  // namespace

void grouped_linear(const at::Tensor& x, const std::vector<at::Tensor>& weights,
                    const GroupOffsets& offsets, bool accumulate, at::Tensor& y) {
  for_groups(
      offsets,
      [&](int64_t group, const at::Tensor& in, const at::Tensor& out) {
        put(out, at::matmul(wide(in), matrix_of(weights, group).t()), accumulate);
      },
      x, y);
}

void grouped_linear_backward_input(const at::Tensor& dy, const std::vector<at::Tensor>& weights,
                                   const GroupOffsets& offsets, at::Tensor& dx) {
  for_groups(
      offsets,
      [&](int64_t group, const at::Tensor& grad, const at::Tensor& out) {
        put(out, at::matmul(wide(grad), matrix_of(weights, group)));
      },
      dy, dx);
}

void grouped_linear_backward_weight(const at::Tensor& dy, const at::Tensor& x,
                                    const GroupOffsets& offsets,
                                    const std::vector<at::Tensor>& dweights, bool accumulate) {
  if (!accumulate) {
    for (const at::Tensor& part : dweights) part.zero_();
  }
  for_groups(
      offsets,
      [&](int64_t group, const at::Tensor& grad, const at::Tensor& in) {
        const at::Tensor gradient = at::matmul(wide(grad).t(), wide(in));
        int64_t row = 0;
        for (const at::Tensor& part : dweights) {
          part.select(0, group).add_(gradient.narrow(0, row, part.size(1)));
          row += part.size(1);
        }
      },
      dy, x);
}

void grouped_bias(const at::Tensor& bias, const at::Tensor& weights, const GroupOffsets& offsets,
                  at::Tensor& y) {
  for_groups(
      offsets,
      [&](int64_t group, const at::Tensor& out) {
        const at::Tensor row = wide(bias.select(0, group)).unsqueeze(0);
        const int64_t first = offsets[static_cast<size_t>(group)];
        put(out, weights.defined()
                     ? weights.view(-1).narrow(0, first, out.size(0)).unsqueeze(1) * row
                     : row.expand(out.sizes()));
      },
      y);
}

void grouped_bias_backward(const at::Tensor& dy, const at::Tensor& bias, const at::Tensor& weights,
                           const GroupOffsets& offsets, at::Tensor& dbias, bool accumulate,
                           at::Tensor d_weights) {
  if (!accumulate) dbias.zero_();
  for_groups(
      offsets,
      [&](int64_t group, const at::Tensor& rows) {
        const at::Tensor grad = wide(rows);
        const int64_t first = offsets[static_cast<size_t>(group)];
        const auto mine = [&](const at::Tensor& all) {
          return all.view(-1).narrow(0, first, grad.size(0));
        };
        dbias.select(0, group).add_(weights.defined() ? (mine(weights).unsqueeze(1) * grad).sum(0)
                                                      : grad.sum(0));
        if (d_weights.defined())
          mine(d_weights).add_((grad * wide(bias.select(0, group)).unsqueeze(0)).sum(1));
      },
      dy);
}

}  // namespace trireme::kernels::aten
