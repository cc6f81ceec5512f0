// Operators without a kernel of their own: ATen's CPU kernel, run by the queue over the device's memory. Internal to sim/.
#pragma once

#include <vector>

namespace c10 {
class OperatorHandle;
struct IValue;
}  // namespace c10

namespace trireme::device::sim {

/// The boxed kernel of every such operator. Counts the call and blocks until it is done, as its result's shape may depend on
/// values. What the kernel throws (wrong shapes) is thrown here and does not make the device fail.
void run_on_cpu(const c10::OperatorHandle& op, std::vector<c10::IValue>* stack);

}  // namespace trireme::device::sim
