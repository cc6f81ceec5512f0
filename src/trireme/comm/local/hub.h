// What the ranks of one process share: where transfers meet, the links, and the threads that copy. Internal to local/.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "trireme/base/error.h"
#include "trireme/comm/local/links.h"
#include "trireme/comm/local/local_world.h"
#include "trireme/comm/local/timetable.h"
#include "trireme/comm/transfer.h"

namespace trireme::comm {

/// Thread-safe. Bytes move when both sides have issued the transfer, on threads of the hub's: at once, or when the modelled
/// links have had their time. Collectives but broadcast() begin when all have come.
class LocalHub {
 public:
  LocalHub(int size, const LocalOptions& options);
  /// Nobody waits any more; the threads end.
  ~LocalHub();
  LocalHub(const LocalHub&) = delete;
  LocalHub& operator=(const LocalHub&) = delete;

  int size() const { return size_; }
  const std::string& host() const { return host_; }
  bool is_simulated() const { return simulated_; }

  /// The group that ranks ask for as their `number`-th: the same for all of them.
  void add_group(int64_t number, const std::vector<int>& members);
  /// `rank` is of the group.
  void post(int64_t group, int rank, const TransferRef& transfer);
  /// Blocks until the transfer ended; after the time-out everything ends with an error that says who is missing.
  void wait(const TransferRef& transfer);

  /// By rank of the world, what each gave. Blocks until all have come to `what`. Throws Error{kDevice}.
  std::vector<std::string> exchange(int rank, const std::string& bytes, const std::string& what);

  /// What is under way and what comes later ends with an error that says `reason`.
  void abort(const std::string& reason);
  /// Throws Error{kDevice} after abort().
  void check();
  /// A rank whose world is gone issues nothing any more.
  void leave(int rank);
  /// "rank 3 (host)", "ranks 1 and 3 (host)"
  std::string name_ranks(const std::vector<int>& ranks) const;

 private:
  using Lock = std::unique_lock<std::mutex>;
  struct Meeting;
  /// A rank's side of a transfer: how many of its parts are still to come.
  struct Side {
    TransferRef transfer;
    int rank = 0;           ///< of the world
    int parts = 1;          ///< 1 until all of them are known
    double start_s = -1.0;  ///< when its first byte moved
    double end_s = -1.0;
  };
  using SideRef = std::shared_ptr<Side>;
  /// Bytes from one side to another: `copy` when their time is over, then, with the lock held, `next`.
  struct Move {
    SideRef from;
    SideRef to;
    int64_t bytes = 0;
    std::function<void()> copy;
    std::function<void(const Move&)> next;
    double ready_s = 0.0;  ///< on a simulated clock: not before, whatever its sides say
    double start_s = -1.0;
    double end_s = -1.0;
  };
  /// The sides of one transfer, by rank of the group; of a transfer between two, sender and receiver.
  struct Meeting {
    std::vector<int> ranks;  ///< of the world
    std::vector<SideRef> sides;
    int missing = 0;
    double ready_s = 0.0;    ///< on a simulated clock: when all had come, of what begins then
    bool wanted = false;     ///< somebody waits
    std::vector<Move> late;  ///< until then
  };
  using MeetingRef = std::shared_ptr<Meeting>;
  struct Group {
    std::vector<int> members;
    std::map<int64_t, MeetingRef> collectives;                  ///< not complete yet
    std::map<std::tuple<int, int, int64_t>, MeetingRef> pairs;  ///< from, to, number
  };
  struct Exchange {
    std::vector<std::string> parts;
    std::vector<char> came;
    int missing = 0;
    int reading = 0;
  };

  MeetingRef meeting_of(Group& group, int rank, const Request& request, size_t* place);
  bool match(const Meeting& meeting, size_t place);
  void start_broadcast(Meeting& meeting, size_t place);
  void start_collective(const MeetingRef& meeting);
  void start_sum(const MeetingRef& meeting, size_t owner);
  void send_sum(const MeetingRef& meeting, size_t owner, double ready_s);
  static Move move_between(const Meeting& meeting, size_t from, size_t to);

  void issue(Meeting& meeting, Move move);
  void want(Meeting& meeting);
  void launch(Lock& lock);
  void copy(Move& move) const;
  void complete(Move& move);
  void part_done(const SideRef& side, double start_s, double end_s);
  void fail(const SideRef& side, ErrorCode code, const std::string& reason);
  void fail_all(const std::string& reason);
  void fail_if_gone(const Meeting& meeting);
  void work();

  const int size_;
  const double timeout_s_;
  const bool late_;
  const bool simulated_;  ///< times are a simulated clock's
  const std::string host_;

  std::mutex mutex_;
  std::condition_variable wake_workers_;
  std::condition_variable exchanged_;
  std::map<int64_t, Group> groups_;
  std::map<int64_t, std::shared_ptr<Exchange>> exchanges_;
  std::vector<int64_t> num_exchanges_;                                ///< by rank
  std::map<const Transfer*, std::pair<SideRef, MeetingRef>> active_;  ///< posted and not ended
  std::vector<char> gone_;
  std::string aborted_;                  ///< empty: not
  std::atomic<bool> has_ended_ = false;  ///< set after aborted_
  Links links_;
  Timetable timetable_;
  int64_t num_moves_ = 0;
  std::map<int64_t, Move> on_links_;
  std::vector<Move> instant_;  ///< issued, to be launched
  std::deque<Move> ready_;     ///< to be copied
  bool stop_ = false;
  std::vector<std::thread> workers_;
};

}  // namespace trireme::comm
