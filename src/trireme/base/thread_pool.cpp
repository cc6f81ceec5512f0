#include "trireme/base/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace trireme {

struct ThreadPool::Impl {
  std::mutex mutex;
  std::condition_variable work_ready;
  std::condition_variable work_done;
  const std::function<void(int64_t)>* body = nullptr;
  int64_t next = 0;     // first index that nobody took
  int64_t count = 0;    // end of the indices; lowered to `next` after an exception
  int64_t running = 0;  // calls of body in progress
  uint64_t epoch = 0;   // counts calls of parallel_for
  bool stopping = false;
  std::exception_ptr failure;
  std::vector<std::jthread> threads;

  /// Takes indices until none is left. `lock` is held on entry and on return.
  void drain(std::unique_lock<std::mutex>& lock) {
    while (next < count) {
      const int64_t index = next++;
      ++running;
      lock.unlock();
      std::exception_ptr caught;
      try {
        (*body)(index);
      } catch (...) {
        caught = std::current_exception();
      }
      lock.lock();
      --running;
      if (caught) {
        if (!failure) failure = caught;
        count = next;  // nobody starts another index
      }
    }
    if (running == 0) work_done.notify_all();
  }

  void run_thread() {
    std::unique_lock lock(mutex);
    uint64_t seen = 0;
    while (true) {
      work_ready.wait(lock, [&] { return stopping || epoch != seen; });
      if (stopping) return;
      seen = epoch;
      drain(lock);
    }
  }
};

ThreadPool::ThreadPool(int num_threads) : impl_(std::make_unique<Impl>()) {
  const int total = num_threads > 0 ? num_threads : available_cpus();
  // The calling thread of parallel_for works too.
  for (int i = 1; i < total; ++i) {
    impl_->threads.emplace_back([impl = impl_.get()] { impl->run_thread(); });
  }
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->stopping = true;
  }
  impl_->work_ready.notify_all();
  impl_->threads.clear();
}

int ThreadPool::num_threads() const {
  return static_cast<int>(impl_->threads.size()) + 1;
}

void ThreadPool::parallel_for(int64_t count, const std::function<void(int64_t)>& body) {
  if (count <= 0) return;
  std::unique_lock lock(impl_->mutex);
  impl_->body = &body;
  impl_->next = 0;
  impl_->count = count;
  impl_->failure = nullptr;
  ++impl_->epoch;
  if (count > 1) impl_->work_ready.notify_all();
  impl_->drain(lock);
  impl_->work_done.wait(lock, [&] { return impl_->running == 0 && impl_->next >= impl_->count; });
  impl_->body = nullptr;
  impl_->count = 0;
  if (impl_->failure) std::rethrow_exception(std::exchange(impl_->failure, nullptr));
}

int available_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (::sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  // More CPUs than a cpu_set_t holds.
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace trireme
