// The Device interface over PyTorch's generic hooks and guards, for any accelerator whose back end is registered.
//
// A back end derives from it and adds what those hooks do not have: the product's name, a memory cap, capabilities. What a
// back end may leave out of PyTorch's interface is replaced by something plain, or refused where it is asked for.
#pragma once

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "trireme/device/device.h"

namespace trireme::device {

/// What PyTorch lets a back end leave out, and what takes its place.
struct AcceleratorSupport {
  bool events = true;        ///< else recording one waits for its queue
  bool event_times = true;   ///< else the host's clock when an event was first seen done
  bool new_streams = true;   ///< else those of PyTorch's pool
  bool pool_streams = true;  ///< else one queue for everything
  bool synchronize_device =
      true;  ///< else the streams that this process uses are waited for, one by one
  bool memory_statistics = true;  ///< else zeros
  bool memory_size = true;        ///< else 0: not known
  bool generator = true;          ///< else random state is refused
  bool pinned_memory = true;      ///< else pageable, which copies wait for
  bool dtypes = true;             ///< else those that an empty tensor can be made of
};

/// Thread-safe.
class AcceleratorDevice : public Device {
 public:
  explicit AcceleratorDevice(c10::Device device, const AcceleratorSupport& support = {});
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
  /// These throw Error{kDevice} where the back end has no generator.
  at::Tensor random_state() const override;
  void set_random_state(const at::Tensor& state) override;
  void seed(uint64_t seed) override;

  const AcceleratorSupport& support() const { return support_; }

 private:
  c10::DeviceAllocator& allocator() const;
  c10::Stream make_stream();
  std::unique_ptr<Queue> queue_on(const c10::Stream& stream) const;
  const at::Generator& generator() const;
  c10::Device device_;
  AcceleratorSupport support_;
  c10::impl::VirtualGuardImpl guard_;
  std::shared_ptr<Event> origin_;  ///< from which events count seconds; null: events have no time
  mutable std::mutex mutex_;
  std::map<c10::StreamId, std::unique_ptr<Queue>> queues_;  ///< that were current somewhere
  std::map<c10::StreamId, c10::Stream> streams_;            ///< that this process uses
};

}  // namespace trireme::device
