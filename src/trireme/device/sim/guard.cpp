// What PyTorch's generic code asks of an accelerator: allocator, device guard, hooks, generator.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Tensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/GeneratorImpl.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>

#include "trireme/base/error.h"
#include "trireme/device/sim/runtime.h"

namespace trireme::device::sim {
namespace {

using c10::Device;
using c10::DeviceIndex;
using c10::Stream;

constexpr c10::DeviceType kType = c10::DeviceType::PrivateUse1;

Scheduler& scheduler() {
  return Runtime::get().scheduler();
}

// ---- allocators ----------------------------------------------------------------------------------

class SimAllocator final : public c10::DeviceAllocator {
 public:
  c10::DataPtr allocate(size_t bytes) override { return Runtime::get().allocate(bytes); }
  c10::DeleterFnPtr raw_deleter() const override {
    return [](void* address) {
      if (address == nullptr) return;
      Runtime::get().owner(address)->memory.free(address);
    };
  }
  void copy_data(void* destination, const void* source, size_t bytes) const override {
    void* to = host_address(destination);
    const void* from = host_address(source);
    submit({"copy", {.bytes = 2.0 * static_cast<double>(bytes)}},
           [to, from, bytes] { std::memmove(to, from, bytes); });
  }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {}
  void recordStream(const c10::DataPtr& block, Stream stream) override {
    if (block.get() == nullptr) return;
    Runtime::SimDevice* device = Runtime::get().owner(block.get());
    if (device != nullptr) {
      device->memory.record_use(block.get(), Runtime::get().queue(stream));
    }
  }
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(DeviceIndex index) override {
    const MemoryStatistics memory = Runtime::get().device(index).memory.statistics();
    c10::CachingDeviceAllocator::DeviceStats stats;
    auto& allocated = stats.allocated_bytes[0];
    allocated.current = memory.allocated_bytes;
    allocated.peak = memory.peak_allocated_bytes;
    auto& reserved = stats.reserved_bytes[0];
    reserved.current = memory.reserved_bytes;
    reserved.peak = memory.peak_reserved_bytes;
    stats.allocation[0].allocated = memory.num_allocations;
    return stats;
  }
  void resetAccumulatedStats(DeviceIndex) override {}
  void resetPeakStats(DeviceIndex index) override {
    Runtime::get().device(index).memory.reset_peak();
  }
  std::pair<size_t, size_t> getMemoryInfo(DeviceIndex index) override {
    const MemoryStatistics memory = Runtime::get().device(index).memory.statistics();
    const int64_t free = std::max<int64_t>(0, memory.cap_bytes - memory.allocated_bytes);
    return {static_cast<size_t>(free), static_cast<size_t>(memory.cap_bytes)};
  }
};

/// Host memory that is known to be pinned by its address. Copies hold their host tensor until they are done, so a block
/// is never given back too early.
class PinnedAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* address = nullptr;
    if (bytes > 0) {
      address = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
      TRIREME_USER_CHECK(address != nullptr, kDevice, "use smaller buffers",
                         "no {} bytes of pinned memory", bytes);
      const std::lock_guard lock(mutex_);
      blocks_[static_cast<char*>(address)] = bytes;
    }
    return {address, address, raw_deleter(), Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override {
    return [](void* address) { static_cast<PinnedAllocator*>(pinned_allocator())->free(address); };
  }
  void copy_data(void* destination, const void* source, size_t bytes) const override {
    std::memcpy(destination, source, bytes);
  }
  bool contains(const void* address) const {
    const std::lock_guard lock(mutex_);
    auto block = blocks_.upper_bound(static_cast<const char*>(address));
    if (block == blocks_.begin()) return false;
    --block;
    return static_cast<const char*>(address) < block->first + block->second;
  }

 private:
  void free(void* address) {
    if (address == nullptr) return;
    {
      const std::lock_guard lock(mutex_);
      blocks_.erase(static_cast<char*>(address));
    }
    std::free(address);
  }
  mutable std::mutex mutex_;
  std::map<const char*, size_t> blocks_;
};

// ---- random state --------------------------------------------------------------------------------

/// The numbers are those of the CPU's generator, which the operators' CPU kernels draw from.
class SimGenerator final : public c10::GeneratorImpl {
 public:
  SimGenerator(int index, at::Generator cpu)
      : GeneratorImpl(Device(kType, static_cast<DeviceIndex>(index)),
                      c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)),
        cpu_(std::move(cpu)) {}
  void set_current_seed(uint64_t seed) override { cpu_.set_current_seed(seed); }
  void set_offset(uint64_t offset) override { cpu_.set_offset(offset); }
  uint64_t get_offset() const override { return cpu_.get_offset(); }
  uint64_t current_seed() const override { return cpu_.current_seed(); }
  uint64_t seed() override { return cpu_.seed(); }
  void set_state(const c10::TensorImpl& state) override {
    cpu_.unsafeGetGeneratorImpl()->set_state(state);
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return cpu_.unsafeGetGeneratorImpl()->get_state();
  }
  const at::Generator& cpu() const { return cpu_; }

