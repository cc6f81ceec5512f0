// Copies between a device and pinned host memory that run beside its compute queue: what kOffload and kReload do.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Storage.h>

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "trireme/device/device.h"

namespace trireme::execute {

/// The memory of tensors that went to the host: their storages, which keep their place in every tensor that shares them,
/// and the host's copy of each.
struct OffloadedMemory {
  std::vector<c10::Storage> storages;
  std::vector<at::Tensor> host;  ///< pinned bytes, as large as the storage or larger
};

/// A device's two copy queues and the pinned memory that passes through them, kept from step to step. Thread-safety: one
/// thread. Ownership: borrows the device. Blocking: no call waits for the device.
class DeviceCopies {
 public:
  explicit DeviceCopies(device::Device& device);

  device::Queue& out() { return *out_; }
  device::Queue& in() { return *in_; }

  /// Issues copies of the tensors' storages to the host to the queue out(), each storage once; undefined and empty tensors
  /// are left out. The caller has made out() wait for whatever writes them.
  OffloadedMemory copy_out(const std::vector<at::Tensor>& tensors);
  /// Frees the storages' device memory: from here on, a tensor of theirs has a size and no data. The compute queue must
  /// have waited for the copies: memory is handed out again in its order.
  static void release(OffloadedMemory& memory);
  /// Gives the storages device memory again, which may be memory that work of the compute queue still uses, and issues the
  /// copies to the queue in(), after what the compute queue has now.
  void copy_in(OffloadedMemory& memory);
  /// The host's memory may be written again by copies that are issued from now on to out(), in the order of the compute
  /// queue: which has waited for the copies in.
  void give_back(OffloadedMemory memory);

  /// Makes the queue in() wait for what the compute queue has now.
  void in_after_compute();

 private:
  at::Tensor take(int64_t bytes);

  device::Device& device_;
  std::unique_ptr<device::Queue> out_;
  std::unique_ptr<device::Queue> in_;
  std::multimap<int64_t, at::Tensor> spare_;  ///< by bytes
};

}  // namespace trireme::execute
