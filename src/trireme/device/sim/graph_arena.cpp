#include "trireme/device/sim/graph_arena.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "trireme/base/error.h"

namespace trireme::device::sim {
namespace {

thread_local GraphArena* chosen_arena = nullptr;

}  // namespace

/// What a tensor's memory is given back by: it keeps the arena.
struct GraphArena::Block {
  std::shared_ptr<GraphArena> arena;
  size_t offset;
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
  if (range_ != nullptr) Runtime::get().device(device_).memory.free(range_);
}

c10::DataPtr GraphArena::allocate(size_t bytes) {
  Runtime& runtime = Runtime::get();
  const c10::Device device(c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(device_));
  if (bytes == 0) return {nullptr, device};
  const size_t rounded =
      (bytes + DeviceMemory::kAlignment - 1) / DeviceMemory::kAlignment * DeviceMemory::kAlignment;
  const std::lock_guard lock(mutex_);
  DeviceMemory& memory = runtime.device(device_).memory;
  if (range_ == nullptr)
    range_ = static_cast<char*>(memory.reserve(runtime.queue(current_stream(device_))));
  TRIREME_USER_CHECK(range_ != nullptr, kDevice, "give the simulated device a lower cap",
                     "sim:{} has no addresses left for recorded work", device_);
  size_t offset = 0;
  auto hole = holes_.end();
  for (auto it = holes_.begin(); it != holes_.end(); ++it) {
    if (it->second >= rounded && (hole == holes_.end() || it->second < hole->second)) hole = it;
  }
  if (hole != holes_.end()) {
    offset = hole->first;
    if (hole->second > rounded) holes_[offset + rounded] = hole->second - rounded;
    holes_.erase(hole);
  } else {
    // The last hole grows, where it is at the end.
    offset = end_;
    if (!holes_.empty() && holes_.rbegin()->first + holes_.rbegin()->second == end_) {
      offset = holes_.rbegin()->first;
    }
    memory.hold(range_, offset + rounded);
    holes_.erase(offset);
    end_ = offset + rounded;
  }
  return {range_ + offset, new Block{shared_from_this(), offset, rounded}, &give_back, device};
}

void GraphArena::give_back(void* block) {
  const std::unique_ptr<Block> owned(static_cast<Block*>(block));
  GraphArena& arena = *owned->arena;
  const std::lock_guard lock(arena.mutex_);
  auto at = arena.holes_.emplace(owned->offset, owned->bytes).first;
  if (const auto next = std::next(at);
      next != arena.holes_.end() && at->first + at->second == next->first) {
    at->second += next->second;
    arena.holes_.erase(next);
  }
  if (at == arena.holes_.begin()) return;
  if (const auto before = std::prev(at); before->first + before->second == at->first) {
    before->second += at->second;
    arena.holes_.erase(at);
  }
}

void GraphArena::record_use(WorkQueue& queue) {
  const std::lock_guard lock(mutex_);
  if (range_ != nullptr) Runtime::get().device(device_).memory.record_use(range_, queue);
}

}  // namespace trireme::device::sim
