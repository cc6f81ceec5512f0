#include "trireme/device/cpu/caching_allocator.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>

#include "trireme/base/error.h"
#include "trireme/device/out_of_memory.h"

#if defined(__SANITIZE_ADDRESS__)
#define TRIREME_MALLOC_EACH_BLOCK 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define TRIREME_MALLOC_EACH_BLOCK 1
#endif
#endif
#ifndef TRIREME_MALLOC_EACH_BLOCK
#define TRIREME_MALLOC_EACH_BLOCK 0
#endif

namespace trireme::device {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kSmallRange = size_t{1} << 30;

size_t page_size() {
  static const size_t size = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return size;
}

size_t round_up(size_t value, size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

size_t physical_memory() {
  return static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * page_size();
}

}  // namespace

AddressPool::AddressPool(size_t range_bytes) : range_bytes_(round_up(range_bytes, kHugePage)) {}

AddressPool::~AddressPool() {
  for (const Range& range : ranges_) munmap(range.mapping, range.mapping_size);
}

AddressPool::Block* AddressPool::new_block(char* begin, size_t size, size_t range) {
  Block* block = nullptr;
  if (spare_.empty()) {
    storage_.push_back(std::make_unique<Block>());
    block = storage_.back().get();
  } else {
    block = spare_.back();
    spare_.pop_back();
  }
  *block = Block{begin, size, range, false, nullptr, nullptr};
  blocks_.emplace(begin, block);
  return block;
}

void AddressPool::delete_block(Block* block) {
  blocks_.erase(block->begin);
  spare_.push_back(block);
}

void AddressPool::unlink_free(Block* block) {
  free_.erase({block->size, block->begin});
  block->is_free = false;
}

void AddressPool::link_free(Block* block) {
  free_.insert({block->size, block->begin});
  block->is_free = true;
}

void AddressPool::split(Block* block, size_t bytes) {
  if (block->size == bytes) return;
  Block* rest = new_block(block->begin + bytes, block->size - bytes, block->range);
  rest->previous = block;
  rest->next = block->next;
  if (rest->next) rest->next->previous = rest;
  block->next = rest;
  block->size = bytes;
  if (last_[block->range] == block) last_[block->range] = rest;
  link_free(rest);
}

void AddressPool::absorb_next(Block* block) {
  Block* next = block->next;
  block->size += next->size;
  block->next = next->next;
  if (block->next) block->next->previous = block;
  if (last_[block->range] == next) last_[block->range] = block;
  delete_block(next);
}

bool AddressPool::add_range(size_t at_least) {
  at_least = round_up(at_least, kHugePage);
  for (size_t size = std::max(range_bytes_, at_least);; size = std::max(size / 2, at_least)) {
    const size_t mapping_size = size + kHugePage;
    // Address space only: a page becomes memory when it is first touched.
    void* mapping = mmap(nullptr, mapping_size, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping != MAP_FAILED) {
      char* begin = reinterpret_cast<char*>(round_up(reinterpret_cast<size_t>(mapping), kHugePage));
      madvise(begin, size,
              MADV_HUGEPAGE);  // fewer faults and TLB misses; a refusal changes nothing else
      ranges_.push_back({begin, size, 0, mapping, mapping_size});
      last_.push_back(nullptr);
      return true;
    }
    if (size == at_least) return false;
  }
}

AddressPool::Block* AddressPool::extend(size_t bytes) {
  size_t index = ranges_.size();
  for (size_t i = 0; i < ranges_.size() && index == ranges_.size(); ++i) {
    const size_t tail = last_[i] && last_[i]->is_free ? last_[i]->size : 0;
    if (ranges_[i].size - ranges_[i].used + tail >= bytes) index = i;
  }
  if (index == ranges_.size() && !add_range(bytes)) return nullptr;

  Range& range = ranges_[index];
  const int64_t before = static_cast<int64_t>(round_up(range.used, page_size()));
  Block* last = last_[index];
  if (last && last->is_free) {
    unlink_free(last);
    range.used +=
        bytes - last->size;  // the free tail is smaller than `bytes`, or it would have fitted
    last->size = bytes;
  } else {
    Block* block = new_block(range.begin + range.used, bytes, index);
    block->previous = last;
    if (last) last->next = block;
    last_[index] = last = block;
    range.used += bytes;
  }
  reserved_bytes_ += static_cast<int64_t>(round_up(range.used, page_size())) - before;
  return last;
}

void* AddressPool::allocate(size_t bytes) {
  const auto found = free_.lower_bound({bytes, nullptr});
  if (found == free_.end()) {
    Block* block = extend(bytes);
    return block ? block->begin : nullptr;
  }
  Block* block = blocks_.at(found->second);
  unlink_free(block);
  split(block, bytes);
  return block->begin;
}

size_t AddressPool::free(void* address) {
  const auto found = blocks_.find(static_cast<char*>(address));
  if (found == blocks_.end()) return 0;
  Block* block = found->second;
  TRIREME_CHECK(!block->is_free, "address {} freed twice", address);
  const size_t bytes = block->size;
  if (block->next && block->next->is_free) {
    unlink_free(block->next);
    absorb_next(block);
  }
  if (block->previous && block->previous->is_free) {
    block = block->previous;
    unlink_free(block);
    absorb_next(block);
  }
  link_free(block);
  return bytes;
}

namespace {

[[noreturn]] void refuse(const std::string& message, size_t asked, int64_t held) {
  throw OutOfMemory(message, "use a smaller micro-batch or more recompute, or raise the cap",
                    static_cast<int64_t>(asked), held);
}

}  // namespace

CachingAllocator::CachingAllocator(size_t range_bytes)
    : small_(kSmallRange), large_(range_bytes > 0 ? range_bytes : 4 * physical_memory()) {}

#if TRIREME_MALLOC_EACH_BLOCK

namespace {
// The size lies in front of the block, a whole alignment unit away, so that the sanitizer still
// sees both ends.
constexpr size_t kHeader = CachingAllocator::kAlignment;
}  // namespace

void* CachingAllocator::allocate(size_t bytes) {
  if (bytes == 0) return nullptr;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    check_cap(bytes);
  }
  char* raw =
      static_cast<char*>(std::aligned_alloc(kAlignment, round_up(bytes + kHeader, kAlignment)));
  if (raw == nullptr)
    refuse(fmt::format("the system has no memory left for {} bytes", bytes), bytes,
           statistics_.allocated_bytes);
  *reinterpret_cast<size_t*>(raw) = bytes;
  const std::lock_guard<std::mutex> lock(mutex_);
  ++statistics_.num_allocations;
  statistics_.allocated_bytes += static_cast<int64_t>(bytes);
  statistics_.peak_allocated_bytes =
      std::max(statistics_.peak_allocated_bytes, statistics_.allocated_bytes);
  statistics_.reserved_bytes = statistics_.allocated_bytes;
  statistics_.peak_reserved_bytes = statistics_.peak_allocated_bytes;
  return raw + kHeader;
}

