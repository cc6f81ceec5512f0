// What PyTorch expects of a library that brings a device, line by line: its name, its guard, its allocator, its hooks and the
// operators that no other can stand in for. PyTorch itself finds out when something is first used; here it is asked at once.
//
// Source: PyTorch 2.11, c10/core/impl/DeviceGuardImplInterface.h, c10/core/CachingDeviceAllocator.h,
// ATen/detail/PrivateUse1HooksInterface.h and the operators that ATen's factories, views and copy_ call.
#pragma once

#include <string>
#include <vector>

#include "trireme/device/accelerator/accelerator_device.h"

namespace trireme::device {

struct ContractLine {
  enum class State {
    kKept,
    kReplaced,  ///< optional and not there; `text` says what takes its place
    kBroken     ///< needed and not there
  };
  std::string what;  ///< "guard", "allocator", "operator aten::view" ...
  State state = State::kKept;
  std::string text;  ///< what was found, or what PyTorch expects
};

struct Contract {
  std::vector<ContractLine> lines;
  AcceleratorSupport support;
  int num_devices = 0;
  bool falls_back = false;  ///< operators without a kernel of the device run on the CPU
  bool kept() const;        ///< no line is broken
};

/// Asks PyTorch's registries about the back end in its PrivateUse1 place, which has a name. Allocates one element on the
/// first device and waits for it: that is what registers the hooks of some libraries. Blocks; call from one thread, with
/// an idle device. Does not throw for what a back end lacks.
Contract check_contract();

}  // namespace trireme::device
