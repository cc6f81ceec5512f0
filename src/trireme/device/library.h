// Devices that come as libraries: libtrireme_<type>.so, found when get_device() is asked for a type that the program does not
// have itself. So a device's own libraries are needed where it is used, and nowhere else.
//
//   #include <trireme/device/library.h>
//   TRIREME_DEVICE(index) { return my_device(index); }      // a device::Device& that lives as long as the process
//
// The library contains what it uses of Trireme; it and the program share torch. It may offer kernels, too
// (kernels/plugin.h); they are taken in when kernels are chosen.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trireme/base/torch_compat.h"
#include "trireme/device/device.h"

namespace trireme::device {

/// What a library and the program must have in common.
struct DeviceAbi {
  int contract;          ///< of device.h; raised with every change of its classes
  int torch_version[3];  ///< major, minor, patch
  uint64_t layout;
};
constexpr DeviceAbi kDeviceAbi = {
    2,
    {TORCH_VERSION_MAJOR, TORCH_VERSION_MINOR, TORCH_VERSION_PATCH},
    sizeof(Capabilities) * 4096 + sizeof(MemoryStatistics) * 64 + sizeof(Device)};

/// The library of a type of device: in the folders of TRIREME_DEVICE_PATH, beside the program, or in ../lib/trireme of it.
/// "" if there is none.
std::string find_device_library(const std::string& type);

/// Opens the library, once in a process, and asks it for a device. Throws Error{kDevice} where the library, what it needs or
/// the device is missing. Thread-safe.
Device& open_device_library(const std::string& path, int index);

/// The paths of those that are open, in the order in which they were opened. Thread-safe.
std::vector<std::string> open_device_libraries();

}  // namespace trireme::device

/// Defines what a device library exports; the body that follows returns the device of this index.
#define TRIREME_DEVICE(index)                                                          \
  extern "C" __attribute__((visibility("default"))) const void* trireme_device_abi() { \
    return &::trireme::device::kDeviceAbi;                                             \
  }                                                                                    \
  extern "C" __attribute__((visibility("default"))) ::trireme::device::Device&         \
  trireme_open_device(int index)
