// What a device's kernels reach, by shape: products, attention, passes over memory, launches, copies to the host. Measured through the
// operators that training calls, on the device's clock.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "trireme/device/device.h"
#include "trireme/plan/profile.h"

namespace trireme::calibrate {

/// Seconds of `work` on the device's clock, one after the other without waiting: of `repeats` calls, each.
double seconds_on(device::Device& device, int repeats, const std::function<void()>& work);

struct KernelRatesOptions {
  std::vector<plan::ComputeType> types = {plan::ComputeType::kFp32, plan::ComputeType::kBf16};
  int rounds = 3;  ///< over all shapes, interleaved; what is usual counts (plan::most_common())
  int64_t largest = 2048;  ///< size of a product, for a device as fast as a processor
  /// "gemm 12 of 60": now and then.
  std::function<void(const std::string&)> progress = {};
};

/// Fills in everything of the profile that kernels say: peaks (the best measured), products and attention by shape, memory's
/// bandwidth, the gap between kernels, the host link, memory's size. Sizes grow with what the device can do. Blocks for about a
/// minute on a processor.
void measure_kernels(device::Device& device, const KernelRatesOptions& options,
                     plan::DeviceProfile& profile);

}  // namespace trireme::calibrate
