// What all back ends that move bytes of the host's memory share: the copies between a device and pinned memory. Internal to
// comm/.
#pragma once

#include <memory>
#include <vector>

#include "trireme/comm/request_group.h"
#include "trireme/comm/transfer.h"

namespace trireme::comm {

/// A back end's part of one group, on one rank. Shared by the group and its transfers.
class Carrier {
 public:
  virtual ~Carrier() = default;
  /// Takes a transfer whose bytes are in the host's memory; ends in arrived() or fail(). Returns before that. May throw, which
  /// fails the transfer. One thread at a time, in issue order.
  virtual void start(const TransferRef& transfer) = 0;
  /// Blocks until the transfer ended; after a time-out, what it waits for included, fails it with an error that names who is
  /// missing. Does not throw.
  virtual void wait(const TransferRef& transfer) = 0;
};

/// The copies of one group's device, each way on a thread and a queue of its own: the first waits for what the issuing queue
/// has, the second for nothing but its copy.
class Staging;
class DeviceClock;

/// A Group over a Carrier. On the CPU transfers start on the issuing thread, else on a thread of the group's when the bytes
/// are in pinned memory.
class StagedGroup final : public RequestGroup {
 public:
  /// As RequestGroup. The carrier may be null in a group of one; `clock` as Staging has it.
  StagedGroup(std::vector<int> members, int rank, device::Device& device,
              std::shared_ptr<Carrier> carrier, std::shared_ptr<const DeviceClock> clock = nullptr);
  ~StagedGroup() override;

 private:
  Pending start(Request request, device::Queue& after) override;

  const std::shared_ptr<Carrier> carrier_;
  std::shared_ptr<Staging> staging_;  ///< null on the CPU
};

}  // namespace trireme::comm
