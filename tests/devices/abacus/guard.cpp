// The device guard, the hooks and the random numbers.
#include <ATen/core/Generator.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/ops/empty.h>
#include <c10/core/GeneratorImpl.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <optional>

#include "abacus.h"

namespace abacus {
namespace {

using c10::Device;
using c10::DeviceIndex;
using c10::Stream;

double now_ms() {
  return std::chrono::duration<double, std::milli>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

/// The least that PyTorch asks for.
struct PlainGuard : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kType; }
  Device getDevice() const override { return {kType, static_cast<DeviceIndex>(current_device())}; }
  void setDevice(Device device) const override { set_current_device(device.index()); }
  void uncheckedSetDevice(Device device) const noexcept override {
    set_current_device(device.index());
  }
  Device exchangeDevice(Device device) const override {
    const Device before = getDevice();
    setDevice(device);
    return before;
  }
  Stream getStream(Device device) const override { return current_stream(index_of(device)); }
  Stream exchangeStream(Stream stream) const override {
    const Stream before = current_stream(stream.device_index());
    set_current_stream(stream);
    return before;
  }
  DeviceIndex deviceCount() const noexcept override {
    return has_defect("no_device") ? 0 : kDevices;
  }
  bool queryStream(const Stream& stream) const override { return reached(here(stream)); }
  void synchronizeStream(const Stream& stream) const override { run_to(here(stream)); }
  static int index_of(Device device) {
    return device.has_index() ? device.index() : current_device();
  }
};

struct TimedPoint {
  Point point;
  double reached_ms = 0;
};
/// What PyTorch holds as an event: shared with the stream, which may come by when the event is gone.
using Event = std::shared_ptr<TimedPoint>;
Event& event_at(void* address) {
  return *static_cast<Event*>(address);
}

struct Guard final : PlainGuard {
  Stream getDefaultStream(Device device) const override {
    return Stream(Stream::DEFAULT, Device(kType, static_cast<DeviceIndex>(index_of(device))));
  }
  Stream getNewStream(Device device, int) const override { return make_stream(index_of(device)); }
  Stream getStreamFromGlobalPool(Device device, bool) const override {
    return make_stream(index_of(device));
  }
  void record(void** event, const Stream& stream, const DeviceIndex,
              const c10::EventFlag) const override {
    if (*event == nullptr) *event = new Event();
    auto timed = std::make_shared<TimedPoint>();
    // The time is taken when the stream comes by.
    issue(stream, [timed] { timed->reached_ms = now_ms(); });
    timed->point = here(stream);
    event_at(*event) = timed;
  }
  void block(void* event, const Stream& stream) const override {
    if (event == nullptr || has_defect("no_block")) return;
    issue(stream, [timed = event_at(event)] { run_to(timed->point); });
  }
  bool queryEvent(void* event) const override {
    if (event == nullptr || has_defect("lying_event")) return true;
    return reached(event_at(event)->point);
  }
  void synchronizeEvent(void* event) const override {
    if (event != nullptr && !has_defect("lying_event")) run_to(event_at(event)->point);
  }
  void destroyEvent(void* event, const DeviceIndex) const noexcept override {
    delete static_cast<Event*>(event);
  }
  double elapsedTime(void* first, void* second, const DeviceIndex) const override {
    const double from = event_at(first)->reached_ms;
    const double to = event_at(second)->reached_ms;
    return has_defect("backward_clock") ? from - to - 1 : to - from;
  }
  void synchronizeDevice(const DeviceIndex device) const override {
    if (!has_defect("no_synchronize")) run_all(device < 0 ? current_device() : device);
  }
  c10::DeviceCapability getDeviceCapability(Device) const override { return {}; }
};

// ---- random numbers ------------------------------------------------------------------------------

/// The n-th number is a hash of the seed and n.
class Generator final : public c10::GeneratorImpl {
 public:
  explicit Generator(int device)
      : GeneratorImpl(Device(kType, static_cast<DeviceIndex>(device)),
                      c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)) {}
  void set_current_seed(uint64_t seed) override {
    if (has_defect("no_seed")) return;
    seed_ = seed;
    next_ = 0;
  }
  uint64_t current_seed() const override { return seed_; }
  uint64_t seed() override {
    set_current_seed(
        static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count()));
    return seed_;
  }
  void set_offset(uint64_t offset) override { next_ = offset; }
  uint64_t get_offset() const override { return next_; }
  void set_state(const c10::TensorImpl& state) override {
    if (has_defect("no_state")) return;
    const auto* words = static_cast<const uint64_t*>(state.data());
    seed_ = words[0];
    next_ = words[1];
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    const at::Tensor state = at::empty({16}, at::TensorOptions().dtype(at::kByte));
    const uint64_t words[] = {seed_, next_};
    std::memcpy(state.mutable_data_ptr(), words, sizeof(words));
    return state.getIntrusivePtr();
  }
  uint64_t take(int64_t count) {
    const uint64_t first = next_;
    next_ += static_cast<uint64_t>(count);
    return first;
  }

 private:
  Generator* clone_impl() const override { return new Generator(*this); }
  Generator(const Generator& other)
      : GeneratorImpl(other.device(), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)),
        seed_(other.seed_),
        next_(other.next_) {}
  uint64_t seed_ = 1;
  uint64_t next_ = 0;
};

