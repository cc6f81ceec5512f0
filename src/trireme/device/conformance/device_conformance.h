// Whether a device behaves as the Device interface and ATen's calls on it promise: what order its queues keep, when its events
// and copies are done, how it counts memory and how it goes on when there is none left, what its random numbers follow from,
// and what views of its tensors are. Beside kernels/conformance, which asks whether it computes the right thing.
//
// All values are whole numbers that every float type of the trial holds, so results are compared bit for bit.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trireme/device/device.h"

namespace trireme::device::conformance {

/// What was tried of one kind of behaviour.
struct Behaviour {
  std::string name;  ///< "queue-order"
  int64_t trials = 0;
  std::vector<std::string> problems;  ///< one for each trial that went wrong
  std::string skipped;                ///< why nothing was tried; "" if it was
};

/// Names, in the order in which they are tried.
std::vector<std::string> behaviour_names();

/// Tries all of a device that nobody else uses, or one by name (Error{kConfig} for an unknown one). `peer` is another device
/// of the same type, or null. Blocks for up to some seconds; takes up to 64 MiB, and asks for more than there is. What the
/// device throws is a problem of its trial. The device's random state and peak memory are others afterwards.
std::vector<Behaviour> check_behaviours(Device& device, Device* peer);
Behaviour check_behaviour(const std::string& name, Device& device, Device* peer);

}  // namespace trireme::device::conformance
