#include "trireme/device/sim/device_memory.h"

#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <iterator>
#include <system_error>

#include "trireme/base/error.h"
#include "trireme/device/out_of_memory.h"
#include "trireme/device/sim/scheduler.h"

namespace trireme::device::sim {
namespace {

void* map(int file, size_t bytes, int protection) {
  void* address = ::mmap(nullptr, bytes, protection, MAP_SHARED | MAP_NORESERVE, file, 0);
  if (address == MAP_FAILED) {
    throw Error(ErrorCode::kDevice,
                fmt::format("cannot reserve {} bytes of address space for a simulated device: {}",
                            bytes, std::generic_category().message(errno)),
                "lower the address space of the simulated device, or raise ulimit -v");
  }
  // Core dumps would hold the whole device.
  ::madvise(address, bytes, MADV_DONTDUMP);
  return address;
}

}  // namespace

DeviceMemory::DeviceMemory(Scheduler& scheduler, int device, int64_t address_space_bytes,
                           int64_t cap_bytes)
    : scheduler_(scheduler),
      device_(device),
      address_space_bytes_(static_cast<size_t>(address_space_bytes)),
      cap_bytes_(static_cast<size_t>(cap_bytes)) {
  TRIREME_USER_CHECK(cap_bytes > 0 && cap_bytes <= address_space_bytes, kConfig,
                     "give a cap between 1 byte and the address space",
                     "a simulated device of {} bytes in {} bytes of address space", cap_bytes,
                     address_space_bytes);
  const int file = ::memfd_create("trireme-sim", MFD_CLOEXEC);
  const bool sized = file >= 0 && ::ftruncate(file, static_cast<off_t>(address_space_bytes)) == 0;
  if (!sized) {
    const int error = errno;
    if (file >= 0) ::close(file);
    throw Error(ErrorCode::kDevice, fmt::format("cannot make the memory of a simulated device: {}",
                                                std::generic_category().message(error)));
  }
  begin_ = static_cast<char*>(map(file, address_space_bytes_, PROT_NONE));
  host_begin_ = static_cast<char*>(map(file, address_space_bytes_, PROT_READ | PROT_WRITE));
  ::close(file);
  holes_[0] = {address_space_bytes_, {}};
  statistics_.cap_bytes = cap_bytes;
}

bool DeviceMemory::contains(const void* address) const {
  const char* at = static_cast<const char*>(address);
  return at >= begin_ && at < begin_ + address_space_bytes_;
}

void* DeviceMemory::host_address(const void* address) const {
  return host_begin_ + (static_cast<const char*>(address) - begin_);
}

/// Makes `lower` of both where the same queues may still use them. Others stay apart, so that one queue's block does not
/// keep a free neighbour from another queue.
bool DeviceMemory::join(Hole& lower, Hole& upper) {
  for (Hole* hole : {&lower, &upper}) {
    std::erase_if(hole->uses, [](const auto& use) { return use.first->done() >= use.second; });
  }
  if (lower.uses.size() != upper.uses.size()) return false;
  Uses uses = lower.uses;
  for (auto& [queue, sequence] : uses) {
    const auto same = std::find_if(upper.uses.begin(), upper.uses.end(),
                                   [&](const auto& use) { return use.first == queue; });
    if (same == upper.uses.end()) return false;
    sequence = std::max(sequence, same->second);
  }
  lower.bytes += upper.bytes;
  lower.uses = std::move(uses);
  return true;
}

void DeviceMemory::join_holes() {
  for (auto it = holes_.begin(); it != holes_.end();) {
    const auto next = std::next(it);
    if (next == holes_.end()) return;
    if (it->first + it->second.bytes == next->first && join(it->second, next->second)) {
      holes_.erase(next);
    } else {
      it = next;
    }
  }
}

/// First fit: low addresses are used again before new pages are touched.
bool DeviceMemory::take(size_t bytes, WorkQueue& queue, size_t* offset) {
  for (auto it = holes_.begin(); it != holes_.end(); ++it) {
    Hole& hole = it->second;
    if (hole.bytes < bytes) continue;
    std::erase_if(hole.uses, [](const auto& use) { return use.first->done() >= use.second; });
    const bool ordered = std::all_of(hole.uses.begin(), hole.uses.end(),
                                     [&](const auto& use) { return use.first == &queue; });
    if (!ordered) continue;
    *offset = it->first;
    if (hole.bytes > bytes) holes_[it->first + bytes] = {hole.bytes - bytes, hole.uses};
    holes_.erase(it);
    return true;
  }
  return false;
}

/// Bytes that are free but not to this queue: others may still use them.
size_t DeviceMemory::bytes_used_by_others(const WorkQueue& queue) const {
  size_t bytes = 0;
  for (const auto& [offset, hole] : holes_) {
    const bool used = std::any_of(hole.uses.begin(), hole.uses.end(), [&](const auto& use) {
      return use.first != &queue && use.first->done() < use.second;
    });
    if (used) bytes += hole.bytes;
  }
  return bytes;
}

DeviceMemory::Uses DeviceMemory::all_uses(const WorkQueue& queue) const {
  Uses all;
  for (const auto& [offset, hole] : holes_) {
    for (const auto& use : hole.uses) {
      if (use.first != &queue) all.push_back(use);
    }
  }
  return all;
}

void DeviceMemory::fail_out_of_memory(size_t bytes, const char* why) const {
  throw AcceleratorOutOfMemory(
      {__func__, __FILE__, __LINE__},
      fmt::format("sim:{} is out of memory: {} bytes were asked for, {} are held, the cap is {}{}",
                  device_, bytes, statistics_.allocated_bytes, cap_bytes_, why),
      static_cast<int64_t>(bytes), statistics_.allocated_bytes);
}

void* DeviceMemory::allocate(size_t bytes, WorkQueue& queue) {
  if (bytes == 0) return nullptr;
  const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  Lock lock(mutex_);
  if (allocations_until_failure_ > 0 && --allocations_until_failure_ == 0) {
    fail_out_of_memory(bytes, " (an injected fault)");
  }
  const auto fits_beside = [&](size_t others) {
    return static_cast<size_t>(statistics_.allocated_bytes) + others + rounded <= cap_bytes_;
  };
  if (bytes > cap_bytes_ || !fits_beside(0)) fail_out_of_memory(bytes, "");
  size_t offset = 0;
  const auto take_under_cap = [&] {
    if (!fits_beside(bytes_used_by_others(queue))) return false;
    if (take(rounded, queue, &offset)) return true;
    join_holes();
    return take(rounded, queue, &offset);
  };
  if (!take_under_cap()) {
    const Uses uses = all_uses(queue);
    lock.unlock();
    for (const auto& [user, sequence] : uses) scheduler_.wait(*user, sequence);
    lock.lock();
    if (!take_under_cap()) fail_out_of_memory(bytes, ", and others took what was free");
  }
  blocks_[offset] = {rounded, rounded, &queue, {}};
  MemoryStatistics& s = statistics_;
  s.reserved_bytes = std::max(s.reserved_bytes, static_cast<int64_t>(offset + rounded));
  s.peak_reserved_bytes = std::max(s.peak_reserved_bytes, s.reserved_bytes);
  count(rounded);
  return begin_ + offset;
}

void DeviceMemory::count(size_t bytes) {
  statistics_.allocated_bytes += static_cast<int64_t>(bytes);
  statistics_.peak_allocated_bytes =
      std::max(statistics_.peak_allocated_bytes, statistics_.allocated_bytes);
  ++statistics_.num_allocations;
}

/// From the end of the last hole: low addresses are for what comes and goes.
void* DeviceMemory::reserve(WorkQueue& queue) {
  const Lock lock(mutex_);
  const size_t bytes = cap_bytes_ / kAlignment * kAlignment;
  if (holes_.empty() || holes_.rbegin()->second.bytes <= bytes) return nullptr;
  Hole& last = holes_.rbegin()->second;
  std::erase_if(last.uses, [](const auto& use) { return use.first->done() >= use.second; });
  if (!last.uses.empty()) return nullptr;
  last.bytes -= bytes;
  const size_t offset = holes_.rbegin()->first + last.bytes;
  blocks_[offset] = {bytes, 0, &queue, {}};
  return begin_ + offset;
}

void DeviceMemory::hold(void* range, size_t bytes) {
  const Lock lock(mutex_);
  Block& block = blocks_.at(static_cast<size_t>(static_cast<char*>(range) - begin_));
  if (bytes <= block.held) return;
  const size_t more = bytes - block.held;
  if (bytes > block.bytes || static_cast<size_t>(statistics_.allocated_bytes) + more > cap_bytes_)
    fail_out_of_memory(more, " (by recorded work)");
  block.held = bytes;
  count(more);
}

void DeviceMemory::free(void* address) {
  if (address == nullptr) return;
  const Lock lock(mutex_);
  const auto offset = static_cast<size_t>(static_cast<char*>(address) - begin_);
  const auto found = blocks_.find(offset);
  TRIREME_CHECK(found != blocks_.end(), "{} is no block of sim:{}", address, device_);
  const Block block = std::move(found->second);
  blocks_.erase(found);
  statistics_.allocated_bytes -= static_cast<int64_t>(block.held);
  Hole hole{block.bytes, {{block.queue, block.queue->issued()}}};
  for (WorkQueue* queue : block.also_used_by) hole.uses.emplace_back(queue, queue->issued());

  const auto at = holes_.insert_or_assign(offset, std::move(hole)).first;
  const auto next = std::next(at);
  if (next != holes_.end() && offset + at->second.bytes == next->first &&
      join(at->second, next->second)) {
    holes_.erase(next);
  }
  if (at == holes_.begin()) return;
  const auto previous = std::prev(at);
  if (previous->first + previous->second.bytes == offset && join(previous->second, at->second)) {
    holes_.erase(at);
  }
}

void DeviceMemory::record_use(void* address, WorkQueue& queue) {
  if (address == nullptr) return;
  const Lock lock(mutex_);
  const auto found = blocks_.find(static_cast<size_t>(static_cast<char*>(address) - begin_));
  TRIREME_CHECK(found != blocks_.end(), "{} is no block of sim:{}", address, device_);
  auto& users = found->second.also_used_by;
  if (&queue == found->second.queue) return;
  if (std::find(users.begin(), users.end(), &queue) == users.end()) users.push_back(&queue);
}

MemoryStatistics DeviceMemory::statistics() const {
  const Lock lock(mutex_);
  return statistics_;
}

void DeviceMemory::reset_peak() {
  const Lock lock(mutex_);
  statistics_.peak_allocated_bytes = statistics_.allocated_bytes;
  statistics_.peak_reserved_bytes = statistics_.reserved_bytes;
}

int64_t DeviceMemory::cap_bytes() const {
  const Lock lock(mutex_);
  return static_cast<int64_t>(cap_bytes_);
}

void DeviceMemory::set_cap(int64_t bytes) {
  TRIREME_USER_CHECK(bytes > 0 && bytes <= static_cast<int64_t>(address_space_bytes_), kConfig,
                     "give a cap between 1 byte and the address space of the simulated device",
                     "a memory cap of {} bytes", bytes);
  const Lock lock(mutex_);
  cap_bytes_ = static_cast<size_t>(bytes);
  statistics_.cap_bytes = bytes;
}

void DeviceMemory::fail_allocation(int64_t nth) {
  const Lock lock(mutex_);
  allocations_until_failure_ = nth;
}

}  // namespace trireme::device::sim
