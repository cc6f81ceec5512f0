#include "trireme/device/sim/runtime.h"

#include <c10/core/DeviceGuard.h>
#include <fmt/format.h>

#include <cstring>
#include <utility>

#include "trireme/base/error.h"
#include "trireme/device/sim/graph_arena.h"

namespace trireme::device::sim {
namespace {

std::atomic<Runtime*> runtime{nullptr};

thread_local int chosen_device = 0;
thread_local std::array<c10::StreamId, kMaxDevices> chosen_streams{};

c10::Device torch_device_of(int index) {
  return {c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(index)};
}

c10::Stream stream_of(int device, c10::StreamId id) {
  return c10::Stream(c10::Stream::UNSAFE, torch_device_of(device), id);
}

void free_block(void* address) {
  Runtime::SimDevice* device = Runtime::get().owner(address);
  TRIREME_CHECK(device != nullptr, "{} is on no simulated device", address);
  device->memory.free(address);
}

}  // namespace

Runtime& Runtime::get() {
  Runtime* made = runtime.load(std::memory_order_acquire);
  TRIREME_CHECK(made != nullptr, "the simulated device is not registered");
  return *made;
}

bool Runtime::started() {
  return runtime.load(std::memory_order_acquire) != nullptr;
}

void Runtime::start(const Options& options) {
  // Never destroyed: queue threads and tensors with static lifetime outlast any order of destruction.
  auto* made = new Runtime(options);
  made->scheduler_.set_schedule(options.schedule, options.seed);
  runtime.store(made, std::memory_order_release);
}

Runtime::SimDevice::SimDevice(Runtime& owner, int index)
    : state(owner.scheduler_.add_device(index)),
      memory(owner.scheduler_, index, owner.options_.address_space_bytes,
             owner.options_.memory_cap_bytes),
      generator(make_generator(index)) {}

Runtime::SimDevice& Runtime::device(int index) {
  TRIREME_USER_CHECK(index >= 0 && index < options_.num_devices, kDevice,
                     "TRIREME_SIM_DEVICES says how many there are",
                     "no device sim:{}; this process simulates {}", index, options_.num_devices);
  auto& slot = devices_[static_cast<size_t>(index)];
  SimDevice* made = slot.load(std::memory_order_acquire);
  if (made != nullptr) return *made;
  const std::lock_guard lock(mutex_);
  made = slot.load(std::memory_order_acquire);
  if (made == nullptr) {
    made = new SimDevice(*this, index);
    slot.store(made, std::memory_order_release);
  }
  return *made;
}

bool Runtime::device_made(int index) const {
  return index >= 0 && index < kMaxDevices &&
         devices_[static_cast<size_t>(index)].load(std::memory_order_acquire) != nullptr;
}

WorkQueue& Runtime::queue(const c10::Stream& stream) {
  TRIREME_CHECK(stream.device_type() == c10::DeviceType::PrivateUse1, "a stream of {}",
                stream.device().str());
  SimDevice& owner = device(stream.device_index());
  const std::lock_guard lock(owner.mutex);
  WorkQueue*& queue = owner.queues[stream.id()];
  if (queue == nullptr) queue = &scheduler_.add_queue(owner.state, stream.id());
  return *queue;
}

c10::Stream Runtime::default_stream(int device) const {
  return stream_of(device, 0);
}

c10::Stream Runtime::pool_stream(int index) {
  const unsigned turn = device(index).next_pool_stream++;
  return stream_of(index, 1 + turn % kPoolStreams);
}

c10::Stream Runtime::new_stream(int index) {
  SimDevice& owner = device(index);
  const std::lock_guard lock(owner.mutex);
  return stream_of(index, owner.next_new_stream++);
}

Runtime::SimDevice* Runtime::owner(const void* address) {
  for (const auto& slot : devices_) {
    SimDevice* made = slot.load(std::memory_order_acquire);
    if (made != nullptr && made->memory.contains(address)) return made;
  }
  return nullptr;
}

c10::DataPtr Runtime::allocate(size_t bytes) {
  const int index = current_device();
  WorkQueue& work_queue = queue(current_stream(index));
  SimDevice& owner = device(index);
  GraphArena* arena = GraphArena::current();
  void* own = arena == nullptr ? owner.memory.allocate(bytes, work_queue) : nullptr;
  c10::DataPtr block = arena != nullptr
                           ? arena->allocate(bytes)
                           : c10::DataPtr(own, own, &free_block, torch_device_of(index));
  void* address = block.get();
  if (address == nullptr) return block;
  if (options_.poison) {
    void* host = owner.memory.host_address(address);
    scheduler_.submit(
        work_queue, {"poison"}, [host, bytes] { std::memset(host, 0xFF, bytes); },
        /*internal=*/true);
  }
  return block;
}

int current_device() {
  return chosen_device;
}

void set_current_device(int device) {
  chosen_device = device;
}

c10::Stream current_stream(int device) {
  return stream_of(device, chosen_streams.at(static_cast<size_t>(device)));
}

void set_current_stream(const c10::Stream& stream) {
  chosen_streams.at(static_cast<size_t>(stream.device_index())) = stream.id();
}

void* host_address(const void* device_address) {
  Runtime::SimDevice* device = Runtime::get().owner(device_address);
  TRIREME_CHECK(device != nullptr, "{} is on no simulated device", device_address);
  return device->memory.host_address(device_address);
}

}  // namespace trireme::device::sim
