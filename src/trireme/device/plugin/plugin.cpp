#include "trireme/device/plugin/plugin.h"

#include <c10/core/DeviceType.h>
#include <c10/util/Exception.h>
#include <cxxabi.h>
#include <dlfcn.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <string_view>

#include "trireme/base/error.h"
#include "trireme/base/log.h"
#include "trireme/base/torch_compat.h"
#include "trireme/device/plugin/plugin_device.h"

namespace trireme::device {
namespace {

namespace fs = std::filesystem;

constexpr const char* kPathVariable = "TRIREME_DEVICE_PATH";
constexpr const char* kTorchHint =
    "build the plug-in with this torch, or Trireme with the plug-in's (make TRIREME_TORCH=...)";

std::mutex mutex;
std::unique_ptr<Plugin>& slot() {
  static auto* plugin = new std::unique_ptr<Plugin>();
  return *plugin;
}

std::string demangled(const std::string& symbol) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> text(
      abi::__cxa_demangle(symbol.c_str(), nullptr, nullptr, &status), &std::free);
  return status == 0 ? std::string(text.get()) : symbol;
}

/// A function or a type of torch's, demangled or not.
bool is_of_torch(const std::string& symbol) {
  for (const char* name : {"c10::", "at::", "torch::", "caffe2::", "aoti_torch"}) {
    const size_t place = symbol.find(name);
    if (place == 0 || (place != std::string::npos && symbol[place - 1] == ' ')) return true;
  }
  return false;
}

/// "abacus" of libtorch_abacus.so.
std::string name_of_file(const fs::path& path) {
  std::string name = path.filename().string();
  name = name.substr(0, name.find(".so"));
  for (const std::string_view prefix : {"libtorch_", "lib"}) {
    if (name.starts_with(prefix)) return name.substr(prefix.size());
  }
  return name;
}

std::string folders_to_search() {
  const char* folders = std::getenv(kPathVariable);
  return folders == nullptr ? "" : folders;
}

/// What stands between ':', without what is empty.
std::vector<std::string> split_paths(std::string_view text) {
  std::vector<std::string> parts;
  while (!text.empty()) {
    const size_t end = std::min(text.find(':'), text.size());
    if (end > 0) parts.emplace_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return parts;
}

/// Absolute, in the order in which they are opened.
std::vector<fs::path> find_libraries(const std::string& name, const std::string& path) {
  if (!path.empty()) {
    std::vector<fs::path> libraries;
    for (const std::string& part : split_paths(path)) {
      TRIREME_USER_CHECK(fs::is_regular_file(part), kConfig,
                         "paths are relative to the working directory",
                         "{}: there is no such plug-in", part);
      libraries.push_back(fs::weakly_canonical(part));
    }
    TRIREME_USER_CHECK(!libraries.empty(), kConfig, "give the path of a library",
                       "device.plugin = \"{}\" names no library", path);
    return libraries;
  }
  const std::vector<fs::path> candidates = plugin_candidates(name, folders_to_search());
  for (const fs::path& candidate : candidates) {
    if (fs::is_regular_file(candidate)) return {fs::weakly_canonical(candidate)};
  }
  std::vector<std::string> looked;
  for (const fs::path& candidate : candidates) looked.push_back(candidate.string());
  throw Error(ErrorCode::kConfig,
              looked.empty() ? fmt::format("no plug-in for the device \"{}\" is named", name)
                             : fmt::format("no plug-in for the device \"{}\": looked for {}", name,
                                           fmt::join(looked, ", ")),
              fmt::format("give its path with --plugin or device.plugin, or its folder in {}",
                          kPathVariable));
}

std::string opening;  // the library that is being opened, for end_while_opening()
std::string owner;    // of PyTorch's place before that; empty: nobody

constexpr const char* kOneDeviceHint = "name the libraries of one device only";

/// Whether a library failed because another had brought a device before it.
bool is_about_the_place(const std::string& what) {
  return !owner.empty() && (what.find("PrivateUse1") != std::string::npos ||
                            what.find("privateuse1") != std::string::npos);
}

std::string place_is_taken() {
  return fmt::format(
      "{} brings another device, and PyTorch's place for one belongs to \"{}\" in this process",
      opening, owner);
}

/// What an initialiser throws does not pass through dlopen: the process ends. It ends with a sentence.
[[noreturn]] void end_while_opening() {
  std::string what = "an exception of no known type";
  try {
    const std::exception_ptr thrown = std::current_exception();
    if (thrown != nullptr) std::rethrow_exception(thrown);
  } catch (const c10::Error& error) {
    what = error.what_without_backtrace();
  } catch (const std::exception& error) {
    what = error.what();
  } catch (...) {  // as it stands
  }
  if (is_about_the_place(what)) {
    fmt::print(stderr, "error: {}\n  hint: {}\n", place_is_taken(), kOneDeviceHint);
    std::fflush(stderr);
    std::_Exit(static_cast<int>(ErrorCode::kConfig));
  }
  fmt::print(
      stderr,
      "error: {} fails while it is loaded: {}\n  hint: its driver may be missing; the text is "
      "the library's own\n",
      opening, what);
  std::fflush(stderr);
  std::_Exit(static_cast<int>(ErrorCode::kDevice));
}

/// The linker's locks are held while initialisers run, so an exception must not get out of it. dlopen is declared to throw nothing;
/// the call goes by a pointer that does not say so, lest it be compiled as if nothing could.
[[gnu::noinline]] void* open_or_end(const char* path) noexcept {
  void* (*volatile const open)(const char*, int) = &::dlopen;
  return open(path, RTLD_NOW | RTLD_GLOBAL);
}

void open_library(const std::string& path) {
  opening = path;
  owner = c10::is_privateuse1_backend_registered() ? c10::get_privateuse1_backend() : "";
  const std::terminate_handler before = std::set_terminate(&end_while_opening);
  // Global, as a program that links the library would have it: parts of a plug-in find each other by name.
  void* library = open_or_end(path.c_str());
  std::set_terminate(before);
  if (library == nullptr) {
    const char* text = ::dlerror();
    const LoadFailure failure = explain_load_failure(path, text == nullptr ? "" : text);
    throw Error(ErrorCode::kConfig, failure.message, failure.hint);
  }
  // Nothing of a library says for which torch it was built; one that offers this function does.
  const auto release =
      reinterpret_cast<const char* (*)()>(::dlsym(library, "trireme_device_torch_version"));
  if (release != nullptr) {
    const std::string theirs = release();
    TRIREME_USER_CHECK(theirs == TORCH_VERSION, kConfig, kTorchHint,
                       "{} was built for torch {}, this Trireme runs torch {}", path, theirs,
                       TORCH_VERSION);
  }
}

std::string claim_name(const std::string& wanted, const fs::path& path, bool& named_by_library) {
  named_by_library = c10::is_privateuse1_backend_registered();
  if (!named_by_library) {
    const std::string name = wanted.empty() ? name_of_file(path) : wanted;
    try {
      c10::register_privateuse1_backend(name);
    } catch (const c10::Error& error) {
      throw Error(ErrorCode::kConfig,
                  fmt::format("PyTorch takes no device called \"{}\": {}", name,
                              error.what_without_backtrace()),
                  "give the device another name");
    }
  }
  const std::string name = c10::get_privateuse1_backend();
  TRIREME_USER_CHECK(wanted.empty() || wanted == name, kConfig,
                     fmt::format("write --device {} (device.name = \"{}\")", name, name),
                     "{} brings the device \"{}\", not \"{}\"", path.string(), name, wanted);
  return name;
}

void check_place_is_free(const std::string& what) {
  if (!c10::is_privateuse1_backend_registered()) return;
  throw Error(ErrorCode::kConfig,
              fmt::format("{} cannot be loaded: PyTorch's place for another device belongs to "
                          "\"{}\" in this process",
                          what, c10::get_privateuse1_backend()),
              "a process has one such place: use the plug-in and sim in two processes");
}

std::unique_ptr<Plugin> load(const std::string& name, const std::vector<fs::path>& libraries) {
  const fs::path& path = libraries.front();
  check_place_is_free(path.string());
  for (const fs::path& library : libraries) open_library(library.string());
  auto plugin = std::make_unique<Plugin>();
  plugin->path = path;
  plugin->libraries = libraries;
  plugin->name = claim_name(name, path, plugin->named_by_library);
  plugin->contract = check_contract();
  std::vector<std::string> problems;
  for (const ContractLine& line : plugin->contract.lines) {
    if (line.state == ContractLine::State::kBroken)
      problems.push_back(fmt::format("{}: {}", line.what, line.text));
  }
  TRIREME_USER_CHECK(problems.empty(), kDevice, "docs/devices.md says what a plug-in registers",
                     "{} does not bring a device that PyTorch can use:\n  {}", path.string(),
                     fmt::join(problems, "\n  "));
  return plugin;
}

}  // namespace

std::vector<std::string> Plugin::notes() const {
  std::vector<std::string> result;
  for (const ContractLine& line : contract.lines) {
    if (line.state == ContractLine::State::kReplaced)
      result.push_back(fmt::format("{}: {}", line.what, line.text));
  }
  return result;
}

std::vector<fs::path> plugin_candidates(const std::string& name, const std::string& folders) {
  std::vector<fs::path> result;
  for (const std::string& folder : split_paths(folders)) {
    for (const char* prefix : {"libtorch_", "lib"})
      result.push_back(fs::path(folder) / fmt::format("{}{}.so", prefix, name));
  }
  return result;
}

LoadFailure explain_load_failure(const std::string& path, const std::string& text) {
  constexpr std::string_view kUndefined = "undefined symbol: ";
  const size_t place = text.find(kUndefined);
  if (place != std::string::npos) {
    const size_t begin = place + kUndefined.size();
    const std::string mangled = text.substr(begin, text.find_first_of(", \t\n", begin) - begin);
    const std::string symbol = demangled(mangled);
    if (is_of_torch(symbol)) {
      return {fmt::format("{} was built for another torch: this Trireme runs torch {}, which has "
                          "no {}",
                          path, TORCH_VERSION, symbol),
              kTorchHint};
    }
    if (symbol.starts_with("Py") || symbol.starts_with("_Py")) {
      return {fmt::format("{} needs Python in the process: there is no {}", path, symbol),
              "set LD_PRELOAD to the libpython3 that it was built with, or take its C++ library"};
    }
    return {fmt::format("{} does not open: there is no {}", path, symbol),
            "a library that it needs is missing or of another release (ldd names them)"};
  }
  if (text.find("cannot open shared object file") != std::string::npos) {
    return {fmt::format("{} does not open: {}", path, text),
            "install what it needs, or name its folder in LD_LIBRARY_PATH (ldd names what is "
            "missing)"};
  }
  return {fmt::format("{} does not open: {}", path, text),
          "it is no shared library of this machine"};
}

const Plugin* loaded_plugin() {
  const std::lock_guard lock(mutex);
  return slot().get();
}

const Plugin& load_plugin(const std::string& name, const std::string& path) {
  const std::string type = name.substr(0, name.find(':'));
  const std::lock_guard lock(mutex);
  std::unique_ptr<Plugin>& plugin = slot();
  if (plugin != nullptr) {
    const bool same =
        path.empty() ? type == plugin->name : find_libraries(type, path) == plugin->libraries;
    TRIREME_USER_CHECK(
        same, kConfig, "a process has one place for a plug-in: leave one of them out",
        "two plug-ins at once: {} has brought the device \"{}\", and {} is asked for",
        plugin->path.string(), plugin->name,
        path.empty() ? fmt::format("the device \"{}\"", type) : path);
    TRIREME_USER_CHECK(type.empty() || type == plugin->name, kConfig,
                       fmt::format("write --device {}", plugin->name),
                       "{} brings the device \"{}\", not \"{}\"", plugin->path.string(),
                       plugin->name, type);
    return *plugin;
  }
  plugin = load(type, find_libraries(type, path));
  const std::vector<std::string> notes = plugin->notes();
  if (!notes.empty()) {
    log::info("{} leaves out {} of what PyTorch makes optional: `trireme doctor --device {}`",
              plugin->path.string(), notes.size(), plugin->name);
  }
  for (const std::string& note : notes) log::verbose("plug-in {}: {}", plugin->name, note);
  return *plugin;
}

void use_plugin(const std::string& name, const std::string& path) {
  if (path.empty()) return;
  const std::string type = name.substr(0, name.find(':'));
  TRIREME_USER_CHECK(type != "cpu" && type != "sim", kConfig,
                     fmt::format("name its device with --device or device.name; the file's name "
                                 "suggests \"{}\"",
                                 name_of_file(path)),
                     "the plug-in {} is not used by the device \"{}\"", path, name);
  load_plugin(name, path);
}

}  // namespace trireme::device
