// Tensors as the launching functions of launch.h take them.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "trireme/base/error.h"
#include "trireme/kernels/cuda/launch.h"

namespace trireme::kernels::gpu {

/// Where the work of an op goes: while it lives, the tensor's device is the current one.
class Place {
 public:
  explicit Place(const at::Tensor& tensor) : guard_(tensor.device()) {
    // The emulation has no streams.
    if (!tensor.is_cpu()) {
      const c10::impl::VirtualGuardImpl devices(tensor.device().type());
      stream_ = devices.getStream(tensor.device()).native_handle();
    }
  }
  Stream stream() const { return stream_; }

 private:
  c10::DeviceGuard guard_;
  Stream stream_ = nullptr;
};

inline Type type_of(const at::Tensor& tensor) {
  TRIREME_CHECK(tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kBFloat16,
                "a tensor of {}", c10::toString(tensor.scalar_type()));
  return tensor.scalar_type() == at::kFloat ? Type::kFloat : Type::kBf16;
}

/// The address, or nullptr of an undefined tensor.
template <class T = void>
T* data_of(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<T*>(tensor.data_ptr()) : nullptr;
}

/// [N, d] or [N, heads, d].
inline Rows rows_of(const at::Tensor& tensor) {
  if (!tensor.defined()) return {};
  if (tensor.dim() == 2) return {tensor.data_ptr(), tensor.stride(0), 0, 1};
  TRIREME_CHECK(tensor.dim() == 3, "rows of a tensor with {} dimensions", tensor.dim());
  return {tensor.data_ptr(), tensor.stride(0), tensor.stride(1),
          tensor.size(1) > 0 ? tensor.size(1) : 1};
}

/// The host tensor on the device, without waiting for what was issued before: a copy from pageable memory would.
inline at::Tensor on_device(const at::Tensor& host, at::Device device) {
  if (device.is_cpu()) return host;
  return host.pin_memory().to(device, host.scalar_type(), /*non_blocking=*/true);
}

inline int64_t count_rows(const at::Tensor& tensor) {
  int64_t rows = 1;
  for (int64_t i = 0; i + 1 < tensor.dim(); ++i) rows *= tensor.size(i);
  return rows;
}

}  // namespace trireme::kernels::gpu
