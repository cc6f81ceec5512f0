#include "trireme/device/plugin/plugin_device.h"

#include <fmt/format.h>

#include <map>
#include <memory>
#include <mutex>

#include "trireme/base/error.h"
#include "trireme/device/accelerator/accelerator_device.h"
#include "trireme/device/plugin/plugin.h"

namespace trireme::device {
namespace {

class PluginDevice final : public AcceleratorDevice {
 public:
  PluginDevice(const Plugin& plugin, int index)
      : AcceleratorDevice(
            c10::Device(c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(index)),
            plugin.contract.support),
        plugin_(plugin) {}
  /// PyTorch has no product's name; the library says as much as there is.
  std::string name() const override {
    return fmt::format("{} ({})", plugin_.name, plugin_.path.filename().string());
  }

 private:
  const Plugin& plugin_;
};

}  // namespace

Device& plugin_device(int index) {
  const Plugin* plugin = loaded_plugin();
  TRIREME_CHECK(plugin != nullptr, "a device of a plug-in that is not loaded");
  const int there = plugin->contract.num_devices;
  TRIREME_USER_CHECK(
      index >= 0 && index < there, kDevice,
      there == 1 ? fmt::format("write {}", plugin->name)
                 : fmt::format("write {}:0 to {}:{}", plugin->name, plugin->name, there - 1),
      "no device {}:{}; the plug-in finds {}", plugin->name, index, there);
  static std::mutex mutex;
  static auto* devices = new std::map<int, std::unique_ptr<PluginDevice>>();
  const std::lock_guard lock(mutex);
  auto& device = (*devices)[index];
  if (device == nullptr) device = std::make_unique<PluginDevice>(*plugin, index);
  return *device;
}

}  // namespace trireme::device
