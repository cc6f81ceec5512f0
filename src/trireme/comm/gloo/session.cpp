#include "trireme/comm/gloo/session.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <utility>

#include "trireme/base/clock.h"
#include "trireme/base/error.h"
#include "trireme/comm/rank_names.h"

namespace trireme::comm {
namespace {

constexpr const char* kHint =
    "look at what that rank printed last; the run can be resumed from its last checkpoint";
/// For others to read what they still want from a store that may end with rank 0.
constexpr double kFarewell_s = 5.0;

std::string first_line(const std::exception& error) {
  const std::string text = error.what();
  return text.substr(0, text.find('\n'));
}

std::chrono::duration<double> seconds(double value) {
  return std::chrono::duration<double>(value);
}

}  // namespace

GlooSession::GlooSession(c10::intrusive_ptr<c10d::Store> store, int rank, int size,
                         const GlooOptions& options)
    : store_(std::move(store)), rank_(rank), size_(size), options_(options) {
  TRIREME_CHECK(size >= 1 && rank >= 0 && rank < size, "rank {} of {}", rank, size);
  hosts_ = exchange(this_host(), "the rendezvous");
  watcher_ = std::thread([this] { watch(); });
}

GlooSession::~GlooSession() {
  bool aborted = false;
  {
    const std::lock_guard lock(mutex_);
    aborted = !aborted_.empty();
    stop_ = true;
    stopped_.notify_all();
  }
  watcher_.join();
  if (aborted) return;
  // Rank 0 is the last to leave: the store may be in its process.
  try {
    if (rank_ != 0) {
      store_->add(key("left"), 1);
      return;
    }
    const double deadline_s = steady_clock().now_s() + kFarewell_s;
    while (store_->add(key("left"), 0) < size_ - 1 && steady_clock().now_s() < deadline_s &&
           reason_in_store().empty())
      std::this_thread::sleep_for(seconds(1e-3));
  } catch (const std::exception&) {  // then nobody can say or hear it
  }
}

std::string GlooSession::name_ranks(const std::vector<int>& ranks) const {
  return name_ranks_by_host(ranks, hosts_);
}

std::vector<std::string> GlooSession::exchange(const std::string& bytes, const std::string& what) {
  const std::lock_guard one_at_a_time(exchange_mutex_);
  const int64_t number = num_exchanges_++;
  const auto key_of = [&](int64_t exchange, int rank) {
    return key(fmt::format("exchange/{}/{}", exchange, rank));
  };
  std::vector<std::string> parts;
  try {
    store_->set(key_of(number, rank_), ":" + bytes);  // some stores take nothing for no value
    const double deadline_s = steady_clock().now_s() + options_.timeout_s;
    double pause_s = 1e-4;
    while (static_cast<int>(parts.size()) < size_) {
      const std::string theirs = key_of(number, static_cast<int>(parts.size()));
      if (store_->check({theirs})) {
        parts.push_back(store_->get_to_str(theirs).substr(1));
        continue;
      }
      std::unique_lock lock(mutex_);
      const bool ended =
          stopped_.wait_for(lock, seconds(pause_s), [&] { return !aborted_.empty(); });
      if (ended) throw Error(ErrorCode::kDevice, aborted_, kHint);
      lock.unlock();
      if (hosts_.empty()) {  // nobody watches yet
        const std::string reason = reason_in_store();
        if (!reason.empty()) throw Error(ErrorCode::kDevice, reason, kHint);
      }
      if (steady_clock().now_s() > deadline_s) {
        std::vector<int> missing;
        for (int rank = static_cast<int>(parts.size()); rank < size_; ++rank) {
          if (!store_->check({key_of(number, rank)})) missing.push_back(rank);
        }
        const std::string reason = fmt::format("{} did not come to {} within {:g} s",
                                               name_ranks(missing), what, options_.timeout_s);
        abort(reason);
        throw Error(ErrorCode::kDevice, reason, kHint);
      }
      pause_s = std::min(2 * pause_s, 0.02);
    }
    // Whoever came here has read all of the exchange before the last.
    if (number >= 2) store_->deleteKey(key_of(number - 2, rank_));
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    const std::string reason =
        fmt::format("the store does not answer rank {}: {}", rank_, first_line(error));
    end(reason);
    throw Error(ErrorCode::kDevice, reason,
                "look at the process that has it: rank 0's, or the launcher");
  }
  return parts;
}

// ---- giving up -----------------------------------------------------------------------------------

std::string GlooSession::reason_in_store() {
  if (!store_->check({key("abort")})) return "";
  return store_->get_to_str(key("abort"));
}

void GlooSession::watch() {
  pthread_setname_np(pthread_self(), "comm-watch");
  std::unique_lock lock(mutex_);
  while (!stop_ && aborted_.empty()) {
    stopped_.wait_for(lock, seconds(options_.watch_s));
    if (stop_ || !aborted_.empty()) return;
    lock.unlock();
    std::string reason;
    try {
      reason = reason_in_store();
    } catch (const std::exception& error) {
      reason = fmt::format("the store does not answer rank {}: {}", rank_, first_line(error));
    }
    if (!reason.empty()) end(reason);
    lock.lock();
  }
}

void GlooSession::abort(const std::string& reason) {
  std::string first;
  try {
    first = reason_in_store();
    if (first.empty()) store_->set(key("abort"), reason);
  } catch (const std::exception&) {  // the others learn from closed connections
  }
  end(first.empty() ? reason : first);
}

void GlooSession::end(const std::string& reason) {
  std::map<const Transfer*, Entry> active;
  {
    const std::lock_guard lock(mutex_);
    if (!aborted_.empty()) return;
    aborted_ = reason;
    active = std::exchange(active_, {});
    stopped_.notify_all();
  }
  for (const auto& [transfer, entry] : active) {
    entry.transfer->fail(std::make_exception_ptr(Error(
        ErrorCode::kDevice, fmt::format("{} was ended: {}", transfer->name(), reason), kHint)));
    entry.wake();
  }
}

bool GlooSession::enter(const TransferRef& transfer, std::function<void()> wake) {
  const std::lock_guard lock(mutex_);
  if (aborted_.empty()) {
    active_[transfer.get()] = {transfer, std::move(wake)};
    return true;
  }
  transfer->fail(std::make_exception_ptr(Error(
      ErrorCode::kDevice, fmt::format("{} was ended: {}", transfer->name(), aborted_), kHint)));
  return false;
}

void GlooSession::leave(const TransferRef& transfer) {
  const std::lock_guard lock(mutex_);
  active_.erase(transfer.get());
}

}  // namespace trireme::comm
