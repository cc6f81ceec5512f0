// Devices that a third party's shared library brings: PyTorch's PrivateUse1 place, found in PyTorch's registries alone, so
// that a library that was made for PyTorch is loaded as it is.
//
// A process has one such place. It belongs to the first that takes it: a plug-in, or sim.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "trireme/device/device.h"
#include "trireme/device/plugin/contract.h"

namespace trireme::device {

/// A library that is loaded. Lives as long as the process.
struct Plugin {
  std::string name;            ///< the device's: "abacus"
  std::filesystem::path path;  ///< absolute; of the first library
  std::vector<std::filesystem::path> libraries;
  bool named_by_library = true;
  Contract contract;
  std::vector<std::string> notes() const;  ///< a sentence for each optional thing that it lacks
};

/// Opens the library that brings the device `name` ("abacus" or "abacus:1"; "" for the name that the library has) and
/// checks its contract with PyTorch. `path` is the library's (several with ':' between them where a device comes in parts
/// that do not load each other; they are opened in this order), or "" to look for it: libtorch_NAME.so, then libNAME.so, in
/// the folders of TRIREME_DEVICE_PATH (':' between them). The same call may come again. Blocks: the library's initialisers
/// run and its driver starts. Call from one thread, before devices are used.
/// Error{kConfig}: not found, does not open, built for another torch, of another name, the second plug-in, after sim.
/// Error{kDevice}: what PyTorch expects of it is not there (every line that is broken is named), or it finds no device.
const Plugin& load_plugin(const std::string& name, const std::string& path = "");

/// Null before load_plugin().
const Plugin* loaded_plugin();

/// device.plugin and --plugin: what get_device(name) will need is loaded. Nothing for an empty path. Error{kConfig} where
/// `name` is one of Trireme's own devices, which a plug-in cannot be; else as load_plugin().
void use_plugin(const std::string& name, const std::string& path);

/// Where a plug-in of this name is looked for, in order: TRIREME_DEVICE_PATH's value is `folders`.
std::vector<std::filesystem::path> plugin_candidates(const std::string& name,
                                                     const std::string& folders);

/// What dlopen's text means: a message and what to do about it.
struct LoadFailure {
  std::string message;
  std::string hint;
};
LoadFailure explain_load_failure(const std::string& path, const std::string& text);

}  // namespace trireme::device
