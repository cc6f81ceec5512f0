// Rows of experts, and products by group.
#include <ATen/ops/_grouped_mm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>

#include <algorithm>

#include "trireme/kernels/cuda/cuda_kernels.h"
#include "trireme/kernels/cuda/operands.h"
#include "trireme/kernels/cuda/product.h"

namespace trireme::kernels::gpu {

namespace {

at::Tensor begins_of(const GroupOffsets& offsets, at::Device device) {
  return on_device(at::tensor(offsets, at::kLong), device);
}
at::Tensor ends_of(const GroupOffsets& offsets, at::Device device) {
  return on_device(at::tensor(at::ArrayRef<int64_t>(offsets).slice(1), at::kInt), device);
}

/// Calls body(group, first row, number of rows) for every group that has rows.
template <class Body>
void for_groups(const GroupOffsets& offsets, Body&& body) {
  for (size_t g = 0; g + 1 < offsets.size(); ++g) {
    const int64_t count = offsets[g + 1] - offsets[g];
    if (count > 0) body(static_cast<int64_t>(g), offsets[g], count);
  }
}

/// What the wheel's grouped product asks for: bfloat16, and rows that begin at multiples of 16 bytes.
bool takes_grouped(const at::Tensor& x, const at::Tensor& weight) {
  constexpr int64_t kMultiple = 8;
  const auto aligned = [](const at::Tensor& tensor) {
    return reinterpret_cast<uintptr_t>(tensor.data_ptr()) % 16 == 0;
  };
  return grouped_products() && x.scalar_type() == at::kBFloat16 && x.size(0) > 0 &&
         weight.size(0) > 1 && x.stride(0) % kMultiple == 0 && weight.size(1) % kMultiple == 0 &&
         weight.size(2) % kMultiple == 0 && weight.is_contiguous() && aligned(x) && aligned(weight);
}

}  // namespace

namespace ops {

void gather_rows(const at::Tensor& x, const ExpertRows& rows, at::Tensor& y) {
  const Place place(y);
  gather(type_of(y), data_of<int64_t>(rows.tokens), data_of(x), nullptr, nullptr, data_of(y),
         y.size(0), y.size(1), place.stream());
}

void sum_rows(const at::Tensor& y, const ExpertRows& rows, const at::Tensor& start,
              at::Tensor& out) {
  const Place place(out);
  gpu::sum_rows(type_of(out), data_of(y), data_of<int64_t>(rows.rows), out.size(0),
                rows.rows.size(1), data_of(start), data_of(out), out.size(1), place.stream());
}

void weights_of_rows(const at::Tensor& weights, const ExpertRows& rows, at::Tensor& of_rows) {
  const Place place(of_rows);
  of_rows.zero_();
  scatter_values(data_of<float>(weights), data_of<int64_t>(rows.rows), data_of<float>(of_rows),
                 rows.rows.numel(), place.stream());
}

void weights_of_choices(const at::Tensor& of_rows, const ExpertRows& rows, at::Tensor& weights) {
  const Place place(weights);
  gather_values(data_of<float>(of_rows), data_of<int64_t>(rows.rows), data_of<float>(weights),
                rows.rows.numel(), place.stream());
}

void grouped_linear(const at::Tensor& x, const std::vector<at::Tensor>& weights,
                    const GroupOffsets& offsets, bool accumulate, at::Tensor& y) {
  int64_t column = 0;
  at::Tensor ends;
  for (const at::Tensor& weight : weights) {
    const at::Tensor out = y.narrow(1, column, weight.size(1));
    column += weight.size(1);
    // Its result is rounded: nothing can be added to it.
    if (!accumulate && takes_grouped(x, weight)) {
      if (!ends.defined()) ends = ends_of(offsets, x.device());
      out.copy_(at::_grouped_mm(x, weight.transpose(1, 2), ends));
      continue;
    }
    for_groups(offsets, [&](int64_t group, int64_t first, int64_t count) {
      product(x.narrow(0, first, count), weight.select(0, group).t(), out.narrow(0, first, count),
              accumulate);
    });
  }
}

void grouped_linear_backward_input(const at::Tensor& dy, const std::vector<at::Tensor>& weights,
                                   const GroupOffsets& offsets, at::Tensor& dx) {
  // Several parts are one sum: in float32, rounded at its end, and of a bounded number of rows however they are spread.
  const bool direct = weights.size() == 1 || dx.scalar_type() == at::kFloat;
  const int64_t most = direct ? dx.size(0) : std::min(dx.size(0), kRowsOfSum);
  at::Tensor sums;
  if (!direct) sums = at::empty({most, dx.size(1)}, dx.options().dtype(at::kFloat));
  for_groups(offsets, [&](int64_t group, int64_t begin, int64_t all) {
    for (int64_t first = begin; first < begin + all; first += most) {
      const int64_t count = std::min(most, begin + all - first);
      const at::Tensor out = dx.narrow(0, first, count);
      const at::Tensor sum = direct ? out : sums.narrow(0, 0, count);
      int64_t column = 0;
      for (const at::Tensor& weight : weights) {
        product(dy.narrow(0, first, count).narrow(1, column, weight.size(1)),
                weight.select(0, group), sum, column > 0);
        column += weight.size(1);
      }
      if (!direct) out.copy_(sum);
    }
  });
}

void grouped_linear_backward_weight(const at::Tensor& dy, const at::Tensor& x,
                                    const GroupOffsets& offsets,
                                    const std::vector<at::Tensor>& dweights, bool accumulate) {
  int64_t column = 0;
  for (const at::Tensor& dweight : dweights) {
    for (int64_t group = 0; group < dweight.size(0); ++group) {
      const int64_t first = offsets[static_cast<size_t>(group)];
      const int64_t count = offsets[static_cast<size_t>(group) + 1] - first;
      const at::Tensor out = dweight.select(0, group);
      if (count > 0) {
        product(dy.narrow(0, first, count).narrow(1, column, dweight.size(1)).t(),
                x.narrow(0, first, count), out, accumulate);
      } else if (!accumulate) {
        out.zero_();
      }
    }
    column += dweight.size(1);
  }
}

void grouped_bias(const at::Tensor& bias, const at::Tensor& weights, const GroupOffsets& offsets,
                  at::Tensor& y) {
  const Place place(y);
  const at::Tensor begins = begins_of(offsets, y.device());
  gpu::grouped_bias({.type = type_of(y),
                     .groups = bias.size(0),
                     .rows = y.size(0),
                     .width = y.size(1),
                     .offsets = data_of<int64_t>(begins),
                     .weights = data_of<float>(weights)},
                    data_of(bias), rows_of(y), place.stream());
}

void grouped_bias_backward(const at::Tensor& dy, const at::Tensor& bias, const at::Tensor& weights,
                           const GroupOffsets& offsets, at::Tensor& dbias, bool accumulate,
                           at::Tensor d_weights) {
  const Place place(dy);
  const at::Tensor begins = begins_of(offsets, dy.device());
  gpu::grouped_bias_backward({.type = type_of(dy),
                              .groups = bias.size(0),
                              .rows = dy.size(0),
                              .width = dy.size(1),
                              .offsets = data_of<int64_t>(begins),
                              .weights = data_of<float>(weights)},
                             rows_of(dy), d_weights.defined() ? data_of(bias) : nullptr,
                             data_of<float>(dbias), accumulate, data_of<float>(d_weights),
                             place.stream());
}

}  // namespace ops

}  // namespace trireme::kernels::gpu
