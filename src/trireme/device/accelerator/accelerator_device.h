// The Device interface over PyTorch's generic hooks and guards, for any accelerator whose back end is registered.
//
// A back end derives from it and adds what those hooks do not have: the product's name, a memory cap, capabilities.
#pragma once

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "trireme/device/device.h"

namespace trireme::device {

/// Thread-safe. The allocator of the device's type must be a c10::DeviceAllocator.
class AcceleratorDevice : public Device {
 public:
  explicit AcceleratorDevice(c10::Device device);
  ~AcceleratorDevice() override;

  std::string type() const override;
  c10::Device torch_device() const override { return device_; }
  /// Data types as the guard names them; asynchronous; nothing else.
  Capabilities capabilities() const override;
  int64_t total_memory_bytes() const override;
  MemoryStatistics memory() const override;
  void reset_peak_memory() override;
  /// Throws Error{kConfig}: PyTorch has no generic cap.
  void set_memory_cap(int64_t bytes) override;
  void synchronize() override;
  Queue& compute_queue() override;
  std::unique_ptr<Queue> new_queue() override;
  at::Tensor empty_pinned(c10::IntArrayRef sizes, c10::ScalarType dtype) override;
  void copy(const at::Tensor& to, const at::Tensor& from, Queue& queue) override;
  at::Tensor random_state() const override;
  void set_random_state(const at::Tensor& state) override;
  void seed(uint64_t seed) override;

 private:
  c10::DeviceAllocator& allocator() const;
  c10::Device device_;
  c10::impl::VirtualGuardImpl guard_;
  std::shared_ptr<Event> origin_;  ///< from which events count seconds
  std::mutex mutex_;
  std::map<c10::StreamId, std::unique_ptr<Queue>> queues_;  ///< that were current somewhere
};

}  // namespace trireme::device
