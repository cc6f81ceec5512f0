// The CPU behind the Device interface: its queue is the calling thread, so everything issued is done.
#pragma once

#include "trireme/device/device.h"

namespace trireme::device {

/// Installs the caching allocator on first use.
Device& cpu_device();

}  // namespace trireme::device
