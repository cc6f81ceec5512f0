#include "trireme/kernels/library.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <filesystem>

#include "trireme/base/error.h"
#include "trireme/device/library.h"

namespace trireme::kernels {

namespace {

constexpr const char* kBuildHint =
    "build it with the headers and the torch of this Trireme (examples/kernel)";

std::string torch_text(const KernelsAbi& abi) {
  return fmt::format("{}.{}.{}", abi.torch_version[0], abi.torch_version[1], abi.torch_version[2]);
}

void check_abi(const std::string& path, const KernelsAbi& theirs) {
  const KernelsAbi& ours = kKernelsAbi;
  TRIREME_USER_CHECK(torch_text(theirs) == torch_text(ours), kConfig, kBuildHint,
                     "{} was built for torch {}, this Trireme runs torch {}", path,
                     torch_text(theirs), torch_text(ours));
  TRIREME_USER_CHECK(theirs.contract == ours.contract && theirs.layout == ours.layout, kConfig,
                     kBuildHint,
                     "{} was built for another Trireme: contract {}, layout {:x}; here contract "
                     "{}, layout {:x}",
                     path, theirs.contract, theirs.layout, ours.contract, ours.layout);
}

}  // namespace

void load_library(const std::string& path, Registrar& registrar) {
  TRIREME_USER_CHECK(std::filesystem::is_regular_file(path), kConfig,
                     "paths are relative to the working directory", "{}: there is no such library",
                     path);
  const std::string absolute = std::filesystem::absolute(path).string();
  // Lazily at first: one that was built for another torch would not get as far as to say so.
  void* library = ::dlopen(absolute.c_str(), RTLD_LAZY | RTLD_LOCAL);
  TRIREME_USER_CHECK(library != nullptr, kConfig, kBuildHint, "{} does not open: {}", path,
                     ::dlerror());
  const auto abi = reinterpret_cast<const void* (*)()>(::dlsym(library, "trireme_kernels_abi"));
  const auto add =
      reinterpret_cast<void (*)(Registrar&)>(::dlsym(library, "trireme_register_kernels"));
  TRIREME_USER_CHECK(abi != nullptr && add != nullptr, kConfig,
                     "a kernel library has TRIREME_KERNELS(registrar) { ... } in it",
                     "{} is no library of kernels", path);
  check_abi(path, *static_cast<const KernelsAbi*>(abi()));
  TRIREME_USER_CHECK(::dlopen(absolute.c_str(), RTLD_NOW | RTLD_LOCAL) != nullptr, kConfig,
                     "it may name functions of Trireme other than those of its headers",
                     "{} does not open: {}", path, ::dlerror());
  add(registrar);
}

void add_device_kernels(Registrar& registrar) {
  static std::set<std::string> added;
  for (const std::string& path : device::open_device_libraries()) {
    void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    const bool has_kernels =
        library != nullptr && ::dlsym(library, "trireme_register_kernels") != nullptr;
    if (has_kernels && added.insert(path).second) load_library(path, registrar);
  }
}

void load_and_choose(const std::vector<std::string>& libraries, const KernelNames& use) {
  add_device_kernels(registry());
  static std::set<std::string> loaded;
  for (const std::string& path : libraries) {
    const std::string key = std::filesystem::weakly_canonical(path).string();
    if (loaded.contains(key)) continue;
    load_library(path, registry());
    loaded.insert(key);
  }
  registry().choose(use);
}

}  // namespace trireme::kernels
