#include "trireme/train/kernel_times.h"

#include <torch/csrc/autograd/profiler_kineto.h>

#include <algorithm>
#include <map>
#include <set>

namespace trireme::train {

namespace profiler = torch::profiler::impl;

std::vector<KernelTime> kernel_times(device::Device& device, const std::function<void()>& work) {
  std::set<profiler::ActivityType> activities = {profiler::ActivityType::CPU};
  if (device.has_ranges()) {
    // Every kind of activity: those of devices that are not there do not happen.
    for (int i = 0; i < static_cast<int>(profiler::ActivityType::NUM_KINETO_ACTIVITIES); ++i)
      activities.insert(static_cast<profiler::ActivityType>(i));
  }
  const profiler::ProfilerConfig config(profiler::ProfilerState::KINETO);
  device.synchronize();
  torch::autograd::profiler::prepareProfiler(config, activities);
  torch::autograd::profiler::enableProfiler(config, activities);
  std::unique_ptr<torch::autograd::profiler::ProfilerResult> result;
  try {
    work();
    device.synchronize();
    result = torch::autograd::profiler::disableProfiler();
  } catch (...) {
    torch::autograd::profiler::disableProfiler();
    throw;
  }
  const c10::DeviceType type = device.torch_device().type();
  std::map<std::string, KernelTime> of_device;
  std::map<std::string, KernelTime> of_host;
  for (const auto& event : result->events()) {
    auto& times = event.deviceType() == type && type != c10::DeviceType::CPU ? of_device : of_host;
    KernelTime& time = times[event.name()];
    time.name = event.name();
    ++time.calls;
    time.seconds += 1e-9 * static_cast<double>(event.durationNs());
  }
  std::vector<KernelTime> sorted;
  for (auto& [name, time] : of_device.empty() ? of_host : of_device)
    sorted.push_back(std::move(time));
  std::ranges::stable_sort(sorted, std::ranges::greater(), &KernelTime::seconds);
  return sorted;
}

}  // namespace trireme::train
