#include "trireme/device/library.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <sstream>

#include "trireme/base/error.h"

namespace trireme::device {

namespace {

using OpenDevice = Device& (*)(int);

struct Library {
  std::string path;
  OpenDevice open;
};

std::mutex& mutex() {
  static std::mutex only;
  return only;
}
std::vector<Library>& libraries() {
  static auto& all = *new std::vector<Library>();
  return all;
}

std::vector<std::filesystem::path> folders() {
  std::vector<std::filesystem::path> result;
  if (const char* path = std::getenv("TRIREME_DEVICE_PATH")) {
    std::istringstream all(path);
    for (std::string folder; std::getline(all, folder, ':');) {
      if (!folder.empty()) result.emplace_back(folder);
    }
  }
  std::error_code error;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", error);
  if (!error) {
    result.push_back(program.parent_path());
    result.push_back(program.parent_path().parent_path() / "lib" / "trireme");
  }
  return result;
}

Library load(const std::string& path) {
  constexpr const char* kRebuild = "build it with the headers and the torch of this Trireme";
  void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    throw Error(ErrorCode::kDevice, fmt::format("{} does not open: {}", path, ::dlerror()),
                "the device's own packages may be missing: docs/gpu.md says how to set it up");
  }
  const auto abi = reinterpret_cast<const void* (*)()>(::dlsym(library, "trireme_device_abi"));
  const auto open = reinterpret_cast<OpenDevice>(::dlsym(library, "trireme_open_device"));
  TRIREME_USER_CHECK(abi != nullptr && open != nullptr, kDevice, kRebuild,
                     "{} is no library of a device", path);
  const auto& theirs = *static_cast<const DeviceAbi*>(abi());
  const auto& ours = kDeviceAbi;
  TRIREME_USER_CHECK(std::equal(theirs.torch_version, theirs.torch_version + 3, ours.torch_version),
                     kDevice, kRebuild,
                     "{} was built for torch {}.{}.{}, this Trireme runs {}.{}.{}", path,
                     theirs.torch_version[0], theirs.torch_version[1], theirs.torch_version[2],
                     ours.torch_version[0], ours.torch_version[1], ours.torch_version[2]);
  TRIREME_USER_CHECK(theirs.contract == ours.contract && theirs.layout == ours.layout, kDevice,
                     kRebuild, "{} was built for another Trireme: contract {}, here {}", path,
                     theirs.contract, ours.contract);
  return {path, open};
}

}  // namespace

std::string find_device_library(const std::string& type) {
  for (const std::filesystem::path& folder : folders()) {
    const auto path = folder / fmt::format("libtrireme_{}.so", type);
    std::error_code error;
    if (std::filesystem::is_regular_file(path, error)) return path.string();
  }
  return "";
}

Device& open_device_library(const std::string& path, int index) {
  const OpenDevice open = [&] {
    const std::lock_guard lock(mutex());
    for (const Library& library : libraries()) {
      if (library.path == path) return library.open;
    }
    libraries().push_back(load(path));
    return libraries().back().open;
  }();
  return open(index);
}

std::vector<std::string> open_device_libraries() {
  const std::lock_guard lock(mutex());
  std::vector<std::string> paths;
  for (const Library& library : libraries()) paths.push_back(library.path);
  return paths;
}

}  // namespace trireme::device
