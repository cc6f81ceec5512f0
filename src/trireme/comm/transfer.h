// One transfer under way: what every back end of this room shares. Internal to comm/.
#pragma once

#include <ATen/core/Tensor.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "trireme/comm/group.h"

namespace trireme::comm {

enum class TransferKind {
  kSend,
  kReceive,
  kAllToAll,
  kAllGather,
  kBroadcast,
  kAllReduce,
  kReduceScatter
};
const char* to_string(TransferKind kind);
inline bool is_collective(TransferKind kind) {
  return kind != TransferKind::kSend && kind != TransferKind::kReceive;
}

/// What was asked for, in bytes. Immutable once it is issued.
struct Request {
  TransferKind kind = TransferKind::kSend;
  int64_t number =
      0;  ///< among this rank's collectives of the group; or among its sends to, receives from, a peer
  int peer = -1;  ///< kSend, kReceive: the other; kBroadcast: the root
  c10::ScalarType dtype = c10::ScalarType::Byte;
  /// On the group's device; undefined where this rank gives or takes nothing. kAllReduce: the same.
  at::Tensor in;
  at::Tensor out;
  /// By rank of the group: bytes of the piece that goes to it / comes from it, in that order in memory. kAllGather: `to` is the
  /// whole of `in`, for everybody. kAllReduce: the pieces whose owner adds them. kBroadcast and between two ranks: 0 but for
  /// who takes part.
  std::vector<int64_t> to_bytes;
  std::vector<int64_t> from_bytes;
};

/// "0,1,2,3"
std::string list_ranks(const std::vector<int>& ranks);
/// "all_gather #12 of group 0,1,2,3", "send #3 to rank 2 of group 1,2": ranks of the world.
std::string describe(const Request& request, const std::vector<int>& members);
/// Throws where they are not some of `size` ranks in ascending order.
void check_members(const std::vector<int>& members, int size);
/// Throws where ranks, by rank of the world, make different groups at once.
void check_same_group(const std::vector<std::string>& lists, int rank);
/// This machine's, as the system says it.
std::string this_host();

/// The host's side of a transfer: bytes in the host's memory that a back end moves. Thread-safe.
class Transfer : public std::enable_shared_from_this<Transfer> {
 public:
  Transfer(Request request, std::string name)
      : request_(std::move(request)), name_(std::move(name)) {}
  const Request& request() const { return request_; }
  const std::string& name() const { return name_; }

  /// The host's bytes of `in` and `out`: of the tensors themselves on the CPU, of pinned copies else. Set before a back end
  /// sees the transfer.
  at::Tensor host_in;
  at::Tensor host_out;
  const char* in_data() const;
  char* out_data() const;

  /// Where a device's clock counts (DeviceClock): when `in` had left and `out` could be written.
  double ready_s = 0.0;
  /// Set by a back end once somebody waits for it, where that makes a difference.
  std::atomic<bool> wanted{false};
  /// The rank of the group whose part is missing, where a back end knows; -1: none, or not known.
  std::atomic<int> waits_for{-1};

  /// Called once by the back end, from any thread, when `host_out` is complete and nobody reads `host_in` any more; seconds
  /// on steady_clock(). What comes after is set by who issued it.
  void arrived(double start_s, double end_s);
  /// Ends it with an error, if it has not ended. From any thread, also while bytes move: they stay in memory until then.
  void fail(std::exception_ptr error);

  bool done() const;
  bool failed() const;
  /// Blocks until it ended or `timeout_s` passed; false if that passed. Does not throw.
  bool wait_until_done(double timeout_s) const;
  /// After the end: throws what it failed with.
  void rethrow() const;

  double start_s() const { return start_s_; }
  double end_s() const { return end_s_; }

  /// Once it was waited for: lets go of the tensors. A back end's thread may keep the transfer a moment longer, and their memory
  /// would go when that thread runs again.
  void let_go();

  /// What follows arrived(), where the bytes go on to a device; ends in finish(). Empty: arrived() is the end.
  std::function<void(std::shared_ptr<Transfer>)> then;
  void finish(double start_s, double end_s);
  /// Of the device: reached when `in` has left, and from finish() on when `out` is there. Null on the CPU.
  std::unique_ptr<device::Event> event;

 private:
  Request request_;
  const std::string name_;
  mutable std::mutex mutex_;
  mutable std::condition_variable ended_;
  bool done_ = false;
  std::exception_ptr error_;
  double start_s_ = 0.0;
  double end_s_ = 0.0;
};
using TransferRef = std::shared_ptr<Transfer>;

}  // namespace trireme::comm
