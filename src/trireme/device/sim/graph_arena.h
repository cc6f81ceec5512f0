// Device memory of recorded work. Internal to sim/.
#pragma once

#include <c10/core/Allocator.h>

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <set>

#include "trireme/device/graph.h"
#include "trireme/device/sim/runtime.h"

namespace trireme::device::sim {

/// Blocks are held until the arena goes; freed ones are for the arena's next allocations only, smallest first. Thread-safe.
class GraphArena final : public GraphMemory, public std::enable_shared_from_this<GraphArena> {
 public:
  explicit GraphArena(int device) : device_(device) {}
  ~GraphArena() override;

  /// For work on the current stream of the arena's device. Throws c10::OutOfMemoryError.
  c10::DataPtr allocate(size_t bytes);
  /// Work on `queue` uses all blocks.
  void record_use(WorkQueue& queue);

  /// The arena that the calling thread's allocations come from; null: none.
  static GraphArena* current();

  /// While it lives, the calling thread's allocations come from the arena.
  class Guard {
   public:
    explicit Guard(GraphArena& arena);
    ~Guard();
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;
  };

 private:
  struct Block;
  static void give_back(void* block);

  const int device_;
  std::mutex mutex_;
  std::map<void*, size_t> blocks_;           ///< all of them
  std::set<std::pair<size_t, void*>> free_;  ///< by size
};

}  // namespace trireme::device::sim
