// What all back ends that move bytes of the host's memory share: checks, counts, and the copies between a device and pinned
// memory. Internal to comm/.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

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
/// are in pinned memory. In a group of one, collectives are copies in the issuing queue.
class StagedGroup final : public Group {
 public:
  /// `members` in the world's ranks; `rank` is this one's place among them. Borrows the device. The carrier may be null in a
  /// group of one; `clock` as Staging has it.
  StagedGroup(std::vector<int> members, int rank, device::Device& device,
              std::shared_ptr<Carrier> carrier, std::shared_ptr<const DeviceClock> clock = nullptr);
  ~StagedGroup() override;

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(members_.size()); }
  const std::vector<int>& members() const override { return members_; }

  Pending send(const at::Tensor& tensor, int to, device::Queue& after) override;
  Pending receive(const at::Tensor& tensor, int from, device::Queue& after) override;
  Pending all_to_all(const at::Tensor& out, const std::vector<int64_t>& out_counts,
                     const at::Tensor& in, const std::vector<int64_t>& in_counts,
                     device::Queue& after) override;
  Pending all_gather(const at::Tensor& out, const std::vector<int64_t>& counts,
                     const at::Tensor& in, device::Queue& after) override;
  Pending broadcast(const at::Tensor& tensor, int root, device::Queue& after) override;
  Pending all_reduce(const at::Tensor& tensor, device::Queue& after) override;
  Pending reduce_scatter(const at::Tensor& out, const at::Tensor& in,
                         const std::vector<int64_t>& counts, device::Queue& after) override;
  Traffic traffic() const override { return traffic_; }

 private:
  Request request_of(TransferKind kind, const at::Tensor& tensor) const;
  Pending issue(Request request, device::Queue& after);
  void count(const Request& request);
  void check(TransferKind kind, const at::Tensor& tensor, c10::ScalarType dtype) const;
  std::vector<int64_t> bytes_of(TransferKind kind, const at::Tensor& tensor,
                                const std::vector<int64_t>& counts) const;
  void check_peer(TransferKind kind, int peer) const;

  const std::vector<int> members_;
  const int rank_;
  device::Device& device_;
  const std::shared_ptr<Carrier> carrier_;
  std::shared_ptr<Staging> staging_;  ///< null on the CPU
  int64_t num_collectives_ = 0;
  std::vector<int64_t> num_sends_;
  std::vector<int64_t> num_receives_;
  Traffic traffic_;
};

}  // namespace trireme::comm
