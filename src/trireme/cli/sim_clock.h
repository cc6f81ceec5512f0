// The simulated device's clock by the name of a real device. Internal to this room.
#pragma once

namespace trireme::cli {

/// Where TRIREME_SIM_CLOCK names a device of the shipped profiles ("h100-sxm-80gb") and gives no rates, its rates take the name's
/// place: the best that products reach, memory, copies to the host where they are known, and the gap between kernels.
/// Error{kConfig} with the nearest name for an unknown one. Call before a device is opened, from one thread.
void resolve_sim_clock();

}  // namespace trireme::cli
