// A caching allocator for CPU tensors.
//
// glibc gives large blocks back to the system at once, so that every step of training faults its
// memory in again, page by page. This allocator keeps what it has touched: best fit over a few
// large address ranges, neighbours merged when freed, and new memory only from a range's end. What
// is reserved then stays close to the peak of what is allocated, and a steady step touches no new
// page.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "trireme/device/memory.h"

namespace trireme::device {

/// One pool of address ranges. Not thread-safe: CachingAllocator locks.
class AddressPool {
 public:
  /// `range_bytes` of address space are asked for at a time (less where the system refuses).
  explicit AddressPool(size_t range_bytes);
  ~AddressPool();
  AddressPool(const AddressPool&) = delete;
  AddressPool& operator=(const AddressPool&) = delete;

  /// `bytes` is a multiple of 64. Null where the system has no more.
  void* allocate(size_t bytes);
  /// Frees a block of this pool and returns its size; 0 if the address is not one of this pool's.
  size_t free(void* address);
  /// Touched bytes, in whole pages.
  int64_t reserved_bytes() const { return reserved_bytes_; }

 private:
  struct Range {
    char* begin = nullptr;
    size_t size = 0;
    size_t used = 0;  ///< [begin, begin + used) is cut into blocks
    void* mapping = nullptr;
    size_t mapping_size = 0;
  };
  struct Block {
    char* begin;
    size_t size;
    size_t range;
    bool is_free;
    Block* previous;  ///< neighbours by address within the range
    Block* next;
  };
  using FreeKey = std::pair<size_t, char*>;

  Block* new_block(char* begin, size_t size, size_t range);
  void delete_block(Block* block);
  void unlink_free(Block* block);
  void link_free(Block* block);
  void split(Block* block, size_t bytes);
  void absorb_next(Block* block);
  Block* extend(size_t bytes);
  bool add_range(size_t at_least);

  size_t range_bytes_;
  std::vector<Range> ranges_;
  std::vector<Block*> last_;  ///< the block with the highest address, per range
  std::set<FreeKey> free_;
  std::unordered_map<char*, Block*> blocks_;
  std::vector<std::unique_ptr<Block>> storage_;
  std::vector<Block*> spare_;
  int64_t reserved_bytes_ = 0;
};

/// Hands out 64-byte aligned memory and counts it. Small blocks (statistics, index tensors) come
/// from a pool of their own, so that a long-lived one never splits a large hole. Thread-safe. Never
/// gives memory back.
class CachingAllocator {
 public:
  /// `range_bytes`: address space of the large pool's ranges; 0: four times the machine's memory.
  explicit CachingAllocator(size_t range_bytes = 0);

  /// Null for 0 bytes. Throws Error{kDevice} where the system has no memory left.
  void* allocate(size_t bytes);
  void free(void* address);
  MemoryStatistics statistics() const;
  void reset_peak();
  /// A block that would make allocated_bytes larger than this is refused with Error{kDevice}; 0: none is.
  void set_cap(int64_t bytes);

  static constexpr size_t kAlignment = 64;
  static constexpr size_t kSmallBytes = 256 * 1024;

 private:
  void check_cap(size_t bytes) const;

  mutable std::mutex mutex_;
  AddressPool small_;
  AddressPool large_;
  MemoryStatistics statistics_;
};

/// The one behind ATen's CPU tensors. Lives until the process ends.
CachingAllocator& cpu_allocator();

}  // namespace trireme::device