void CachingAllocator::free(void* address) {
  if (!address) return;
  char* raw = static_cast<char*>(address) - kHeader;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    statistics_.allocated_bytes -= static_cast<int64_t>(*reinterpret_cast<size_t*>(raw));
    statistics_.reserved_bytes = statistics_.allocated_bytes;
  }
  std::free(raw);
}

#else

void* CachingAllocator::allocate(size_t bytes) {
  if (bytes == 0) return nullptr;
  TRIREME_USER_CHECK(bytes <= (size_t{1} << 62), kDevice, "use a smaller batch or model",
                     "a tensor of {} bytes was asked for", bytes);
  const size_t rounded = round_up(bytes, kAlignment);
  const std::lock_guard<std::mutex> lock(mutex_);
  check_cap(rounded);
  AddressPool& pool = rounded <= kSmallBytes ? small_ : large_;
  void* address = pool.allocate(rounded);
  if (address == nullptr) {
    refuse(fmt::format("the system has no memory left for {} bytes ({} bytes are held)", bytes,
                       statistics_.reserved_bytes),
           bytes, statistics_.allocated_bytes);
  }
  ++statistics_.num_allocations;
  statistics_.allocated_bytes += static_cast<int64_t>(rounded);
  statistics_.peak_allocated_bytes =
      std::max(statistics_.peak_allocated_bytes, statistics_.allocated_bytes);
  statistics_.reserved_bytes = small_.reserved_bytes() + large_.reserved_bytes();
  statistics_.peak_reserved_bytes =
      std::max(statistics_.peak_reserved_bytes, statistics_.reserved_bytes);
  return address;
}

void CachingAllocator::free(void* address) {
  if (!address) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  size_t bytes = large_.free(address);
  if (bytes == 0) bytes = small_.free(address);
  TRIREME_CHECK(bytes > 0, "address {} was not given out by this allocator", address);
  statistics_.allocated_bytes -= static_cast<int64_t>(bytes);
}

#endif

MemoryStatistics CachingAllocator::statistics() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return statistics_;
}

void CachingAllocator::set_cap(int64_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  statistics_.cap_bytes = bytes;
}

void CachingAllocator::check_cap(size_t bytes) const {
  const MemoryStatistics& s = statistics_;
  if (s.cap_bytes == 0 || s.allocated_bytes + static_cast<int64_t>(bytes) <= s.cap_bytes) return;
  refuse(fmt::format("{} bytes were asked for, {} are held, the cap is {}", bytes,
                     s.allocated_bytes, s.cap_bytes),
         bytes, s.allocated_bytes);
}

void CachingAllocator::reset_peak() {
  const std::lock_guard<std::mutex> lock(mutex_);
  statistics_.peak_allocated_bytes = statistics_.allocated_bytes;
  statistics_.peak_reserved_bytes = statistics_.reserved_bytes;
}

}  // namespace trireme::device
