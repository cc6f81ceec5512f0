#include "trireme/device/accelerator/accelerator_device.h"

#include <ATen/Context.h>
#include <ATen/core/Generator.h>
#include <ATen/ops/empty.h>
#include <c10/core/DeviceCapability.h>
#include <c10/core/Event.h>
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <map>
#include <utility>

#include "trireme/base/error.h"

namespace trireme::device {
namespace {

double host_seconds() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

/// What a back end throws while work is waited for is a failure of its device.
template <class Call>
void wait_for_device(const c10::Device& device, const Call& call) {
  try {
    call();
  } catch (const c10::Error& error) {
    throw Error(ErrorCode::kDevice,
                fmt::format("{}: {}", device.str(), error.what_without_backtrace()),
                "the device failed; the run can be resumed from its last checkpoint");
  }
}

class AcceleratorEvent final : public Event {
 public:
  AcceleratorEvent(const c10::Stream& stream, std::shared_ptr<const Event> origin)
      : device_(stream.device()),
        event_(stream.device_type(), c10::EventFlag::BACKEND_DEFAULT),
        origin_(std::move(origin)) {
    event_.record(stream);
  }
  bool done() const override {
    const bool done = event_.query();
    if (done) see();
    return done;
  }
  void wait() override {
    wait_for_device(device_, [this] { event_.synchronize(); });
    see();
  }
  double seconds() const override {
    if (origin_ == nullptr) return seen_s_;
    const auto& origin = static_cast<const AcceleratorEvent&>(*origin_);
    return 1e-3 * origin.event_.elapsedTime(event_);
  }
  void block(const c10::Stream& stream) const { event_.block(stream); }

 private:
  void see() const {
    double never = 0;
    seen_s_.compare_exchange_strong(never, host_seconds());
  }
  c10::Device device_;
  c10::Event event_;
  std::shared_ptr<const Event> origin_;
  mutable std::atomic<double> seen_s_{0};  ///< the host's clock when it was first seen done
};

/// Of a back end without events: made when the queue is idle.
class PassedEvent final : public Event {
 public:
  bool done() const override { return true; }
  void wait() override {}
  double seconds() const override { return seconds_; }

