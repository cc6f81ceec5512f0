// Shared libraries with kernels (plugin.h).
#pragma once

#include <string>
#include <vector>

#include "trireme/kernels/registry.h"

namespace trireme::kernels {

/// Opens the library and lets it add its kernels; it stays open as long as the process. A path without a folder is one
/// in the working directory. Error{kConfig} naming the path for a library that does not open, that has no kernels, or
/// that was built for another torch or Trireme. Blocks; its initialisers run.
void load_library(const std::string& path, Registrar& registrar);

/// Adds the kernels of the devices that came as libraries (device/library.h) and have some, once each.
void add_device_kernels(Registrar& registrar);

/// Loads those that are not loaded yet into registry(), then chooses for good (Registry::choose). The same call may come
/// again. Call before step 0, from one thread.
void load_and_choose(const std::vector<std::string>& libraries, const KernelNames& use);

}  // namespace trireme::kernels