 private:
  SimGenerator* clone_impl() const override {
    return new SimGenerator(device().index(), cpu_.clone());
  }
  at::Generator cpu_;
};

// ---- guard ---------------------------------------------------------------------------------------

const MarkerRef& marker_of(void* event) {
  return *static_cast<MarkerRef*>(event);
}

struct SimGuard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kType; }
  Device exchangeDevice(Device device) const override {
    const Device before = getDevice();
    setDevice(device);
    return before;
  }
  Device getDevice() const override { return {kType, static_cast<DeviceIndex>(current_device())}; }
  void setDevice(Device device) const override {
    Runtime::get().device(device.index());
    set_current_device(device.index());
  }
  void uncheckedSetDevice(Device device) const noexcept override {
    set_current_device(device.index());
  }
  Stream getStream(Device device) const override { return current_stream(index_of(device)); }
  Stream getDefaultStream(Device device) const override {
    return Runtime::get().default_stream(index_of(device));
  }
  Stream getStreamFromGlobalPool(Device device, bool) const override {
    return Runtime::get().pool_stream(index_of(device));
  }
  Stream getNewStream(Device device, int) const override {
    return Runtime::get().new_stream(index_of(device));
  }
  Stream exchangeStream(Stream stream) const override {
    const Stream before = current_stream(stream.device_index());
    set_current_stream(stream);
    return before;
  }
  DeviceIndex deviceCount() const noexcept override {
    return static_cast<DeviceIndex>(Runtime::get().options().num_devices);
  }
  void record(void** event, const Stream& stream, const DeviceIndex,
              const c10::EventFlag) const override {
    MarkerRef marker = scheduler().record(Runtime::get().queue(stream));
    if (*event == nullptr) *event = new MarkerRef();
    *static_cast<MarkerRef*>(*event) = std::move(marker);
  }
  void block(void* event, const Stream& stream) const override {
    if (event != nullptr) {
      scheduler().wait_in_queue(Runtime::get().queue(stream), marker_of(event));
    }
  }
  bool queryEvent(void* event) const override {
    if (event == nullptr) return true;
    const MarkerRef& marker = marker_of(event);
    return scheduler().query(*marker->queue, marker->sequence);
  }
  void synchronizeEvent(void* event) const override {
    if (event == nullptr) return;
    const MarkerRef& marker = marker_of(event);
    scheduler().wait(*marker);
    scheduler().throw_if_failed(Runtime::get().device(marker->queue->device_index()).state);
  }
  void destroyEvent(void* event, const DeviceIndex) const noexcept override {
    delete static_cast<MarkerRef*>(event);
  }
  double elapsedTime(void* first, void* second, const DeviceIndex) const override {
    // Milliseconds, as PyTorch's interface has it.
    const MarkerRef& from = marker_of(first);
    const MarkerRef& to = marker_of(second);
    TORCH_CHECK(queryEvent(first) && queryEvent(second),
                "elapsed time of events that are not done");
    const bool simulated = scheduler().has_profile();
    return 1e3 * (simulated ? to->simulated_s - from->simulated_s : to->wall_s - from->wall_s);
  }
  // Kernels are the CPU's, which has them for every type.
  c10::DeviceCapability getDeviceCapability(Device) const override { return {}; }
  bool queryStream(const Stream& stream) const override {
    WorkQueue& queue = Runtime::get().queue(stream);
    return scheduler().query(queue, queue.issued());
  }
  void synchronizeStream(const Stream& stream) const override { synchronize(stream); }
  void synchronizeDevice(const DeviceIndex index) const override {
    synchronize_device(index < 0 ? current_device() : index);
  }
  void recordDataPtrOnStream(const c10::DataPtr& block, const Stream& stream) const override {
    c10::getDeviceAllocator(kType)->recordStream(block, stream);
  }

 private:
  static int index_of(Device device) {
    return device.has_index() ? device.index() : current_device();
  }
};

struct SimHooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex index) const override {
    return Runtime::get().device_made(index);
  }
  DeviceIndex deviceCount() const override {
    return static_cast<DeviceIndex>(Runtime::get().options().num_devices);
  }
  DeviceIndex getCurrentDevice() const override {
    return static_cast<DeviceIndex>(current_device());
  }
  void setCurrentDevice(DeviceIndex index) const override {
    Runtime::get().device(index);
    set_current_device(index);
  }
  DeviceIndex exchangeDevice(DeviceIndex index) const override {
    const DeviceIndex before = getCurrentDevice();
    setCurrentDevice(index);
    return before;
  }
  DeviceIndex maybeExchangeDevice(DeviceIndex index) const override {
    return index < 0 ? getCurrentDevice() : exchangeDevice(index);
  }
  bool isPinnedPtr(const void* address) const override { return is_pinned(address); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return pinned_allocator(); }
  Device getDeviceFromPtr(void* address) const override {
    Runtime::SimDevice* device = Runtime::get().owner(address);
    TRIREME_CHECK(device != nullptr, "{} is on no simulated device", address);
    return {kType, static_cast<DeviceIndex>(device->state.index)};
  }
  const at::Generator& getDefaultGenerator(DeviceIndex index) const override {
    return Runtime::get().device(index < 0 ? current_device() : index).generator;
  }
  at::Generator getNewGenerator(DeviceIndex index) const override {
    return make_generator(index < 0 ? current_device() : index);
  }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    resize_storage(storage, bytes);
  }
};

// A function of its own, so that tests/sanitizers can name it.
[[gnu::noinline]] void register_hooks() {
  at::RegisterPrivateUse1HooksInterface(new SimHooks());
}

}  // namespace

c10::Allocator* pinned_allocator() {
  static auto* allocator = new PinnedAllocator();
  return allocator;
}

bool is_pinned(const void* address) {
  return static_cast<PinnedAllocator*>(pinned_allocator())->contains(address);
}

at::Generator make_generator(int index) {
  return at::make_generator<SimGenerator>(index, at::detail::createCPUGenerator());
}

at::Generator cpu_generator_of(const at::Generator& generator) {
  return static_cast<SimGenerator*>(generator.unsafeGetGeneratorImpl())->cpu();
}

void register_guard_and_hooks() {
  c10::SetAllocator(kType, new SimAllocator());
  static const c10::impl::DeviceGuardImplRegistrar registrar(kType, new SimGuard());
  register_hooks();
}

}  // namespace trireme::device::sim
