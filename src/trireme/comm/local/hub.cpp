#include "trireme/comm/local/hub.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <utility>

#include "trireme/base/clock.h"
#include "trireme/base/error.h"
#include "trireme/base/thread_pool.h"
#include "trireme/comm/rank_names.h"
#include "trireme/comm/sum.h"

namespace trireme::comm {
namespace {

/// What costs less to copy than to wake a thread for.
constexpr int64_t kSmallBytes = 32 * 1024;
constexpr const char* kHint =
    "look at what that rank printed last; the run can be resumed from its last checkpoint";

std::chrono::steady_clock::time_point time_point(double seconds) {
  return std::chrono::steady_clock::time_point(
      std::chrono::nanoseconds(static_cast<int64_t>(seconds * 1e9)));
}

}  // namespace

LocalHub::LocalHub(int size, const LocalOptions& options)
    : size_(size),
      timeout_s_(options.timeout_s),
      late_(options.late),
      simulated_(options.simulated_clock),
      host_(this_host()),
      num_exchanges_(static_cast<size_t>(size), 0),
      gone_(static_cast<size_t>(size), 0),
      links_(size, options),
      timetable_(size, options) {
  const int num_workers = std::clamp(available_cpus(), 1, 4);
  for (int i = 0; i < num_workers; ++i) workers_.emplace_back([this] { work(); });
}

LocalHub::~LocalHub() {
  {
    const Lock lock(mutex_);
    stop_ = true;
    wake_workers_.notify_all();
  }
  for (std::thread& worker : workers_) worker.join();
  // What waits in a meeting holds it.
  for (auto& [transfer, entry] : active_) entry.second->late.clear();
}

std::string LocalHub::name_ranks(const std::vector<int>& ranks) const {
  return name_ranks_by_host(ranks, std::vector<std::string>(static_cast<size_t>(size_), host_));
}

namespace {

/// In what two sides of a transfer do not fit; empty: they do. Places are ranks of the group, or 0 for a sender and 1 for its
/// receiver.
std::string difference_between(const Transfer& one, size_t place, const Transfer& other,
                               size_t other_place) {
  const Request& a = one.request();
  const Request& b = other.request();
  if (is_collective(a.kind) && (a.kind != b.kind || a.peer != b.peer))
    return fmt::format("{} is {} there", one.name(), other.name());
  if (a.dtype != b.dtype)
    return fmt::format("{} is of {} here and of {} there", one.name(), c10::toString(a.dtype),
                       c10::toString(b.dtype));
  const auto compare = [&](int64_t given, int64_t taken) {
    if (given == taken) return std::string();
    return fmt::format("{}: {} bytes are sent where {} are expected", one.name(), given, taken);
  };
  switch (a.kind) {
    case TransferKind::kSend:
      return compare(static_cast<int64_t>(a.in.nbytes()), static_cast<int64_t>(b.out.nbytes()));
    case TransferKind::kReceive:
      return compare(static_cast<int64_t>(b.in.nbytes()), static_cast<int64_t>(a.out.nbytes()));
    case TransferKind::kAllReduce:
      return compare(static_cast<int64_t>(a.in.nbytes()), static_cast<int64_t>(b.in.nbytes()));
    default: {
      const std::string there = compare(a.to_bytes[other_place], b.from_bytes[place]);
      return there.empty() ? compare(b.to_bytes[place], a.from_bytes[other_place]) : there;
    }
  }
}

}  // namespace

// ---- meeting -------------------------------------------------------------------------------------

void LocalHub::add_group(int64_t number, const std::vector<int>& members) {
  const Lock lock(mutex_);
  groups_[number].members = members;
}

LocalHub::MeetingRef LocalHub::meeting_of(Group& group, int rank, const Request& request,
                                          size_t* place) {
  const bool collective = is_collective(request.kind);
  const bool sends = request.kind == TransferKind::kSend;
  const int from = sends ? rank : request.peer;
  const int to = sends ? request.peer : rank;
  *place = collective ? static_cast<size_t>(rank) : (sends ? 0 : 1);
  MeetingRef& meeting =
      collective ? group.collectives[request.number] : group.pairs[{from, to, request.number}];
  if (meeting == nullptr) {
    meeting = std::make_shared<Meeting>();
    if (collective) {
      meeting->ranks = group.members;
    } else {
      meeting->ranks = {group.members[static_cast<size_t>(from)],
                        group.members[static_cast<size_t>(to)]};
    }
    meeting->sides.resize(meeting->ranks.size());
    meeting->missing = static_cast<int>(meeting->ranks.size());
  }
  MeetingRef result = meeting;
  if (--result->missing == 0) {
    if (collective) {
      group.collectives.erase(request.number);
    } else {
      group.pairs.erase({from, to, request.number});
    }
  }
  return result;
}

void LocalHub::post(int64_t group, int rank, const TransferRef& transfer) {
  Lock lock(mutex_);
  size_t place = 0;
  const MeetingRef meeting = meeting_of(groups_.at(group), rank, transfer->request(), &place);
  auto side = std::make_shared<Side>();
  side->transfer = transfer;
  side->rank = meeting->ranks[place];
  meeting->sides[place] = side;
  active_[transfer.get()] = {side, meeting};
  if (!aborted_.empty()) {
    fail(side, ErrorCode::kDevice, fmt::format("{} was ended: {}", transfer->name(), aborted_));
    return;
  }
  if (meeting->missing > 0) fail_if_gone(*meeting);
  if (!match(*meeting, place)) return;
  if (transfer->wanted) want(*meeting);
  if (transfer->request().kind == TransferKind::kBroadcast) {
    start_broadcast(*meeting, place);
  } else if (meeting->missing == 0) {
    start_collective(meeting);
  }
  launch(lock);
}

/// Whether who came last wants the same as the others; else ends what they issued.
bool LocalHub::match(const Meeting& meeting, size_t place) {
  std::string difference;
  for (size_t other = 0; other < meeting.sides.size() && difference.empty(); ++other) {
    if (other == place || meeting.sides[other] == nullptr) continue;
    difference = difference_between(*meeting.sides[place]->transfer, place,
                                    *meeting.sides[other]->transfer, other);
    if (!difference.empty())
      difference = fmt::format("rank {} and rank {} differ: {}", meeting.ranks[place],
                               meeting.ranks[other], difference);
  }
  if (difference.empty()) return true;
  for (const SideRef& side : meeting.sides) {
    if (side != nullptr) fail(side, ErrorCode::kInternal, difference);
  }
  return false;
}

// ---- what moves ----------------------------------------------------------------------------------

namespace {

int64_t offset(const std::vector<int64_t>& bytes, size_t rank) {
  int64_t result = 0;
  for (size_t r = 0; r < rank; ++r) result += bytes[r];
  return result;
}

/// Where the piece for a rank begins in what its owner gives.
int64_t in_offset(const Request& request, size_t to) {
  switch (request.kind) {
    case TransferKind::kAllToAll:
    case TransferKind::kAllReduce:
    case TransferKind::kReduceScatter:
      return offset(request.to_bytes, to);
    default:
      return 0;
  }
}

int64_t out_offset(const Request& request, size_t from) {
  switch (request.kind) {
    case TransferKind::kAllToAll:
    case TransferKind::kAllReduce:
    case TransferKind::kAllGather:
      return offset(request.from_bytes, from);
    default:
      return 0;
  }
}

}  // namespace

/// A move of the piece that `from` has for `to`, whose copy is the whole of it.
LocalHub::Move LocalHub::move_between(const Meeting& meeting, size_t from, size_t to) {
  Move move;
  move.from = meeting.sides[from];
  move.to = meeting.sides[to];
  const Transfer& giver = *move.from->transfer;
  const Transfer& taker = *move.to->transfer;
  const Request& given = giver.request();
  const Request& taken = taker.request();
  // Between two, pieces are by rank of the group; sides are sender and receiver.
  const bool pair = !is_collective(given.kind);
  move.bytes = pair ? static_cast<int64_t>(given.in.nbytes()) : given.to_bytes[to];
  if (move.bytes == 0) return move;
  const char* source = giver.in_data() + in_offset(given, to);
  char* target = taker.out_data() + out_offset(taken, from);
  if (source != target) {
    move.copy = [source, target, bytes = move.bytes] {
      std::memcpy(target, source, static_cast<size_t>(bytes));
    };
  }
  return move;
}

void LocalHub::start_broadcast(Meeting& meeting, size_t place) {
  const auto root = static_cast<size_t>(meeting.sides[place]->transfer->request().peer);
  if (meeting.sides[root] != nullptr) {
    for (size_t r = 0; r < meeting.sides.size(); ++r) {
      const bool starts = r != root && meeting.sides[r] != nullptr && (r == place || root == place);
      if (!starts) continue;
      const SideRef leaf = meeting.sides[r];
      issue(meeting, move_between(meeting, root, r));
      part_done(leaf, -1.0, -1.0);
    }
  }
  if (meeting.missing == 0) part_done(meeting.sides[root], -1.0, -1.0);
}

void LocalHub::start_collective(const MeetingRef& meeting) {
  const size_t size = meeting->sides.size();
  const std::vector<SideRef> sides = meeting->sides;
  const TransferKind kind = sides[0]->transfer->request().kind;
  for (const SideRef& side : sides)
    meeting->ready_s = std::max(meeting->ready_s, side->transfer->ready_s);
  if (!is_collective(kind)) {
    issue(*meeting, move_between(*meeting, 0, 1));
  } else if (kind == TransferKind::kAllReduce || kind == TransferKind::kReduceScatter) {
    for (size_t owner = 0; owner < size; ++owner) start_sum(meeting, owner);
  } else {
    // In rounds in which each sends to one and takes from one, so that no link is wanted twice.
    for (size_t round = 0; round < size; ++round) {
      for (size_t from = 0; from < size; ++from)
        issue(*meeting, move_between(*meeting, from, (from + round) % size));
    }
  }
  for (const SideRef& side : sides) part_done(side, -1.0, -1.0);
}

/// The pieces of one owner come to it; the last one brings the sum.
void LocalHub::start_sum(const MeetingRef& meeting, size_t owner) {
  const size_t size = meeting->sides.size();
  const SideRef& adder = meeting->sides[owner];
  const Request& request = adder->transfer->request();
  const int64_t bytes = request.to_bytes[owner];
  if (bytes == 0) return;
  const bool to_all = request.kind == TransferKind::kAllReduce;
  // Each waits for the sum from now on: its piece is read until then, or it gets it.
  for (const SideRef& side : meeting->sides) ++side->parts;
  auto to_come = std::make_shared<int>(static_cast<int>(size) - 1);
  auto arrived_s = std::make_shared<double>(0.0);
  const auto add = [this, meeting, owner, bytes, to_all, arrived_s] {
    const SideRef& side_of_owner = meeting->sides[owner];
    std::vector<const char*> inputs;
    for (const SideRef& side : meeting->sides)
      inputs.push_back(side->transfer->in_data() + in_offset(side->transfer->request(), owner));
    char* target =
        side_of_owner->transfer->out_data() + out_offset(side_of_owner->transfer->request(), owner);
    Move sum;
    sum.from = side_of_owner;
    sum.to = side_of_owner;
    sum.bytes = bytes;
    sum.copy = [dtype = side_of_owner->transfer->request().dtype, inputs, target, bytes] {
      sum_pieces(dtype, inputs, target, bytes);
    };
    sum.ready_s = *arrived_s;
    sum.next = [this, meeting, owner, to_all](const Move& done) {
      if (to_all) send_sum(meeting, owner, done.end_s);
      for (const SideRef& side : meeting->sides) {
        if (!to_all || side == meeting->sides[owner]) part_done(side, -1.0, -1.0);
      }
    };
    issue(*meeting, std::move(sum));
  };
  for (size_t round = 1; round < size; ++round) {
    Move piece;
    piece.from = meeting->sides[(owner + size - round) % size];
    piece.to = adder;
    piece.bytes = bytes;
    piece.next = [to_come, arrived_s, add](const Move& done) {
      *arrived_s = std::max(*arrived_s, done.end_s);
      if (--*to_come == 0) add();
    };
    issue(*meeting, std::move(piece));
  }
}

void LocalHub::send_sum(const MeetingRef& meeting, size_t owner, double ready_s) {
  const size_t size = meeting->sides.size();
  const Transfer& giver = *meeting->sides[owner]->transfer;
  const char* source = giver.out_data() + out_offset(giver.request(), owner);
  for (size_t round = 1; round < size; ++round) {
    const size_t to = (owner + round) % size;
    Move sum;
    sum.from = meeting->sides[owner];
    sum.to = meeting->sides[to];
    sum.bytes = giver.request().to_bytes[owner];
    const Transfer& taker = *sum.to->transfer;
    char* target = taker.out_data() + out_offset(taker.request(), owner);
    sum.copy = [source, target, bytes = sum.bytes] {
      std::memcpy(target, source, static_cast<size_t>(bytes));
    };
    sum.ready_s = ready_s;
    sum.next = [this, taken = sum.to](const Move&) { part_done(taken, -1.0, -1.0); };
    issue(*meeting, std::move(sum));
  }
}

// ---- moving --------------------------------------------------------------------------------------

/// Counts the move in and gives it to its link; launch() follows.
void LocalHub::issue(Meeting& meeting, Move move) {
  if (move.bytes == 0) return;
  ++move.from->parts;
  ++move.to->parts;
  if (late_ && !meeting.wanted) {
    meeting.late.push_back(std::move(move));
    return;
  }
  if (simulated_) {
    const double ready_s = std::max(
        {meeting.ready_s, move.ready_s, move.from->transfer->ready_s, move.to->transfer->ready_s});
    const Links::Passage passage =
        timetable_.enter(move.from->rank, move.to->rank, move.bytes, ready_s);
    move.start_s = passage.start_s;
    move.end_s = passage.end_s;
    instant_.push_back(std::move(move));
  } else if (links_.is_modelled(move.from->rank, move.to->rank)) {
    const int64_t id = num_moves_++;
    links_.add(id, move.from->rank, move.to->rank, move.bytes, steady_clock().now_s());
    on_links_.emplace(id, std::move(move));
    wake_workers_.notify_one();
  } else {
    instant_.push_back(std::move(move));
  }
}

/// Somebody waits: what was late goes on its way; launch() follows.
void LocalHub::want(Meeting& meeting) {
  meeting.wanted = true;
  for (Move& move : std::exchange(meeting.late, {})) {
    --move.from->parts;  // counted in already
    --move.to->parts;
    issue(meeting, std::move(move));
  }
}

/// Copies what was issued, on this thread if it is little.
void LocalHub::launch(Lock& lock) {
  while (!instant_.empty()) {
    std::vector<Move> moves = std::exchange(instant_, {});
    int64_t bytes = 0;
    for (const Move& move : moves) bytes += move.bytes;
    if (bytes > kSmallBytes) {
      for (Move& move : moves) ready_.push_back(std::move(move));
      wake_workers_.notify_all();
      return;
    }
    lock.unlock();
    for (Move& move : moves) copy(move);
    lock.lock();
    for (Move& move : moves) complete(move);
  }
}

void LocalHub::copy(Move& move) const {
  if (!simulated_ && move.start_s < 0) move.start_s = steady_clock().now_s();
  if (move.copy) move.copy();
  if (!simulated_) move.end_s = steady_clock().now_s();
}

void LocalHub::complete(Move& move) {
  if (move.next) move.next(move);
  // What a rank does for itself is no beginning.
  const double start_s = move.from == move.to ? -1.0 : move.start_s;
  part_done(move.from, start_s, move.end_s);
  part_done(move.to, start_s, move.end_s);
}

/// Times below 0 say nothing.
void LocalHub::part_done(const SideRef& side, double start_s, double end_s) {
  if (start_s >= 0 && (side->start_s < 0 || start_s < side->start_s)) side->start_s = start_s;
  side->end_s = std::max(side->end_s, end_s);
  if (--side->parts > 0) return;
  if (side->end_s < 0)  // nothing moved
    side->end_s = simulated_ ? side->transfer->ready_s : steady_clock().now_s();
  if (side->start_s < 0) side->start_s = side->end_s;
  active_.erase(side->transfer.get());
  side->transfer->arrived(side->start_s, side->end_s);
}

void LocalHub::work() {
  pthread_setname_np(pthread_self(), "comm-local");
  Lock lock(mutex_);
  while (!stop_) {
    if (!ready_.empty()) {
      Move move = std::move(ready_.front());
      ready_.pop_front();
      lock.unlock();
      copy(move);
      lock.lock();
      complete(move);
      launch(lock);
      continue;
    }
    const double next_s = links_.next_s();
    if (std::isinf(next_s)) {
      wake_workers_.wait(lock);
      continue;
    }
    if (steady_clock().now_s() < next_s) {
      wake_workers_.wait_until(lock, time_point(next_s));
      continue;
    }
    for (const Links::Passage& passage : links_.advance(steady_clock().now_s())) {
      auto found = on_links_.find(passage.id);
      found->second.start_s = passage.start_s;
      ready_.push_back(std::move(found->second));
      on_links_.erase(found);
    }
    wake_workers_.notify_all();
  }
}

// ---- waiting and failing -------------------------------------------------------------------------

void LocalHub::wait(const TransferRef& transfer) {
  if (late_) {
    Lock lock(mutex_);
    transfer->wanted = true;
    const auto found = active_.find(transfer.get());
    if (found != active_.end()) {
      want(*found->second.second);
      launch(lock);
    }
  }
  if (transfer->wait_until_done(timeout_s_)) return;
  const Lock lock(mutex_);
  std::vector<int> missing;
  const auto found = active_.find(transfer.get());
  if (found != active_.end()) {
    const Meeting& meeting = *found->second.second;
    for (size_t i = 0; i < meeting.ranks.size(); ++i) {
      if (meeting.sides[i] == nullptr) missing.push_back(meeting.ranks[i]);
    }
  }
  const std::string reason =
      missing.empty() ? fmt::format("{} did not end within {:g} s", transfer->name(), timeout_s_)
                      : fmt::format("{} did not come to {} within {:g} s", name_ranks(missing),
                                    transfer->name(), timeout_s_);
  active_.erase(transfer.get());
  transfer->fail(std::make_exception_ptr(Error(ErrorCode::kDevice, reason, kHint)));
  fail_all(reason);
}

void LocalHub::fail(const SideRef& side, ErrorCode code, const std::string& reason) {
  active_.erase(side->transfer.get());
  side->transfer->fail(std::make_exception_ptr(Error(code, reason, kHint)));
}

void LocalHub::fail_all(const std::string& reason) {
  if (!aborted_.empty()) return;
  aborted_ = reason;
  has_ended_.store(true, std::memory_order_release);
  for (const auto& [transfer, entry] : std::exchange(active_, {})) {
    entry.second->late.clear();
    fail(entry.first, ErrorCode::kDevice,
         fmt::format("{} was ended: {}", transfer->name(), reason));
  }
  exchanged_.notify_all();
}

void LocalHub::abort(const std::string& reason) {
  const Lock lock(mutex_);
  fail_all(reason);
}

void LocalHub::check() {
  if (!has_ended_.load(std::memory_order_acquire)) return;  // asked before every instruction
  const Lock lock(mutex_);
  throw Error(ErrorCode::kDevice, aborted_, kHint);
}

/// Ends what those who came issued, if one who is missing has left.
void LocalHub::fail_if_gone(const Meeting& meeting) {
  for (size_t i = 0; i < meeting.ranks.size(); ++i) {
    const int rank = meeting.ranks[i];
    if (meeting.sides[i] != nullptr || gone_[static_cast<size_t>(rank)] == 0) continue;
    for (const SideRef& side : meeting.sides) {
      if (side != nullptr && active_.contains(side->transfer.get()))
        fail(side, ErrorCode::kDevice,
             fmt::format("{} has ended and does not come to {}", name_ranks({rank}),
                         side->transfer->name()));
    }
  }
}

void LocalHub::leave(int rank) {
  const Lock lock(mutex_);
  gone_[static_cast<size_t>(rank)] = 1;
  for (const auto& [number, group] : groups_) {
    for (const auto& [key, meeting] : group.collectives) fail_if_gone(*meeting);
    for (const auto& [key, meeting] : group.pairs) fail_if_gone(*meeting);
  }
  exchanged_.notify_all();
}

std::vector<std::string> LocalHub::exchange(int rank, const std::string& bytes,
                                            const std::string& what) {
  Lock lock(mutex_);
  const int64_t number = num_exchanges_[static_cast<size_t>(rank)]++;
  std::shared_ptr<Exchange>& entry = exchanges_[number];
  if (entry == nullptr) {
    entry = std::make_shared<Exchange>();
    entry->parts.resize(static_cast<size_t>(size_));
    entry->came.resize(static_cast<size_t>(size_), 0);
    entry->missing = size_;
    entry->reading = size_;
  }
  const std::shared_ptr<Exchange> meeting = entry;
  meeting->parts[static_cast<size_t>(rank)] = bytes;
  meeting->came[static_cast<size_t>(rank)] = 1;
  if (--meeting->missing == 0) exchanged_.notify_all();
  const auto missing = [&](bool gone) {
    std::vector<int> ranks;
    for (int r = 0; r < size_; ++r) {
      const auto at = static_cast<size_t>(r);
      if (meeting->came[at] == 0 && (!gone || gone_[at] != 0)) ranks.push_back(r);
    }
    return ranks;
  };
  const bool in_time = exchanged_.wait_for(lock, std::chrono::duration<double>(timeout_s_), [&] {
    return meeting->missing == 0 || !aborted_.empty() || !missing(true).empty();
  });
  if (meeting->missing > 0) {
    if (!aborted_.empty()) throw Error(ErrorCode::kDevice, aborted_, kHint);
    const std::string reason = in_time ? fmt::format("{} has ended and does not come to {}",
                                                     name_ranks(missing(true)), what)
                                       : fmt::format("{} did not come to {} within {:g} s",
                                                     name_ranks(missing(false)), what, timeout_s_);
    if (!in_time) fail_all(reason);
    throw Error(ErrorCode::kDevice, reason, kHint);
  }
  if (--meeting->reading > 0) return meeting->parts;
  exchanges_.erase(number);
  return std::move(meeting->parts);
}

}  // namespace trireme::comm
