// Memory of a device as its allocator sees it.
#pragma once

#include <cstdint>

namespace trireme::device {

/// Bytes of one device's allocator. `allocated` is what tensors hold now; `reserved` is what the
/// allocator has taken from the system and keeps between steps (touched memory, not address space).
struct MemoryStatistics {
  int64_t allocated_bytes = 0;
  int64_t peak_allocated_bytes = 0;
  int64_t reserved_bytes = 0;
  int64_t peak_reserved_bytes = 0;
  int64_t num_allocations = 0;  ///< calls that gave out memory since the start
  int64_t cap_bytes = 0;        ///< no more than this is given out; 0: no cap but the system's
};

/// Makes the caching allocator the one behind every CPU tensor of this process. Call it at
/// start-up, before the first tensor; later calls do nothing. A build with AddressSanitizer counts
/// bytes but takes every block from malloc, so that the sanitizer sees each one. Thread-safe.
void install_cpu_allocator();

/// True once install_cpu_allocator() has run; the statistics are zero before.
bool cpu_allocator_installed();

}  // namespace trireme::device
