// The memory of one simulated device: a range of addresses that the host cannot touch, the same pages under other
// addresses for kernels, and blocks of it with a cap. The cap is on bytes held or still used by other queues: as the range is
// much larger, where the holes lie does not matter.
//
// Internal to sim/. Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "trireme/device/memory.h"

namespace trireme::device::sim {

class Scheduler;
class WorkQueue;

class DeviceMemory {
 public:
  /// Reserves the address space; pages come when they are touched. Throws Error{kDevice} where the system refuses.
  DeviceMemory(Scheduler& scheduler, int device, int64_t address_space_bytes, int64_t cap_bytes);
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  /// A block for work on `queue`. Where only blocks that other queues may still use are left, waits for those queues.
  /// Throws c10::OutOfMemoryError. Null for 0 bytes.
  void* allocate(size_t bytes, WorkQueue& queue);
  /// Given back to work of its own queue at once, to others when all work issued so far to its queue and to those that
  /// were recorded is done. Does not block.
  void free(void* address);
  void record_use(void* address, WorkQueue& queue);

  /// Addresses for as many bytes as the cap, of which none is held. They go with free(). Null where there is no such range.
  void* reserve(WorkQueue& queue);
  /// `bytes` of a reserved range are held from now on; it never gets less. Throws c10::OutOfMemoryError.
  void hold(void* range, size_t bytes);

  bool contains(const void* address) const;
  void* host_address(const void* address) const;

  MemoryStatistics statistics() const;
  void reset_peak();
  int64_t cap_bytes() const;
  /// Blocks above the cap stay until they are freed. Throws Error{kConfig} above the address space.
  void set_cap(int64_t bytes);
  void fail_allocation(int64_t nth);

  static constexpr size_t kAlignment = 512;

 private:
  /// Work that may still touch a block: item numbers by queue.
  using Uses = std::vector<std::pair<WorkQueue*, uint64_t>>;
  struct Block {
    size_t bytes = 0;
    size_t held = 0;  ///< of them; less only in a reserved range
    WorkQueue* queue = nullptr;
    std::vector<WorkQueue*> also_used_by;
  };
  struct Hole {
    size_t bytes = 0;
    Uses uses;
  };
  using Lock = std::unique_lock<std::mutex>;

  static bool join(Hole& lower, Hole& upper);
  void join_holes();
  bool take(size_t bytes, WorkQueue& queue, size_t* offset);
  void count(size_t bytes);
  size_t bytes_used_by_others(const WorkQueue& queue) const;
  Uses all_uses(const WorkQueue& queue) const;
  [[noreturn]] void fail_out_of_memory(size_t bytes, const char* why) const;

  Scheduler& scheduler_;
  int device_;
  size_t address_space_bytes_;
  char* begin_ = nullptr;       ///< what tensors carry
  char* host_begin_ = nullptr;  ///< what kernels use
  mutable std::mutex mutex_;
  size_t cap_bytes_;
  std::map<size_t, Hole> holes_;  ///< by offset; neighbours with the same users are one
  std::unordered_map<size_t, Block> blocks_;
  MemoryStatistics statistics_;
  int64_t allocations_until_failure_ = 0;
};

}  // namespace trireme::device::sim
