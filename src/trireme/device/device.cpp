#include "trireme/device/device.h"

#include <c10/core/Device.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <string_view>

#include "trireme/base/error.h"
#include "trireme/base/suggest.h"
#include "trireme/device/cpu/cpu_device.h"
#include "trireme/device/library.h"
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

/// A device of a library. Throws as get_device().
Device& library_device(const std::string& name) {
  const std::string type = name.substr(0, name.find(':'));
  const std::string library = is_plain_word(type) ? find_device_library(type) : "";
  if (library.empty()) {
    if (is_plain_word(type) && known_to_torch(type)) {
      throw Error(ErrorCode::kDevice,
                  fmt::format("no library of the device \"{}\": libtrireme_{}.so is neither beside "
                              "the program nor in "
                              "TRIREME_DEVICE_PATH",
                              type, type),
                  "docs/gpu.md says how it is built");
    }
    throw Error(ErrorCode::kConfig, fmt::format("no device is called \"{}\"", name),
                suggestion(name, {"cpu", "sim", "sim:0", "sim:1"}));
  }
  const std::optional<int> index = index_in(name, type);
  TRIREME_USER_CHECK(index.has_value(), kConfig, fmt::format("write \"{0}\" or \"{0}:1\"", type),
                     "no device is called \"{}\"", name);
  return open_device_library(library, *index);
}

}  // namespace

Device& get_device(const std::string& name) {
  if (name == "cpu") return cpu_device();
  if (name == "sim" || name.starts_with("sim:")) {
    const std::optional<int> index = index_in(name, "sim");
    TRIREME_USER_CHECK(index.has_value(), kConfig, "write \"sim\" or \"sim:1\"",
                       "no device is called \"{}\"", name);
    return sim::sim_device(*index);
  }
  return library_device(name);
}

}  // namespace trireme::device
