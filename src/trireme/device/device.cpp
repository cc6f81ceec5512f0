#include "trireme/device/device.h"

#include <charconv>
#include <optional>
#include <string_view>

#include "trireme/base/error.h"
#include "trireme/base/suggest.h"
#include "trireme/device/cpu/cpu_device.h"
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

}  // namespace

Device& get_device(const std::string& name) {
  if (name == "cpu") return cpu_device();
  if (name == "sim" || name.starts_with("sim:")) {
    const std::optional<int> index = index_in(name, "sim");
    TRIREME_USER_CHECK(index.has_value(), kConfig, "write \"sim\" or \"sim:1\"",
                       "no device is called \"{}\"", name);
    return sim::sim_device(*index);
  }
  throw Error(ErrorCode::kConfig, fmt::format("no device is called \"{}\"", name),
              suggestion(name, {"cpu", "sim", "sim:0", "sim:1"}));
}

}  // namespace trireme::device
