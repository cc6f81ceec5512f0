#include "trireme/device/cpu/caching_allocator.h"

#include <ATen/ops/empty.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "trireme/device/device.h"

namespace trireme::device {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kCaches = false;  // each block comes from malloc there
#else
constexpr bool kCaches = true;
#endif

struct Piece {
  unsigned char* begin;
  size_t bytes;
  unsigned char mark;
};

// Fills what it gets with a mark and checks the mark before freeing: overlapping blocks would show.
void exercise(CachingAllocator& allocator, uint64_t seed, int operations) {
  std::mt19937_64 random(seed);
  std::vector<Piece> live;
  for (int i = 0; i < operations; ++i) {
    if (live.empty() || (random() % 100 < 55 && live.size() < 64)) {
      const int magnitude = static_cast<int>(random() % 20);
      const size_t bytes = 1 + random() % ((size_t{1} << magnitude) + 1);
      auto* begin = static_cast<unsigned char*>(allocator.allocate(bytes));
      ASSERT_EQ(reinterpret_cast<uintptr_t>(begin) % CachingAllocator::kAlignment, 0u);
      const auto mark = static_cast<unsigned char>(random());
      std::memset(begin, mark, bytes);
      live.push_back({begin, bytes, mark});
    } else {
      const size_t index = random() % live.size();
      const Piece piece = live[index];
      for (size_t k = 0; k < piece.bytes; ++k) ASSERT_EQ(piece.begin[k], piece.mark) << "at " << k;
      allocator.free(piece.begin);
      live[index] = live.back();
      live.pop_back();
    }
  }
  for (const Piece& piece : live) {
    for (size_t k = 0; k < piece.bytes; ++k) ASSERT_EQ(piece.begin[k], piece.mark) << "at " << k;
    allocator.free(piece.begin);
  }
}

TEST(CachingAllocator, RandomUseNeverOverlapsAndFreesAll) {
  CachingAllocator allocator(size_t{64} << 20);
  exercise(allocator, 1, 4000);
  EXPECT_EQ(allocator.statistics().allocated_bytes, 0);
}

TEST(CachingAllocator, RandomUseFromFourThreads) {
  CachingAllocator allocator(size_t{64} << 20);
  std::vector<std::thread> threads;
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    threads.emplace_back([&allocator, seed] { exercise(allocator, seed, 1500); });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(allocator.statistics().allocated_bytes, 0);
}

TEST(CachingAllocator, NeighboursMergeIntoOneBlockThatServesTheirSum) {
  if (!kCaches) return;
  CachingAllocator allocator(size_t{64} << 20);
  constexpr size_t kBytes = size_t{1} << 20;
  for (const auto& order :
       std::vector<std::vector<int>>{{0, 1, 2}, {2, 1, 0}, {0, 2, 1}, {1, 0, 2}}) {
    std::vector<void*> blocks;
    for (int i = 0; i < 3; ++i) blocks.push_back(allocator.allocate(kBytes));
    const int64_t reserved = allocator.statistics().reserved_bytes;
    for (const int i : order) allocator.free(blocks[i]);
    void* whole = allocator.allocate(3 * kBytes);
    EXPECT_EQ(whole, blocks[0]);
    EXPECT_EQ(allocator.statistics().reserved_bytes, reserved);
    allocator.free(whole);
  }
}

TEST(CachingAllocator, TakesTheSmallestHoleThatFits) {
  if (!kCaches) return;
  CachingAllocator allocator(size_t{64} << 20);
  constexpr size_t kMiB = size_t{1} << 20;
  void* wide = allocator.allocate(4 * kMiB);
  void* wall1 = allocator.allocate(kMiB);
  void* narrow = allocator.allocate(2 * kMiB);
  void* wall2 = allocator.allocate(kMiB);
  allocator.free(wide);
  allocator.free(narrow);
  EXPECT_EQ(allocator.allocate(2 * kMiB), narrow);
  EXPECT_EQ(allocator.allocate(4 * kMiB), wide);
  allocator.free(wall1);
  allocator.free(wall2);
}

TEST(CachingAllocator, TheFreeEndGrowsInsteadOfBeingWasted) {
  if (!kCaches) return;
  CachingAllocator allocator(size_t{64} << 20);
  constexpr size_t kMiB = size_t{1} << 20;
  void* first = allocator.allocate(2 * kMiB);
  allocator.free(first);
  void* second = allocator.allocate(5 * kMiB);
  EXPECT_EQ(second, first);
  EXPECT_EQ(allocator.statistics().reserved_bytes, static_cast<int64_t>(5 * kMiB));
  allocator.free(second);
}

TEST(CachingAllocator, GoesOnInAnotherRangeWhenOneIsFull) {
  if (!kCaches) return;
  constexpr size_t kMiB = size_t{1} << 20;
  CachingAllocator allocator(4 * kMiB);
  std::vector<void*> blocks;
  for (int i = 0; i < 6; ++i) {
    blocks.push_back(allocator.allocate(3 * kMiB));
    std::memset(blocks.back(), i, 3 * kMiB);
  }
  EXPECT_EQ(allocator.statistics().reserved_bytes, static_cast<int64_t>(18 * kMiB));
  for (int i = 0; i < 6; ++i) {
    EXPECT_EQ(static_cast<char*>(blocks[i])[3 * kMiB - 1], static_cast<char>(i));
    allocator.free(blocks[i]);
  }
  void* larger = allocator.allocate(9 * kMiB);  // larger than a range
  std::memset(larger, 1, 9 * kMiB);
  allocator.free(larger);
}

TEST(CachingAllocator, CountsPeaksFromTheLastReset) {
  CachingAllocator allocator(size_t{64} << 20);
  void* a = allocator.allocate(1 << 20);
  void* b = allocator.allocate(1 << 20);
  allocator.free(b);
  EXPECT_EQ(allocator.statistics().allocated_bytes, 1 << 20);
  EXPECT_EQ(allocator.statistics().peak_allocated_bytes, 2 << 20);
  allocator.reset_peak();
  EXPECT_EQ(allocator.statistics().peak_allocated_bytes, 1 << 20);
  EXPECT_EQ(allocator.statistics().num_allocations, 2);
  allocator.free(a);
  EXPECT_EQ(allocator.allocate(0), nullptr);
}

TEST(CpuDevice, TensorsAreCountedAndTheirMemoryIsHeld) {
  Device& device = get_device("cpu");
  EXPECT_TRUE(cpu_allocator_installed());
  EXPECT_EQ(device.type(), "cpu");
  EXPECT_FALSE(device.name().empty());
  EXPECT_GT(device.total_memory_bytes(), 0);
  constexpr int64_t kFloats = int64_t{8} << 20;
  const int64_t before = device.memory().allocated_bytes;
  {
    const at::Tensor tensor = at::empty({kFloats}, at::kFloat);
    std::memset(tensor.data_ptr(), 0, kFloats * 4);
    EXPECT_EQ(device.memory().allocated_bytes - before, kFloats * 4);
  }
  EXPECT_EQ(device.memory().allocated_bytes, before);
  if (!kCaches) return;
  rusage first{}, second{};
  getrusage(RUSAGE_SELF, &first);
  for (int i = 0; i < 10; ++i) {
    const at::Tensor tensor = at::empty({kFloats}, at::kFloat);
    std::memset(tensor.data_ptr(), i, kFloats * 4);
  }
  getrusage(RUSAGE_SELF, &second);
  // Ten fresh mappings of 32 MiB would be 81,920 faults of 4 KiB.
  EXPECT_LT(second.ru_minflt - first.ru_minflt, 1000);
}

TEST(CpuDevice, UnknownNamesAreTheUsersError) {
  EXPECT_THROW(get_device("tpu"), std::exception);
}

TEST(CpuDevice, EventsOfTheCallingThreadAreDoneAndInOrder) {
  Queue& queue = get_device("cpu").compute_queue();
  const auto first = queue.record();
  const auto second = queue.record();
  queue.wait_for(*first);
  second->wait();
  EXPECT_TRUE(first->done());
  EXPECT_LE(first->seconds(), second->seconds());
}

}  // namespace
}  // namespace trireme::device
