#include "trireme/comm/plugin/collectives_library.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <mutex>

#include "trireme/base/error.h"
#include "trireme/comm/plugin/collectives.h"
#include "trireme/comm/plugin/open_collectives.h"
#include "trireme/device/library.h"

namespace trireme::comm {
namespace {

struct Library {
  std::string path;
  MakeCollectives make = nullptr;
};

struct Libraries {
  std::mutex mutex;
  std::map<std::string, Library> by_type;  ///< an empty path: none
};
Libraries& libraries() {
  static auto& all = *new Libraries();
  return all;
}

std::string type_of(const std::string& device) {
  return device.substr(0, device.find(':'));
}

Library open(const std::string& path) {
  constexpr const char* kRebuild =
      "build it with the headers and the torch of this Trireme, or set device.collectives to "
      "\"host\"";
  const std::string file = path.find('/') == std::string::npos ? "./" + path : path;
  void* library = ::dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    throw Error(ErrorCode::kConfig,
                fmt::format("the collectives {} do not open: {}", path, ::dlerror()), kRebuild);
  }
  const auto abi = reinterpret_cast<const void* (*)()>(::dlsym(library, "trireme_collectives_abi"));
  const auto make = reinterpret_cast<MakeCollectives>(::dlsym(library, "trireme_make_collectives"));
  TRIREME_USER_CHECK(abi != nullptr && make != nullptr, kConfig, kRebuild,
                     "{} is no library of collectives", path);
  const auto& theirs = *static_cast<const CollectivesAbi*>(abi());
  const CollectivesAbi& ours = kCollectivesAbi;
  TRIREME_USER_CHECK(theirs.contract == ours.contract, kConfig, kRebuild,
                     "{} was built for another Trireme: contract {}, here {}", path,
                     theirs.contract, ours.contract);
  TRIREME_USER_CHECK(std::ranges::equal(theirs.torch_version, ours.torch_version), kConfig,
                     kRebuild, "{} was built for torch {}.{}.{}, this Trireme runs {}.{}.{}", path,
                     theirs.torch_version[0], theirs.torch_version[1], theirs.torch_version[2],
                     ours.torch_version[0], ours.torch_version[1], ours.torch_version[2]);
  return {path, make};
}

Library find(const std::string& type) {
  const std::string path = device::find_device_library(type + "_collectives");
  return path.empty() ? Library() : open(path);
}

/// Under the mutex.
const Library& of_type(const std::string& type) {
  auto found = libraries().by_type.find(type);
  if (found == libraries().by_type.end())
    found = libraries().by_type.emplace(type, find(type)).first;
  return found->second;
}

}  // namespace

void use_collectives(const std::string& device, const std::string& path) {
  const std::lock_guard lock(libraries().mutex);
  const std::string type = type_of(device);
  if (path.empty()) {
    libraries().by_type.erase(type);
    of_type(type);
    return;
  }
  libraries().by_type[type] = path == "host" ? Library() : open(path);
}

std::string collectives_of(const std::string& type) {
  const std::lock_guard lock(libraries().mutex);
  return of_type(type).path;
}

c10::intrusive_ptr<c10d::Backend> open_collectives(const std::string& type,
                                                   const CollectivesRequest& request) {
  MakeCollectives make = nullptr;
  {
    const std::lock_guard lock(libraries().mutex);
    make = of_type(type).make;
  }
  TRIREME_CHECK(make != nullptr, "no collectives of {}", type);
  c10::intrusive_ptr<c10d::Backend> backend;
  make(request, backend);
  TRIREME_CHECK(backend != nullptr, "the collectives of {} made nothing", type);
  return backend;
}

}  // namespace trireme::comm