const at::Generator& generator_of(int device) {
  static const auto* all = new std::array<at::Generator, kDevices>{
      at::make_generator<Generator>(0), at::make_generator<Generator>(1)};
  return all->at(static_cast<size_t>(device));
}

// ---- hooks ---------------------------------------------------------------------------------------

std::mutex pinned_mutex;
std::map<const char*, size_t>& pinned() {
  static auto* all = new std::map<const char*, size_t>();
  return *all;
}

void release_pinned(void* address) {
  run_all(0);
  run_all(1);
  const std::lock_guard lock(pinned_mutex);
  pinned().erase(static_cast<char*>(address));
  std::free(address);
}

struct PinnedAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    void* address = std::aligned_alloc(64, (size + 64) / 64 * 64);
    const std::lock_guard lock(pinned_mutex);
    pinned()[static_cast<char*>(address)] = size + 1;
    return {address, address, &release_pinned, Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release_pinned; }
  void copy_data(void* to, const void* from, size_t size) const override {
    std::memcpy(to, from, size);
  }
};

struct PlainHooks : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return kDevices; }
  DeviceIndex getCurrentDevice() const override {
    return static_cast<DeviceIndex>(current_device());
  }
  void setCurrentDevice(DeviceIndex device) const override { set_current_device(device); }
};

struct Hooks final : PlainHooks {
  bool isPinnedPtr(const void* address) const override { return is_pinned(address); }
  c10::Allocator* getPinnedMemoryAllocator() const override {
    static auto* allocator = new PinnedAllocator();
    return allocator;
  }
  const at::Generator& getDefaultGenerator(DeviceIndex device) const override {
    return generator_of(device < 0 ? current_device() : device);
  }
  at::Generator getNewGenerator(DeviceIndex device) const override {
    return at::make_generator<Generator>(device < 0 ? current_device() : device);
  }
};

}  // namespace

bool is_pinned(const void* address) {
  const std::lock_guard lock(pinned_mutex);
  const auto block = pinned().upper_bound(static_cast<const char*>(address));
  if (block == pinned().begin()) return false;
  const auto& [begin, size] = *std::prev(block);
  return static_cast<const char*>(address) < begin + size;
}

std::function<double()> take_draws(const std::optional<at::Generator>& generator, int device,
                                   int64_t count) {
  const at::Generator& from =
      generator.has_value() && generator->defined() ? *generator : generator_of(device);
  auto* impl = static_cast<Generator*>(from.unsafeGetGeneratorImpl());
  uint64_t n = impl->take(count);
  const uint64_t seed = impl->current_seed();
  return [seed, n]() mutable {
    // SplitMix64 (Steele, Lea and Flood 2014).
    uint64_t x = seed * 0xD1342543DE82EF95U + ++n * 0x9E3779B97F4A7C15U;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9U;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBU;
    return static_cast<double>((x ^ (x >> 31)) >> 11) * 0x1p-53;
  };
}

void register_guard() {
  static const c10::impl::DeviceGuardImplRegistrar registrar(
      kType, has_defect("plain_guard") ? static_cast<PlainGuard*>(new PlainGuard()) : new Guard());
}

void register_hooks() {
  if (at::isPrivateUse1HooksRegistered()) return;
  if (has_defect("plain_hooks")) {
    at::RegisterPrivateUse1HooksInterface(new PlainHooks());
  } else {
    at::RegisterPrivateUse1HooksInterface(new Hooks());
  }
}

}  // namespace abacus
