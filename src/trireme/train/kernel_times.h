// Where the time of a piece of work goes, kernel by kernel, as torch's own profiler sees it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "trireme/device/device.h"

namespace trireme::train {

/// All runs of one kernel.
struct KernelTime {
  std::string name;
  int64_t calls = 0;
  double seconds = 0.0;
};

/// Runs the work under the profiler and waits for the device. The kernels of the device, the longest first; of a device whose
/// work the profiler does not see (the processor, the simulated one), ATen's operators, each with what it calls. Blocks;
/// one call at a time in a process.
std::vector<KernelTime> kernel_times(device::Device& device, const std::function<void()>& work);

}  // namespace trireme::train
