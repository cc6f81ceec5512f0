// Threads for host-side work (tokenizing, reading, hashing). Tensor kernels use ATen's pool
// instead.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace trireme {

/// Runs tasks on a fixed number of threads.
/// Thread-safety: parallel_for may be called from one thread at a time. Ownership: joins its
/// threads on destruction.
class ThreadPool {
 public:
  explicit ThreadPool(
      int num_threads = 0);  ///< 0: as many as the process may use (its CPU affinity)
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  int num_threads() const;
  /// Calls body(i) for 0 <= i < count, in any order; blocks until all are done. The first exception
  /// is rethrown.
  void parallel_for(int64_t count, const std::function<void(int64_t)>& body);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// CPUs this process may run on.
int available_cpus();

}  // namespace trireme
