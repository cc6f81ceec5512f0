#include "trireme/device/sim/graph_arena.h"

#include <utility>

namespace trireme::device::sim {
namespace {

thread_local GraphArena* chosen_arena = nullptr;

}  // namespace

/// What a tensor's memory is given back by: it keeps the arena.
struct GraphArena::Block {
  std::shared_ptr<GraphArena> arena;
  void* address;
  size_t bytes;
};

GraphArena* GraphArena::current() {
  return chosen_arena;
}

GraphArena::Guard::Guard(GraphArena& arena) {
  chosen_arena = &arena;
}

GraphArena::Guard::~Guard() {
  chosen_arena = nullptr;
}

GraphArena::~GraphArena() {
  DeviceMemory& memory = Runtime::get().device(device_).memory;
  for (const auto& [address, bytes] : blocks_) memory.free(address);
}

c10::DataPtr GraphArena::allocate(size_t bytes) {
  Runtime& runtime = Runtime::get();
  const c10::Device device(c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(device_));
  if (bytes == 0) return {nullptr, device};
  const std::lock_guard lock(mutex_);
  void* address = nullptr;
  size_t held = 0;
  // A much larger block stays for what needs it.
  const auto found = free_.lower_bound({bytes, nullptr});
  if (found != free_.end() && found->first - bytes <= found->first / 8) {
    std::tie(held, address) = *found;
    free_.erase(found);
  } else {
    held = bytes;
    address =
        runtime.device(device_).memory.allocate(bytes, runtime.queue(current_stream(device_)));
    blocks_[address] = held;
  }
  return {address, new Block{shared_from_this(), address, held}, &give_back, device};
}

void GraphArena::give_back(void* block) {
  const std::unique_ptr<Block> owned(static_cast<Block*>(block));
  const std::lock_guard lock(owned->arena->mutex_);
  owned->arena->free_.emplace(owned->bytes, owned->address);
}

void GraphArena::record_use(WorkQueue& queue) {
  const std::lock_guard lock(mutex_);
  DeviceMemory& memory = Runtime::get().device(device_).memory;
  for (const auto& [address, bytes] : blocks_) memory.record_use(address, queue);
}

}  // namespace trireme::device::sim
