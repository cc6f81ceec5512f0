// What the references compute in: float32, or float64 for float64 tensors.
#pragma once

#include <ATen/core/Tensor.h>

namespace trireme::kernels::aten {

inline at::Tensor wide(const at::Tensor& tensor) {
  return tensor.to(tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
}

/// to = value, or to += value, rounded once to the dtype of `to`. `value` may have been made from `to`.
inline void put(const at::Tensor& to, const at::Tensor& value, bool accumulate = false) {
  to.copy_((accumulate ? wide(to).add(value) : value).reshape(to.sizes()));
}

}  // namespace trireme::kernels::aten
