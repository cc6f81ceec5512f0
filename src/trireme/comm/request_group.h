// What all groups share whose transfers are Requests: checks, numbers, counts, and groups of one. Internal to comm/.
#pragma once

#include <cstdint>
#include <vector>

#include "trireme/comm/transfer.h"

namespace trireme::comm {

/// A Group that checks what is asked for and hands it on as a Request. In a group of one, collectives are copies in the
/// issuing queue.
class RequestGroup : public Group {
 public:
  /// `members` in the world's ranks; `rank` is this one's place among them. Borrows the device.
  RequestGroup(std::vector<int> members, int rank, device::Device& device);

  int rank() const final { return rank_; }
  int size() const final { return static_cast<int>(members_.size()); }
  const std::vector<int>& members() const final { return members_; }

  Pending send(const at::Tensor& tensor, int to, device::Queue& after) final;
  Pending receive(const at::Tensor& tensor, int from, device::Queue& after) final;
  Pending all_to_all(const at::Tensor& out, const std::vector<int64_t>& out_counts,
                     const at::Tensor& in, const std::vector<int64_t>& in_counts,
                     device::Queue& after) final;
  Pending all_gather(const at::Tensor& out, const std::vector<int64_t>& counts,
                     const at::Tensor& in, device::Queue& after) final;
  Pending broadcast(const at::Tensor& tensor, int root, device::Queue& after) final;
  Pending all_reduce(const at::Tensor& tensor, device::Queue& after) final;
  Pending reduce_scatter(const at::Tensor& out, const at::Tensor& in,
                         const std::vector<int64_t>& counts, device::Queue& after) final;
  Traffic traffic() const final { return traffic_; }

 protected:
  /// Issues a transfer of a group of two or more. Returns before it is done.
  virtual Pending start(Request request, device::Queue& after) = 0;
  device::Device& device() const { return device_; }

 private:
  Request request_of(TransferKind kind, const at::Tensor& tensor) const;
  Pending issue(Request request, device::Queue& after);
  Pending issue_collective(Request request, const at::Tensor& out, const at::Tensor& in,
                           device::Queue& after);
  void count(const Request& request);
  void check(TransferKind kind, const at::Tensor& tensor, c10::ScalarType dtype) const;
  std::vector<int64_t> bytes_of(TransferKind kind, const at::Tensor& tensor,
                                const std::vector<int64_t>& counts) const;
  void check_peer(TransferKind kind, int peer) const;
  void check_own_piece(TransferKind kind, const at::Tensor& piece,
                       const std::vector<int64_t>& counts) const;

  const std::vector<int> members_;
  const int rank_;
  device::Device& device_;
  int64_t num_collectives_ = 0;
  std::vector<int64_t> num_sends_;
  std::vector<int64_t> num_receives_;
  Traffic traffic_;
};

}  // namespace trireme::comm
