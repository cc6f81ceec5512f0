// The CPU behind the Device interface: its queue is the calling thread, so everything issued is
// done.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <fstream>
#include <mutex>

#include "trireme/base/error.h"
#include "trireme/device/cpu/caching_allocator.h"
#include "trireme/device/device.h"

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
  void wait_for(const Event&) override {}
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
  MemoryStatistics memory() const override { return cpu_allocator().statistics(); }
  void reset_peak_memory() override { cpu_allocator().reset_peak(); }
  void synchronize() override {}
  Queue& compute_queue() override { return queue_; }

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

Device& get_device(const std::string& name) {
  TRIREME_USER_CHECK(name == "cpu", kConfig, "this build knows the device \"cpu\"",
                     "no device is called \"{}\"", name);
  install_cpu_allocator();
  static CpuDevice* device = new CpuDevice();
  return *device;
}

}  // namespace trireme::device