 private:
  double seconds_ = host_seconds();
};

class AcceleratorQueue final : public Queue {
 public:
  AcceleratorQueue(const c10::Stream& stream, std::shared_ptr<const Event> origin, bool has_events)
      : stream_(stream), origin_(std::move(origin)), has_events_(has_events) {}
  std::unique_ptr<Event> record() override {
    if (has_events_) return std::make_unique<AcceleratorEvent>(stream_, origin_);
    synchronize();
    return std::make_unique<PassedEvent>();
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
  void synchronize() override {
    wait_for_device(stream_.device(), [this] { stream_.synchronize(); });
  }
  c10::Stream torch_stream() const override { return stream_; }

 private:
  c10::Stream stream_;
  std::shared_ptr<const Event> origin_;
  bool has_events_;
};

bool is_fp8(c10::ScalarType dtype) {
  return c10::elementSize(dtype) == 1 && c10::isFloatingType(dtype);
}

/// Types that a tensor can be made of, where the back end does not say.
std::vector<c10::ScalarType> dtypes_that_can_be_made(const c10::Device& device) {
  std::vector<c10::ScalarType> result;
  for (const c10::ScalarType dtype :
       {c10::ScalarType::Float, c10::ScalarType::BFloat16, c10::ScalarType::Half,
        c10::ScalarType::Double, c10::ScalarType::Long, c10::ScalarType::Int,
        c10::ScalarType::Short, c10::ScalarType::Char, c10::ScalarType::Byte, c10::ScalarType::Bool,
        c10::ScalarType::Float8_e4m3fn, c10::ScalarType::Float8_e5m2}) {
    try {
      at::empty({1}, at::TensorOptions().dtype(dtype).device(device));
      result.push_back(dtype);
    } catch (const c10::Error&) {  // not this one
    }
  }
  return result;
}

}  // namespace

AcceleratorDevice::AcceleratorDevice(c10::Device device, const AcceleratorSupport& support)
    : device_(device), support_(support), guard_(device.type()) {
  if (!support_.events || !support_.event_times) return;
  const c10::Stream stream = guard_.getStream(device);
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
  if (support_.dtypes) {
    guard_.getDeviceCapability(device_).forEachSupportedScalarType(
        [&](c10::ScalarType dtype) { result.dtypes.push_back(dtype); });
  } else {
    result.dtypes = dtypes_that_can_be_made(device_);
  }
  std::copy_if(result.dtypes.begin(), result.dtypes.end(), std::back_inserter(result.fp8_kinds),
               is_fp8);
  result.asynchronous = true;
  return result;
}

int64_t AcceleratorDevice::total_memory_bytes() const {
  if (!support_.memory_size) return 0;
  return static_cast<int64_t>(allocator().getMemoryInfo(device_.index()).second);
}

MemoryStatistics AcceleratorDevice::memory() const {
  MemoryStatistics result;
  if (!support_.memory_statistics) return result;
  const auto stats = allocator().getDeviceStats(device_.index());
  constexpr auto kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  result.allocated_bytes = stats.allocated_bytes[kAll].current;
  result.peak_allocated_bytes = stats.allocated_bytes[kAll].peak;
  result.reserved_bytes = stats.reserved_bytes[kAll].current;
  result.peak_reserved_bytes = stats.reserved_bytes[kAll].peak;
  result.num_allocations = stats.allocation[kAll].allocated;
  return result;
}

void AcceleratorDevice::reset_peak_memory() {
  if (support_.memory_statistics) allocator().resetPeakStats(device_.index());
}

void AcceleratorDevice::set_memory_cap(int64_t bytes) {
  TRIREME_USER_CHECK(bytes == 0, kConfig, "leave the cap away",
                     "a memory cap of {} bytes on {}, which has none", bytes, device_.str());
}

void AcceleratorDevice::synchronize() {
  if (support_.synchronize_device) {
    wait_for_device(device_, [this] { guard_.synchronizeDevice(device_.index()); });
    return;
  }
  std::map<c10::StreamId, c10::Stream> streams;
  {
    const std::lock_guard lock(mutex_);
    streams = streams_;
  }
  // Whatever ATen's calls of this thread went to, known to us or not.
  const c10::Stream current = guard_.getStream(device_);
  streams.emplace(current.id(), current);
  for (const auto& [id, stream] : streams)
    wait_for_device(device_, [&stream] { stream.synchronize(); });
}

std::unique_ptr<Queue> AcceleratorDevice::queue_on(const c10::Stream& stream) const {
  return std::make_unique<AcceleratorQueue>(stream, origin_, support_.events);
}

Queue& AcceleratorDevice::compute_queue() {
  const c10::Stream stream = guard_.getStream(device_);
  const std::lock_guard lock(mutex_);
  streams_.emplace(stream.id(), stream);
  std::unique_ptr<Queue>& queue = queues_[stream.id()];
  if (queue == nullptr) queue = queue_on(stream);
  return *queue;
}

c10::Stream AcceleratorDevice::make_stream() {
  if (support_.new_streams) return guard_.getNewStream(device_);
  if (support_.pool_streams) return guard_.getStreamFromGlobalPool(device_);
  return guard_.getStream(device_);
}

std::unique_ptr<Queue> AcceleratorDevice::new_queue() {
  const c10::Stream stream = make_stream();
  const std::lock_guard lock(mutex_);
  streams_.emplace(stream.id(), stream);
  return queue_on(stream);
}

at::Tensor AcceleratorDevice::empty_pinned(c10::IntArrayRef sizes, c10::ScalarType dtype) {
  return at::empty(sizes, at::TensorOptions()
                              .dtype(dtype)
                              .device(c10::DeviceType::CPU)
                              .pinned_memory(support_.pinned_memory));
}

void AcceleratorDevice::copy(const at::Tensor& to, const at::Tensor& from, Queue& queue) {
  TRIREME_CHECK(to.sizes() == from.sizes(), "a copy between tensors of different sizes");
  const QueueGuard guard(queue);
  to.copy_(from, /*non_blocking=*/true);
}

const at::Generator& AcceleratorDevice::generator() const {
  TRIREME_USER_CHECK(support_.generator, kDevice,
                     "its library implements getDefaultGenerator in PrivateUse1HooksInterface",
                     "{} has no random state: it gives no generator", device_.str());
  return at::globalContext()
      .getAcceleratorHooksInterface(device_.type())
      .getDefaultGenerator(device_.index());
}

at::Tensor AcceleratorDevice::random_state() const {
  at::Generator generator = this->generator();
  const std::lock_guard lock(generator.mutex());
  return generator.get_state();
}

void AcceleratorDevice::set_random_state(const at::Tensor& state) {
  at::Generator generator = this->generator();
  const std::lock_guard lock(generator.mutex());
  generator.set_state(state);
}

void AcceleratorDevice::seed(uint64_t seed) {
  at::Generator generator = this->generator();
  const std::lock_guard lock(generator.mutex());
  generator.set_current_seed(seed);
}

}  // namespace trireme::device
