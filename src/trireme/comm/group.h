// Ranks that talk to each other: groups, transfers, collectives.
//
// Every transfer is asynchronous: it is issued in order, runs beside computation, and is waited for where the program says
// so. Back ends: local/ (ranks are threads of a process; over a modelled link if wanted), gloo/ (processes, TCP). Only this
// room knows c10d.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "trireme/device/device.h"

namespace trireme::comm {

/// A transfer that was issued. One thread. Destroying it does not wait.
class Work {
 public:
  virtual ~Work() = default;
  /// Whether it ended, well or not. Does not block.
  virtual bool done() const = 0;
  /// What is issued to `queue` from now on sees the result. On the CPU, and over back ends that move bytes with the host's
  /// threads, blocks until the transfer ended. Throws Error{kDevice} that names the rank and the transfer if a peer died or
  /// the time-out passed.
  virtual void wait(device::Queue& queue) = 0;
  /// When its bytes began to move and when the last one was there, seconds on steady_clock(), or on the device's own where
  /// it has one. After wait().
  virtual double start_s() const = 0;
  virtual double end_s() const = 0;
};

/// Bytes that this rank sent over a group since it was made; what it keeps for itself is not counted.
struct Traffic {
  int64_t sent_bytes = 0;
  int64_t received_bytes = 0;
  int64_t transfers = 0;
};

/// Some ranks, in order. Tensors are contiguous, on the device of the group, of any dtype, and stay as they are from the
/// issuing call until the work was waited for (the Work holds a reference). What the queue given has now is waited for
/// before bytes leave. All ranks of a group issue the same collectives in the same order; transfers between two ranks keep
/// their order per direction. Thread-safety: one thread issues. No call waits for a peer.
class Group {
 public:
  virtual ~Group() = default;
  virtual int rank() const = 0;  ///< of the caller in this group
  virtual int size() const = 0;
  /// By rank of this group: its rank in the world.
  virtual const std::vector<int>& members() const = 0;

  using Pending = std::unique_ptr<Work>;

  /// `tensor` to one rank / from one rank of this group.
  virtual Pending send(const at::Tensor& tensor, int to, device::Queue& after) = 0;
  virtual Pending receive(const at::Tensor& tensor, int from, device::Queue& after) = 0;

  /// Collective over the group. `in` is one piece after the other, piece r of `in_counts[r]` elements is for rank r; `out` takes
  /// the pieces of all ranks in their order, `out_counts[r]` elements from rank r. Counts may be 0, and what is in the
  /// diagonal is copied. Sends what is for others, once.
  virtual Pending all_to_all(const at::Tensor& out, const std::vector<int64_t>& out_counts,
                             const at::Tensor& in, const std::vector<int64_t>& in_counts,
                             device::Queue& after) = 0;
  /// Collective over the group. `out` is one piece after the other, piece r of `counts[r]` elements comes from rank r's `in`.
  /// `in` may be this rank's place in `out`. Every rank sends at most (size - 1) times its piece, or as a ring does.
  virtual Pending all_gather(const at::Tensor& out, const std::vector<int64_t>& counts,
                             const at::Tensor& in, device::Queue& after) = 0;
  /// Collective over the group; `root` is a rank of this group.
  virtual Pending broadcast(const at::Tensor& tensor, int root, device::Queue& after) = 0;
  /// Collective over the group, in place, in the transport's own order of additions: for `reduction = "fast"`. float32 and
  /// bfloat16 sums.
  virtual Pending all_reduce(const at::Tensor& tensor, device::Queue& after) = 0;
  /// Collective over the group. As all_reduce(), but rank r gets piece r, of `counts[r]` elements, alone.
  virtual Pending reduce_scatter(const at::Tensor& out, const at::Tensor& in,
                                 const std::vector<int64_t>& counts, device::Queue& after) = 0;

  virtual Traffic traffic() const = 0;
};

/// All ranks of a run, seen from one of them.
class World {
 public:
  virtual ~World() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  /// "gloo", "local" ...
  virtual std::string transport() const = 0;
  /// Host name of a rank, for messages.
  virtual std::string host(int rank) const = 0;
  /// This rank's place among those of its host: which of its devices is its own.
  int rank_on_host() const {
    int place = 0;
    for (int other = 0; other < rank(); ++other) place += host(other) == host(rank()) ? 1 : 0;
    return place;
  }

  /// Collective over the world: all ranks ask for the same groups in the same order, members or not. `members` are ranks of
  /// the world in ascending order. Tensors of the group are on `device`. Null for who is not a member. Blocks.
  virtual std::unique_ptr<Group> make_group(const std::vector<int>& members,
                                            device::Device& device) = 0;

  /// Collective over the world; small host bytes of each rank, by rank. For set-up and checkpoints, not for steps. Blocks.
  virtual std::vector<std::string> exchange(const std::string& bytes) = 0;
  /// Collective over the world. Throws Error{kDevice} that names who did not come within the time-out. Blocks.
  virtual void barrier() = 0;

  /// Throws Error{kDevice} if a rank is known to be lost or the world was aborted. For long work between transfers. From any thread.
  /// Does not block.
  virtual void check() {}

  /// Ends every pending and later transfer of all groups of this world with an error, here and at all peers, which are told
  /// `reason`. From any thread, at any time, more than once.
  virtual void abort(const std::string& reason) = 0;
};

/// A world of one rank, which needs no transport: collectives copy.
std::unique_ptr<World> single_rank();

}  // namespace trireme::comm
