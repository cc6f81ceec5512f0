#include "trireme/base/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

namespace trireme {
namespace {

TEST(ThreadPool, CallsEachIndexOnce) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.num_threads(), threads);
    for (const int64_t count : {0, 1, 2, 1000}) {
      std::vector<std::atomic<int>> calls(static_cast<size_t>(count));
      pool.parallel_for(count, [&](int64_t i) { calls[static_cast<size_t>(i)]++; });
      for (const auto& call : calls) EXPECT_EQ(call.load(), 1);
    }
  }
}

TEST(ThreadPool, RunsOnSeveralThreads) {
  ThreadPool pool(2);
  // Each call waits for the other one: with one thread this would never end.
  std::atomic<int> arrived{0};
  pool.parallel_for(2, [&](int64_t) {
    ++arrived;
    while (arrived.load() < 2) std::this_thread::yield();
  });
  EXPECT_EQ(arrived.load(), 2);
}

TEST(ThreadPool, RethrowsAndStaysUsable) {
  ThreadPool pool(3);
  for (int round = 0; round < 20; ++round) {
    EXPECT_THROW(pool.parallel_for(100,
                                   [](int64_t i) {
                                     if (i == 17) throw std::runtime_error("seventeen");
                                   }),
                 std::runtime_error);
    std::atomic<int64_t> sum{0};
    pool.parallel_for(100, [&](int64_t i) { sum += i; });
    EXPECT_EQ(sum.load(), 4950);
  }
}

TEST(ThreadPool, ManyShortRoundsFinish) {
  ThreadPool pool(4);
  int64_t rounds = 0;
  for (int round = 0; round < 5000; ++round) {
    std::atomic<int> calls{0};
    pool.parallel_for(3, [&](int64_t) { ++calls; });
    rounds += calls.load() == 3;
  }
  EXPECT_EQ(rounds, 5000);
}

TEST(ThreadPool, KnowsTheMachine) {
  EXPECT_GE(available_cpus(), 1);
  EXPECT_EQ(ThreadPool().num_threads(), available_cpus());
}

}  // namespace
}  // namespace trireme
