#include "trireme/device/sim/sim_device.h"

#include <fmt/format.h>

#include <array>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "trireme/base/error.h"
#include "trireme/device/accelerator/accelerator_device.h"
#include "trireme/device/sim/graph_arena.h"
#include "trireme/device/sim/runtime.h"

namespace trireme::device::sim {
namespace {

class RecordedWork final : public Graph {
 public:
  explicit RecordedWork(std::shared_ptr<GraphArena> arena) : arena_(std::move(arena)) {}
  void replay(Queue& queue) override {
    WorkQueue& into = Runtime::get().queue(queue.torch_stream());
    arena_->record_use(into);
    Runtime::get().scheduler().replay(into, works);
  }
  std::vector<Work> works;

 private:
  const std::shared_ptr<GraphArena> arena_;
};

/// While it lives, a queue's work is recorded.
class Recording {
 public:
  Recording(WorkQueue& queue, std::vector<Work>& works) : queue_(queue) {
    TRIREME_CHECK(Runtime::get().scheduler().begin_recording(queue, works),
                  "work is recorded while work is recorded");
  }
  ~Recording() { Runtime::get().scheduler().end_recording(queue_); }
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;

 private:
  WorkQueue& queue_;
};

class SimulatedDevice final : public AcceleratorDevice {
 public:
  explicit SimulatedDevice(int index)
      : AcceleratorDevice(
            c10::Device(c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(index))) {}
  std::string name() const override { return "simulated accelerator"; }
  Capabilities capabilities() const override {
    Capabilities result = AcceleratorDevice::capabilities();
    result.graph_capture = true;
    result.peer_access = true;
    return result;
  }
  MemoryStatistics memory() const override { return own_memory().statistics(); }
  void set_memory_cap(int64_t bytes) override {
    own_memory().set_cap(bytes == 0 ? Runtime::get().options().memory_cap_bytes : bytes);
  }
  std::shared_ptr<GraphMemory> new_graph_memory() override {
    return std::make_shared<GraphArena>(torch_device().index());
  }
  std::unique_ptr<Graph> record(const std::function<void()>& work,
                                const std::shared_ptr<GraphMemory>& memory) override {
    Runtime& runtime = Runtime::get();
    WorkQueue& queue = runtime.queue(compute_queue().torch_stream());
    auto arena = std::dynamic_pointer_cast<GraphArena>(memory);
    TRIREME_CHECK(arena != nullptr, "work of {} is recorded into other memory",
                  torch_device().str());
    auto graph = std::make_unique<RecordedWork>(arena);
    const GraphArena::Guard guard(*arena);
    const Recording recording(queue, graph->works);
    work();
    return graph;
  }

 private:
  DeviceMemory& own_memory() const { return Runtime::get().device(torch_device().index()).memory; }
};

}  // namespace

Device& sim_device(int index) {
  if (!backend_registered()) register_backend(options_from_environment());
  Runtime::get().device(index);  // throws if there is none
  static std::mutex mutex;
  static auto* devices = new std::array<std::unique_ptr<SimulatedDevice>, kMaxDevices>();
  const std::lock_guard lock(mutex);
  auto& device = devices->at(static_cast<size_t>(index));
  if (device == nullptr) device = std::make_unique<SimulatedDevice>(index);
  return *device;
}

}  // namespace trireme::device::sim
