// Optimizer states on their visits to the device: they live in pinned host memory, where the optimizer has them.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "trireme/device/device.h"
#include "trireme/execute/device_copies.h"
#include "trireme/execute/step_timer.h"
#include "trireme/optim/optimizer.h"

namespace trireme::execute {

/// The states that are on the device, also from one step to the next: copies out of a step may end in the step after it.
/// Thread-safety: one thread. Ownership: borrows all three. Blocking: only settle() waits for the device.
class StateVisits {
 public:
  StateVisits(optim::Optimizer& optimizer, device::Device& device, DeviceCopies& copies)
      : optimizer_(optimizer), device_(device), copies_(copies) {}

  /// Makes room for a part's states, in memory that is the compute queue's, and issues the copies in. Error{kInternal} where
  /// the part's last visit is not given up.
  void come(int part);
  /// The part's states on the device, as Optimizer::part_states() lists them.
  const std::vector<at::Tensor>& at(int part) const { return visits_.at(part).here; }
  /// Issues the copies out; the caller has made their queue wait for what writes the states.
  void go(int part);
  /// When the copies out of go(), which may end after the step, run: for collect().
  void time(int part, std::pair<Moment, Moment> when) { visits_.at(part).when = std::move(when); }
  /// Gives the device memory up; the compute queue waits for the copies out first. Nothing where `carried`, of the step
  /// before, and there is none: in a first step, or after settle().
  void give_up(int part, bool carried);

  bool empty() const { return visits_.empty(); }
  /// Whether these parts' states, in order, and no others are there, all of them on their way out.
  bool are_leaving(const std::vector<int>& parts) const;
  /// Times of copies that steps before left under way and that are done; by part. They are forgotten.
  std::map<int, std::pair<Moment, Moment>> collect() { return std::exchange(ended_, {}); }

  /// Waits until all states are on the host as they should be, and gives all device memory up. What was not on its way out
  /// is dropped (a step ended by an error). Throws Error{kDevice} if the device failed.
  void settle();

 private:
  struct Visit {
    std::vector<at::Tensor> here;
    std::unique_ptr<device::Event> gone;  ///< null: not on the way out
    std::pair<Moment, Moment> when;
    /// The last that is recorded behind the copies: what is measured is done when it is waited for.
    device::Event& end() { return when.second.event != nullptr ? *when.second.event : *gone; }
  };
  optim::Optimizer& optimizer_;
  device::Device& device_;
  DeviceCopies& copies_;
  std::map<int, Visit> visits_;                     ///< by part
  std::map<int, std::pair<Moment, Moment>> ended_;  ///< by part: that ran on into a step
};

}  // namespace trireme::execute
