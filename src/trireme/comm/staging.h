// Copies between a device and the host's pinned memory beside everything else. Internal to comm/.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "trireme/comm/serial_thread.h"
#include "trireme/comm/transfer.h"

namespace trireme::comm {

/// Time of a device that is simulated: what the calling thread issues starts no earlier than its clock, and waiting for an
/// event sets it to the event's time, if that is later.
class DeviceClock {
 public:
  virtual ~DeviceClock() = default;
  virtual double seconds() const = 0;
  virtual void set(double seconds) const = 0;
};

/// Of one group's device. Each way has a thread and a queue of its own: what leaves waits for what the issuing queue has, what
/// comes waits for nothing but its copy. Shared by the group and its transfers. Borrows the device.
class Staging : public std::enable_shared_from_this<Staging> {
 public:
  /// `clock`: transfers arrive on it; null: on the wall clock.
  explicit Staging(device::Device& device, std::shared_ptr<const DeviceClock> clock);

  /// Returns at once. When `ready` is reached and the bytes of `in` are in pinned memory, calls `start` on the thread for
  /// what leaves. When the transfer arrived, its bytes go to `out`, and it is finished.
  void issue(const TransferRef& transfer, std::unique_ptr<device::Event> ready,
             std::function<void(const TransferRef&)> start);
  /// Blocks until what was issued has left and what has arrived is copied; what arrives later fails.
  void close();

 private:
  void copy_out(const TransferRef& transfer, const device::Event& ready);
  void copy_in(const TransferRef& transfer);
  device::Queue& in_queue(const Request& request);
  at::Tensor take(const at::Tensor& like);
  void give_back(at::Tensor& host);

  device::Device& device_;
  const std::shared_ptr<const DeviceClock> clock_;
  std::unique_ptr<device::Queue> out_queue_;  ///< of the thread for what leaves
  /// By what comes: nothing is behind what arrives later.
  std::map<std::pair<TransferKind, int>, std::unique_ptr<device::Queue>> in_queues_;
  std::mutex mutex_;
  std::multimap<std::pair<c10::ScalarType, int64_t>, at::Tensor>
      spare_;  ///< flat; by type and elements
  SerialThread leaving_{"comm-out"};
  SerialThread coming_{"comm-in"};
};

}  // namespace trireme::comm
