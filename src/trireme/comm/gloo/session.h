// What a rank knows of its world beside the data: the store, who is where, whether somebody gave up. Internal to gloo/.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "trireme/comm/gloo/gloo_world.h"
#include "trireme/comm/transfer.h"

namespace trireme::comm {

/// Thread-safe. A thread looks in the store for other ranks' aborts while it lives.
class GlooSession {
 public:
  /// Blocks until all ranks have come.
  GlooSession(c10::intrusive_ptr<c10d::Store> store, int rank, int size,
              const GlooOptions& options);
  ~GlooSession();
  GlooSession(const GlooSession&) = delete;
  GlooSession& operator=(const GlooSession&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  const std::string& host(int rank) const { return hosts_.at(static_cast<size_t>(rank)); }
  const c10::intrusive_ptr<c10d::Store>& store() const { return store_; }
  double timeout_s() const { return options_.timeout_s; }
  /// "rank 3 (host)", "rank 1 (a), rank 3 (b)"
  std::string name_ranks(const std::vector<int>& ranks) const;

  /// By rank, what each gave. Blocks until all have come to `what`. Throws Error{kDevice}.
  std::vector<std::string> exchange(const std::string& bytes, const std::string& what);

  /// Ends the run for all ranks: what is under way and what comes later fails with `reason`, or with that of another rank that
  /// was first.
  void abort(const std::string& reason);

  /// From now until leave(), an abort fails the transfer and calls `wake`, from any thread, once at the most. If there was one
  /// already, fails it at once and returns false.
  bool enter(const TransferRef& transfer, std::function<void()> wake);
  void leave(const TransferRef& transfer);

 private:
  std::string key(const std::string& name) const { return "comm/" + name; }
  void watch();
  std::string reason_in_store();
  void end(const std::string& reason);

  const c10::intrusive_ptr<c10d::Store> store_;
  const int rank_;
  const int size_;
  const GlooOptions options_;
  std::vector<std::string> hosts_;

  std::mutex mutex_;
  std::condition_variable stopped_;
  bool stop_ = false;
  std::string aborted_;  ///< empty: not
  struct Entry {
    TransferRef transfer;
    std::function<void()> wake;
  };
  std::map<const Transfer*, Entry> active_;
  std::mutex exchange_mutex_;
  int64_t num_exchanges_ = 0;
  std::thread watcher_;
};

}  // namespace trireme::comm
