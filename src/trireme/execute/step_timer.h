// When the instructions of a step ran. Internal to this room.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "trireme/base/clock.h"
#include "trireme/device/device.h"
#include "trireme/plan/trace.h"

namespace trireme::execute {

/// A moment on the device's clock, or on the host's.
struct Moment {
  std::shared_ptr<device::Event> event;  ///< null: the host's
  double host_s = 0.0;
  double seconds() const { return event != nullptr ? event->seconds() : host_s; }
};

/// When instructions ran: on the host's clock where the device has done its work when a call returns, else on the device's
/// own, by events, which are read when they are done.
class StepTimer {
 public:
  explicit StepTimer(device::Device& device)
      : on_device_(device.capabilities().asynchronous), begin_(now(device.compute_queue())) {}

  void start(device::Queue& queue) { moments_.push_back(now(queue)); }
  void stop(device::Queue& queue) { moments_.push_back(now(queue)); }

  /// The last start was none.
  void drop_start() { moments_.pop_back(); }
  /// Another instruction, which was done with the one before it.
  void repeat_stop() {
    const Moment last = moments_.back();
    moments_.insert(moments_.end(), 2, last);
  }

  /// The last instruction's start and end, which may come after the step's; read() leaves it out.
  std::pair<Moment, Moment> take_last() {
    const size_t end = moments_.size();
    taken_.push_back(end / 2 - 1);
    return {std::exchange(moments_[end - 2], {}), std::exchange(moments_[end - 1], {})};
  }

  /// After everything but what was taken is done. `measurements` by instruction id.
  void read(std::vector<plan::Measurement>& measurements) const {
    for (size_t i = 0, next_taken = 0; i < measurements.size(); ++i) {
      if (next_taken < taken_.size() && taken_[next_taken] == i) {
        ++next_taken;
        continue;
      }
      place(moments_.at(2 * i), moments_.at(2 * i + 1), measurements[i]);
    }
  }
  /// As of this step.
  void place(const Moment& start, const Moment& stop, plan::Measurement& measurement) const {
    measurement.start_s = start.seconds() - begin_.seconds();
    measurement.duration_s = stop.seconds() - start.seconds();
  }

 private:
  Moment now(device::Queue& queue) const {
    if (on_device_) return {queue.record(), 0.0};
    return {nullptr, steady_clock().now_s()};
  }

  bool on_device_;
  Moment begin_;
  std::vector<Moment> moments_;  ///< two an instruction
  std::vector<size_t> taken_;    ///< instructions, in order
};

}  // namespace trireme::execute
