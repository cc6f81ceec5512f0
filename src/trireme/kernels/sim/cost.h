// What an op costs a device, from its arguments alone: products by their operations, everything by the bytes of the
// tensors that it reads and writes. Rows of experts count once each; a causal mask halves nothing, as in published figures.
#pragma once

#include <algorithm>
#include <tuple>
#include <type_traits>
#include <utility>

#include "trireme/device/sim/sim.h"
#include "trireme/kernels/plugin.h"

namespace trireme::kernels::sim {

namespace detail {

/// Whether two ops are one; their functions' types differ as a rule.
template <auto kOp, auto kOther>
inline constexpr bool is =
    kernels::detail::OpOf<kOp>::kIndex == kernels::detail::OpOf<kOther>::kIndex;

inline double bytes_of(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<double>(tensor.nbytes()) : 0.0;
}
inline double bytes_of(const std::optional<at::Tensor>& tensor) {
  return tensor ? bytes_of(*tensor) : 0.0;
}
inline double bytes_of(const std::vector<at::Tensor>& tensors) {
  double sum = 0.0;
  for (const at::Tensor& tensor : tensors) sum += bytes_of(tensor);
  return sum;
}
inline double bytes_of(const CrossEntropyOutputs& outputs) {
  return bytes_of(outputs.d_hidden) + bytes_of(outputs.d_weight) + bytes_of(outputs.losses);
}
template <class T>
double bytes_of(const T&) {
  return 0.0;
}

inline double product(const at::Tensor& a, const at::Tensor& b, int64_t inner) {
  return 2.0 * static_cast<double>(a.numel()) * static_cast<double>(b.numel()) /
         static_cast<double>(std::max<int64_t>(inner, 1));
}
inline double columns(const std::vector<at::Tensor>& weights) {
  int64_t sum = 0;
  for (const at::Tensor& weight : weights) sum += weight.size(1);
  return static_cast<double>(sum);
}

}  // namespace detail

/// Operations of the products of an op; 0 for one that is bound by memory.
template <auto kOp, class... Args>
double flops_of(const Args&... args) {
  const auto of = std::forward_as_tuple(args...);
  using detail::is;
  using detail::product;
  if constexpr (is<kOp, &linear>) {
    return product(std::get<0>(of), std::get<1>(of), std::get<0>(of).size(1));
  } else if constexpr (is<kOp, &linear_backward_input>) {
    return product(std::get<0>(of), std::get<1>(of), std::get<0>(of).size(1));
  } else if constexpr (is<kOp, &linear_backward_weight>) {
    return product(std::get<0>(of), std::get<1>(of), std::get<0>(of).size(0));
  } else if constexpr (is<kOp, &gram>) {
    return product(std::get<0>(of), std::get<0>(of), std::get<0>(of).size(1));
  } else if constexpr (is<kOp, &attention> || is<kOp, &attention_backward>) {
    // Scores and values: two products forward, five backward (scores are made again).
    constexpr int kQuery = is<kOp, &attention> ? 0 : 1;
    const at::Tensor& q = std::get<kQuery>(of);
    const at::Tensor& k = std::get<kQuery + 1>(of);
    const at::Tensor& v = std::get<kQuery + 2>(of);
    const double pairs =
        static_cast<double>(q.size(0) * q.size(2) * q.size(1)) * static_cast<double>(k.size(1));
    const double dims = static_cast<double>(is<kOp, &attention> ? q.size(3) + v.size(3)
                                                                : 3 * q.size(3) + 2 * v.size(3));
    return 2.0 * pairs * dims;
  } else if constexpr (is<kOp, &linear_cross_entropy>) {
    const double logits = product(std::get<0>(of), std::get<1>(of), std::get<0>(of).size(1));
    const CrossEntropyOutputs& outputs = std::get<5>(of);
    return logits * (1.0 + (outputs.d_hidden.defined() ? 1.0 : 0.0) +
                     (outputs.d_weight.defined() ? 1.0 : 0.0));
  } else if constexpr (is<kOp, &grouped_linear> || is<kOp, &grouped_linear_backward_input>) {
    const std::vector<at::Tensor>& weights = std::get<1>(of);
    const at::Tensor& rows = std::get<0>(of);
    return 2.0 * static_cast<double>(rows.size(0)) * detail::columns(weights) *
           static_cast<double>(weights.front().size(2));
  } else if constexpr (is<kOp, &grouped_linear_backward_weight>) {
    return 2.0 * static_cast<double>(std::get<0>(of).size(0)) *
           static_cast<double>(std::get<0>(of).size(1)) *
           static_cast<double>(std::get<1>(of).size(1));
  } else {
    return 0.0;
  }
}

template <auto kOp, class... Args>
device::sim::Cost cost_of(const Args&... args) {
  device::sim::Cost cost;
  cost.flops = flops_of<kOp>(args...);
  cost.bytes = (detail::bytes_of(args) + ... + 0.0);
  const auto dtype = [&]<class T>(const T& value) {
    if constexpr (std::is_same_v<T, at::Tensor>) {
      if (value.defined() && value.scalar_type() == at::kBFloat16) cost.dtype = at::kBFloat16;
    }
  };
  (dtype(args), ...);
  return cost;
}

}  // namespace trireme::kernels::sim
