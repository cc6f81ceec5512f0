// NVIDIA devices behind the Device interface: what PyTorch's generic hooks lack. Part of libtrireme_cuda.so.
#pragma once

#include "trireme/device/device.h"

namespace trireme::device::cuda {

/// cuda:index. The first call starts the runtime: the caching allocator with segments that grow (unless
/// PYTORCH_CUDA_ALLOC_CONF or PYTORCH_ALLOC_CONF says otherwise), products that add in float32. Lives as long as the
/// process. Throws Error{kDevice} without a driver or without such a device. Thread-safe.
Device& cuda_device(int index);

}  // namespace trireme::device::cuda
