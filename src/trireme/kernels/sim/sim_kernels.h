// The CPU's kernels on the simulated device: the same arithmetic, as work of its queues.
#pragma once

#include "trireme/kernels/plugin.h"

namespace trireme::kernels::sim {

inline constexpr int kPriority = 100;  ///< above the reference, under what a user loads

/// Offers every op as kernel "sim" to the device of that name. What an op returns is there when it returns; an op that
/// returns nothing is issued to the current stream of the tensors' device.
void register_kernels(Registrar& registrar);

}  // namespace trireme::kernels::sim
