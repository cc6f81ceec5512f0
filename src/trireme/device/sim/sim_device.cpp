#include "trireme/device/sim/sim_device.h"

#include <fmt/format.h>

#include <array>
#include <memory>
#include <mutex>

#include "trireme/device/accelerator/accelerator_device.h"
#include "trireme/device/sim/runtime.h"

namespace trireme::device::sim {
namespace {

class SimulatedDevice final : public AcceleratorDevice {
 public:
  explicit SimulatedDevice(int index)
      : AcceleratorDevice(
            c10::Device(c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(index))) {}
  std::string name() const override { return "simulated accelerator"; }
  Capabilities capabilities() const override {
    Capabilities result = AcceleratorDevice::capabilities();
    result.peer_access = true;
    return result;
  }
  MemoryStatistics memory() const override { return own_memory().statistics(); }
  void set_memory_cap(int64_t bytes) override {
    own_memory().set_cap(bytes == 0 ? Runtime::get().options().memory_cap_bytes : bytes);
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
