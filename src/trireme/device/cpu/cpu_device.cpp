#include "trireme/device/cpu/cpu_device.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/empty.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/ScalarType.h>
#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <fstream>
#include <mutex>

#include "trireme/base/error.h"
#include "trireme/device/cpu/caching_allocator.h"

namespace trireme::device {
namespace {

void free_block(void* address) {
  cpu_allocator().free(address);
}

class TorchAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* address = cpu_allocator().allocate(bytes);
    return {address, address, &free_block, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_block; }
  void copy_data(void* destination, const void* source, size_t bytes) const override {
    std::memcpy(destination, source, bytes);
  }
};

std::atomic<bool> installed{false};

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

class CpuEvent final : public Event {
 public:
  bool done() const override { return true; }
  void wait() override {}
  double seconds() const override { return seconds_; }

 private:
  double seconds_ = seconds_now();
};

class CpuQueue final : public Queue {
 public:
  std::unique_ptr<Event> record() override { return std::make_unique<CpuEvent>(); }
  void wait_for(const Event& event) override {
    TRIREME_CHECK(event.done(), "the CPU waits for a device in Event::wait(), not in its queue");
  }
  void synchronize() override {}
  c10::Stream torch_stream() const override {
    return c10::Stream(c10::Stream::DEFAULT, c10::Device(c10::DeviceType::CPU, -1));
  }
};

class CpuDevice final : public Device {
 public:
  std::string name() const override {
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);) {
      const size_t colon = line.find(": ");
      if (line.starts_with("model name") && colon != std::string::npos)
        return line.substr(colon + 2);
    }
    return "CPU";
  }
  std::string type() const override { return "cpu"; }
  c10::Device torch_device() const override { return c10::Device(c10::DeviceType::CPU); }
  int64_t total_memory_bytes() const override {
    const int64_t physical =
        static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<int64_t>(sysconf(_SC_PAGESIZE));
    // A container may have less than the machine; "max" does not parse and leaves what the machine has.
    for (const char* path :
         {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
      int64_t limit = 0;
      if (std::ifstream(path) >> limit && limit > 0) return std::min(limit, physical);
    }
    return physical;
  }
  Capabilities capabilities() const override {
    Capabilities result;
    for (int8_t i = 0; i < static_cast<int8_t>(c10::ScalarType::NumOptions); ++i) {
      const auto dtype = static_cast<c10::ScalarType>(i);
      const bool quantized = c10::isQIntType(dtype) || c10::isBitsType(dtype);
      if (quantized || dtype == c10::ScalarType::Undefined) continue;
      result.dtypes.push_back(dtype);
      if (c10::elementSize(dtype) == 1 && c10::isFloatingType(dtype)) {
        result.fp8_kinds.push_back(dtype);
      }
    }
    return result;
  }
  MemoryStatistics memory() const override { return cpu_allocator().statistics(); }
  void reset_peak_memory() override { cpu_allocator().reset_peak(); }
  void set_memory_cap(int64_t bytes) override {
    TRIREME_USER_CHECK(bytes >= 0 && bytes <= total_memory_bytes(), kConfig,
                       fmt::format("give at most {}", total_memory_bytes()),
                       "a memory cap of {} bytes", bytes);
    cpu_allocator().set_cap(bytes);
  }
  void synchronize() override {}
  Queue& compute_queue() override { return queue_; }
  std::unique_ptr<Queue> new_queue() override { return std::make_unique<CpuQueue>(); }
  at::Tensor empty_pinned(c10::IntArrayRef sizes, c10::ScalarType dtype) override {
    return at::empty(sizes, at::TensorOptions().dtype(dtype));
  }
  void copy(const at::Tensor& to, const at::Tensor& from, Queue&) override {
    TRIREME_CHECK(to.sizes() == from.sizes(), "a copy between tensors of different sizes");
    to.copy_(from);
  }
  at::Tensor random_state() const override {
    at::Generator generator = at::detail::getDefaultCPUGenerator();
    const std::lock_guard lock(generator.mutex());
    return generator.get_state();
  }
  void set_random_state(const at::Tensor& state) override {
    at::Generator generator = at::detail::getDefaultCPUGenerator();
    const std::lock_guard lock(generator.mutex());
    generator.set_state(state);
  }
  void seed(uint64_t seed) override {
    at::Generator generator = at::detail::getDefaultCPUGenerator();
    const std::lock_guard lock(generator.mutex());
    generator.set_current_seed(seed);
  }

 private:
  CpuQueue queue_;
};

}  // namespace

CachingAllocator& cpu_allocator() {
  // Never destroyed: tensors with static lifetime are freed after it would be.
  static CachingAllocator* allocator = new CachingAllocator();
  return *allocator;
}

void install_cpu_allocator() {
  static std::once_flag once;
  std::call_once(once, [] {
    static TorchAllocator* allocator = new TorchAllocator();
    c10::SetCPUAllocator(allocator, /*priority=*/10);
    installed = true;
  });
}

bool cpu_allocator_installed() {
  return installed;
}

Device& cpu_device() {
  install_cpu_allocator();
  static CpuDevice* device = new CpuDevice();
  return *device;
}

}  // namespace trireme::device
