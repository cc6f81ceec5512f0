// The simulated device behind the Device interface.
#pragma once

#include "trireme/device/device.h"

namespace trireme::device::sim {

/// sim:index. Registers the back end on first use. Throws Error{kDevice} if there is no such device or the place is taken.
Device& sim_device(int index);

}  // namespace trireme::device::sim
