// The tensors among an operator's arguments and results.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

namespace c10 {
struct IValue;
}

namespace trireme::device {

/// Calls `visit` for a tensor and for those of a list; for undefined ones too, not for absent ones.
void for_each_tensor(const c10::IValue& value, const std::function<void(const at::Tensor&)>& visit);

}  // namespace trireme::device
