#include "trireme/device/device.h"

#include <c10/core/Device.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string_view>

#include "trireme/base/error.h"
#include "trireme/base/suggest.h"
#include "trireme/device/cpu/cpu_device.h"
#include "trireme/device/library.h"
#include "trireme/device/plugin/plugin.h"
#include "trireme/device/plugin/plugin_device.h"
#include "trireme/device/sim/sim.h"
#include "trireme/device/sim/sim_device.h"

namespace trireme::device {
namespace {

/// The number behind "type:"; 0 without one, none if it is not a number.
std::optional<int> index_in(std::string_view name, std::string_view type) {
  if (name == type) return 0;
  const std::string_view digits = name.substr(type.size() + 1);
  int index = 0;
  const auto [end, error] = std::from_chars(digits.begin(), digits.end(), index);
  if (error != std::errc() || end != digits.end() || index < 0) return std::nullopt;
  return index;
}

int checked_index(const std::string& name, const std::string& type) {
  const std::optional<int> index = index_in(name, type);
  TRIREME_USER_CHECK(index.has_value(), kConfig,
                     fmt::format("write \"{}\" or \"{}:1\"", type, type),
                     "no device is called \"{}\"", name);
  return *index;
}

/// Whether torch calls an accelerator so: then it is no typing error.
bool known_to_torch(const std::string& type) {
  try {
    const c10::DeviceType known = c10::Device(type).type();
    return known != c10::kPrivateUse1 && known != c10::kCPU;
  } catch (const c10::Error&) {
    return false;
  }
}

bool is_plain_word(std::string_view type) {
  return !type.empty() && std::ranges::all_of(type, [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
  });
}

}  // namespace

Device& get_device(const std::string& name) {
  if (name == "cpu") return cpu_device();
  const std::string type = name.substr(0, name.find(':'));
  if (type == "sim") return sim::sim_device(checked_index(name, type));
  const Plugin* plugin = loaded_plugin();
  if (plugin != nullptr && plugin->name == type) return plugin_device(checked_index(name, type));

  const std::string library = is_plain_word(type) ? find_device_library(type) : "";
  if (!library.empty()) return open_device_library(library, checked_index(name, type));
  if (is_plain_word(type) && known_to_torch(type)) {
    throw Error(ErrorCode::kDevice,
                fmt::format("no library of the device \"{0}\": libtrireme_{0}.so is neither beside "
                            "the program nor in TRIREME_DEVICE_PATH",
                            type),
                "docs/gpu.md says how it is built");
  }

  const char* folders = std::getenv("TRIREME_DEVICE_PATH");
  const bool search = folders != nullptr && *folders != '\0' && !type.empty();
  std::vector<std::string> known = {"cpu", "sim", "sim:0", "sim:1"};
  if (plugin != nullptr) known.push_back(plugin->name);
  const auto is_file = [](const std::filesystem::path& path) {
    return std::filesystem::is_regular_file(path);
  };
  // A name that is nearly one of ours is a slip, unless there is a plug-in of that name.
  if (search && (nearest_name(name, known).empty() ||
                 std::ranges::any_of(plugin_candidates(type, folders), is_file))) {
    const int index = checked_index(name, type);
    load_plugin(type);
    return plugin_device(index);
  }
  throw Error(ErrorCode::kConfig, fmt::format("no device is called \"{}\"", name),
              suggestion(name, known) +
                  (search ? "" : "; of a plug-in give the library with --plugin or device.plugin"));
}

Device* find_open_device(const std::string& name) {
  const std::string type = name.substr(0, name.find(':'));
  const Plugin* plugin = loaded_plugin();
  bool is_here = name == "cpu" || (type == "sim" && sim::backend_registered()) ||
                 (plugin != nullptr && plugin->name == type);
  if (!is_here && is_plain_word(type)) {
    const std::vector<std::string> open = open_device_libraries();
    // Only then are folders looked through.
    is_here = !open.empty() && std::ranges::find(open, find_device_library(type)) != open.end();
  }
  if (!is_here || (name != type && !index_in(name, type))) return nullptr;
  return &get_device(name);
}

}  // namespace trireme::device
