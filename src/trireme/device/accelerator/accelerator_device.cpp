#include "trireme/device/accelerator/accelerator_device.h"

#include <ATen/Context.h>
#include <ATen/core/Generator.h>
#include <ATen/ops/empty.h>
#include <c10/core/DeviceCapability.h>
#include <c10/core/Event.h>
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "trireme/base/error.h"

namespace trireme::device {
namespace {

class AcceleratorEvent final : public Event {
 public:
  AcceleratorEvent(const c10::Stream& stream, std::shared_ptr<const Event> origin)
      : event_(stream.device_type(), c10::EventFlag::BACKEND_DEFAULT), origin_(std::move(origin)) {
    event_.record(stream);
  }
  bool done() const override { return event_.query(); }
  void wait() override { event_.synchronize(); }
  double seconds() const override {
    if (origin_ == nullptr) return 0;
    const auto& origin = static_cast<const AcceleratorEvent&>(*origin_);
    return 1e-3 * origin.event_.elapsedTime(event_);
  }
  void block(const c10::Stream& stream) const { event_.block(stream); }

 private:
  c10::Event event_;
  std::shared_ptr<const Event> origin_;
};

class AcceleratorQueue final : public Queue {
 public:
  AcceleratorQueue(const c10::Stream& stream, std::shared_ptr<const Event> origin)
      : stream_(stream), origin_(std::move(origin)) {}
  std::unique_ptr<Event> record() override {
    return std::make_unique<AcceleratorEvent>(stream_, origin_);
  }
  void wait_for(const Event& event) override {
    const auto* other = dynamic_cast<const AcceleratorEvent*>(&event);
    // An event of the CPU is done when it is made.
    if (other == nullptr) {
      TRIREME_CHECK(event.done(), "a queue waits for an event of another type of device");
      return;
    }
    other->block(stream_);
  }
  void synchronize() override { stream_.synchronize(); }
  c10::Stream torch_stream() const override { return stream_; }

 private:
  c10::Stream stream_;
  std::shared_ptr<const Event> origin_;
};

bool is_fp8(c10::ScalarType dtype) {
  return c10::elementSize(dtype) == 1 && c10::isFloatingType(dtype);
}

const at::Generator& generator_of(const c10::Device& device) {
  return at::globalContext()
      .getAcceleratorHooksInterface(device.type())
      .getDefaultGenerator(device.index());
}

}  // namespace

AcceleratorDevice::AcceleratorDevice(c10::Device device) : device_(device), guard_(device.type()) {
  const c10::Stream stream = guard_.getDefaultStream(device);
  origin_ = std::make_shared<AcceleratorEvent>(stream, nullptr);
  origin_->wait();
}

AcceleratorDevice::~AcceleratorDevice() = default;

std::string AcceleratorDevice::type() const {
  return c10::DeviceTypeName(device_.type(), /*lower_case=*/true);
}

c10::DeviceAllocator& AcceleratorDevice::allocator() const {
  return *c10::getDeviceAllocator(device_.type());
}

Capabilities AcceleratorDevice::capabilities() const {
  Capabilities result;
  guard_.getDeviceCapability(device_).forEachSupportedScalarType(
      [&](c10::ScalarType dtype) { result.dtypes.push_back(dtype); });
  std::copy_if(result.dtypes.begin(), result.dtypes.end(), std::back_inserter(result.fp8_kinds),
               is_fp8);
  result.asynchronous = true;
  return result;
}

int64_t AcceleratorDevice::total_memory_bytes() const {
  return static_cast<int64_t>(allocator().getMemoryInfo(device_.index()).second);
}

MemoryStatistics AcceleratorDevice::memory() const {
  const auto stats = allocator().getDeviceStats(device_.index());
  constexpr auto kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  MemoryStatistics result;
  result.allocated_bytes = stats.allocated_bytes[kAll].current;
  result.peak_allocated_bytes = stats.allocated_bytes[kAll].peak;
  result.reserved_bytes = stats.reserved_bytes[kAll].current;
  result.peak_reserved_bytes = stats.reserved_bytes[kAll].peak;
  result.num_allocations = stats.allocation[kAll].allocated;
  return result;
}

void AcceleratorDevice::reset_peak_memory() {
  allocator().resetPeakStats(device_.index());
}

void AcceleratorDevice::set_memory_cap(int64_t bytes) {
  TRIREME_USER_CHECK(bytes == 0, kConfig, "leave the cap away",
                     "a memory cap of {} bytes on {}, which has none", bytes, device_.str());
}

void AcceleratorDevice::synchronize() {
  guard_.synchronizeDevice(device_.index());
}

Queue& AcceleratorDevice::compute_queue() {
  const c10::Stream stream = guard_.getStream(device_);
  const std::lock_guard lock(mutex_);
  std::unique_ptr<Queue>& queue = queues_[stream.id()];
  if (queue == nullptr) queue = std::make_unique<AcceleratorQueue>(stream, origin_);
  return *queue;
}

std::unique_ptr<Queue> AcceleratorDevice::new_queue() {
  return std::make_unique<AcceleratorQueue>(guard_.getNewStream(device_), origin_);
}

at::Tensor AcceleratorDevice::empty_pinned(c10::IntArrayRef sizes, c10::ScalarType dtype) {
  return at::empty(
      sizes, at::TensorOptions().dtype(dtype).device(c10::DeviceType::CPU).pinned_memory(true));
}

void AcceleratorDevice::copy(const at::Tensor& to, const at::Tensor& from, Queue& queue) {
  TRIREME_CHECK(to.sizes() == from.sizes(), "a copy between tensors of different sizes");
  const QueueGuard guard(queue);
  to.copy_(from, /*non_blocking=*/true);
}

at::Tensor AcceleratorDevice::random_state() const {
  at::Generator generator = generator_of(device_);
  const std::lock_guard lock(generator.mutex());
  return generator.get_state();
}

void AcceleratorDevice::set_random_state(const at::Tensor& state) {
  at::Generator generator = generator_of(device_);
  const std::lock_guard lock(generator.mutex());
  generator.set_state(state);
}

void AcceleratorDevice::seed(uint64_t seed) {
  at::Generator generator = generator_of(device_);
  const std::lock_guard lock(generator.mutex());
  generator.set_current_seed(seed);
}

}  // namespace trireme::device
