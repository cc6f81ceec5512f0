// When the instructions of a step ran. Internal to this room.
#pragma once

#include <memory>
#include <vector>

#include "trireme/base/clock.h"
#include "trireme/device/device.h"
#include "trireme/plan/trace.h"

namespace trireme::execute {

/// When instructions ran: on the host's clock where the device has done its work when a call returns, else on the device's
/// own, by events, which are read at the end of the step.
class StepTimer {
 public:
  explicit StepTimer(device::Device& device)
      : on_device_(device.capabilities().asynchronous),
        begin_(device.compute_queue().record()),
        begin_s_(steady_clock().now_s()) {}

  void start(device::Queue& queue) { mark(queue); }
  void stop(device::Queue& queue) { mark(queue); }

  /// After everything is done.
  void read(std::vector<plan::Measurement>& measurements) const {
    for (size_t i = 0; i < measurements.size(); ++i) {
      const double start = at(2 * i);
      measurements[i].start_s = start;
      measurements[i].duration_s = at(2 * i + 1) - start;
    }
  }

 private:
  void mark(device::Queue& queue) {
    if (on_device_) {
      events_.push_back(queue.record());
    } else {
      seconds_.push_back(steady_clock().now_s() - begin_s_);
    }
  }
  double at(size_t i) const {
    return on_device_ ? events_.at(i)->seconds() - begin_->seconds() : seconds_.at(i);
  }

  bool on_device_;
  std::unique_ptr<device::Event> begin_;
  double begin_s_;
  std::vector<std::unique_ptr<device::Event>> events_;  ///< two an instruction
  std::vector<double> seconds_;
};

}  // namespace trireme::execute
