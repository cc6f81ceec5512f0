// Queues of one step: who waits for whom across them, and what is copied to the host and back. Internal to this room.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "trireme/device/device.h"
#include "trireme/execute/device_copies.h"
#include "trireme/execute/state_visits.h"
#include "trireme/execute/step_timer.h"
#include "trireme/plan/program.h"
#include "trireme/plan/trace.h"

namespace trireme::execute {

/// Whether a program copies anything: needs the two below.
bool has_copies(const plan::Program& program);

/// Thread-safety: the step thread only. Ownership: borrows everything; `copies` and `visits`, which live from step to step, may be
/// null for a program without copies. Blocking: only wait_for_step() waits for the device.
class StepCopies {
 public:
  StepCopies(const plan::Program& program, device::Device& device, DeviceCopies* copies,
             StateVisits* visits);

  device::Queue& queue_of(const plan::Instruction& instruction);
  /// The instruction's queue waits for `other`, one of its dependencies, where that is another queue's.
  void wait_for(const plan::Instruction& instruction, int other);
  /// The instruction was issued to its queue: others may wait for it.
  void issued(const plan::Instruction& instruction);

  /// Gives up the device memory of what is on the host. Memory is handed out in the order of the compute queue.
  void release(const plan::Instruction& instruction);
  /// `tensors` gives those of a buffer of activations.
  void offload(const plan::Instruction& instruction,
               const std::function<std::vector<at::Tensor>(const plan::Buffer&)>& tensors);
  void reload(const plan::Instruction& instruction);
  /// A part's states on their visit, as Optimizer::part_states() lists them.
  const std::vector<at::Tensor>& states(int part) const { return visits_->at(part); }

  /// Of a copy out that runs on into the next step: its times go there.
  void hand_over(const plan::Instruction& instruction, StepTimer& timer);
  /// What failed late fails here, in its own step; but for copies that run on into the next one. Throws Error{kDevice}.
  void wait_for_step();
  /// Of copies that the step before handed over, by their instructions of this one.
  void read_step_before(const StepTimer& timer, std::vector<plan::Measurement>& measurements);

 private:
  bool crosses(const plan::Instruction& instruction, int other) const;
  const plan::Buffer& buffer(int id) const { return program_.buffers[static_cast<size_t>(id)]; }

  const plan::Program& program_;
  device::Device& device_;
  DeviceCopies* copies_;
  StateVisits* visits_;
  std::vector<std::unique_ptr<device::Event>> done_;  ///< by instruction; of those waited for
  std::vector<char> is_waited_for_;
  std::map<int, OffloadedMemory> offloaded_;  ///< by kOffload
  std::map<int, OffloadedMemory> reloaded_;   ///< by kReload that nobody has waited for yet
};

}  // namespace trireme::execute
