#include "trireme/execute/step_copies.h"

#include <algorithm>
#include <utility>

namespace trireme::execute {

bool has_copies(const plan::Program& program) {
  return std::ranges::any_of(program.instructions, [](const plan::Instruction& instruction) {
    return plan::is_copy(instruction.resource);
  });
}

StepCopies::StepCopies(const plan::Program& program, device::Device& device, DeviceCopies* copies,
                       StateVisits* visits)
    : program_(program),
      device_(device),
      copies_(copies),
      visits_(visits),
      done_(program.instructions.size()),
      is_waited_for_(program.instructions.size(), 0) {
  for (const plan::Instruction& instruction : program.instructions) {
    for (const int other : instruction.depends_on) {
      if (crosses(instruction, other)) is_waited_for_[static_cast<size_t>(other)] = 1;
    }
  }
}

/// The host's work is done when its call returns.
bool StepCopies::crosses(const plan::Instruction& instruction, int other) const {
  const plan::Resource theirs = program_.instructions[static_cast<size_t>(other)].resource;
  if (theirs == plan::Resource::kCommunication) return false;
  return theirs != instruction.resource &&
         (plan::is_copy(theirs) || plan::is_copy(instruction.resource));
}

device::Queue& StepCopies::queue_of(const plan::Instruction& instruction) {
  if (instruction.resource == plan::Resource::kCopyOut) return copies_->out();
  if (instruction.resource == plan::Resource::kCopyIn) return copies_->in();
  return device_.compute_queue();
}

void StepCopies::wait_for(const plan::Instruction& instruction, int other) {
  if (!crosses(instruction, other)) return;
  queue_of(instruction).wait_for(*done_[static_cast<size_t>(other)]);
  // The compute queue is behind the copy in now, and what is copied out later is behind the compute queue.
  if (instruction.resource != plan::Resource::kCompute) return;
  if (auto found = reloaded_.extract(other); !found.empty())
    copies_->give_back(std::move(found.mapped()));
}

void StepCopies::issued(const plan::Instruction& instruction) {
  const auto id = static_cast<size_t>(instruction.id);
  if (is_waited_for_[id] != 0) done_[id] = queue_of(instruction).record();
}

void StepCopies::release(const plan::Instruction& instruction) {
  for (const int id : instruction.releases) {
    if (buffer(id).kind == plan::BufferKind::kOptimizerState) {
      visits_->give_up(buffer(id).part, buffer(id).is_carried_in());
      continue;
    }
    const int copy = buffer(id).offloaded_by;
    device_.compute_queue().wait_for(*done_[static_cast<size_t>(copy)]);
    DeviceCopies::release(offloaded_.at(copy));
  }
}

void StepCopies::offload(
    const plan::Instruction& instruction,
    const std::function<std::vector<at::Tensor>(const plan::Buffer&)>& tensors) {
  std::vector<at::Tensor> all;
  bool kept = false;
  for (const int id : instruction.moves) {
    if (buffer(id).kind == plan::BufferKind::kOptimizerState) {
      visits_->go(buffer(id).part);
      continue;
    }
    // A graph's two buffers go together.
    if (buffer(id).kind != plan::BufferKind::kHidden && std::exchange(kept, true)) continue;
    const std::vector<at::Tensor> more = tensors(buffer(id));
    all.insert(all.end(), more.begin(), more.end());
  }
  if (!all.empty()) offloaded_.emplace(instruction.id, copies_->copy_out(all));
}

void StepCopies::reload(const plan::Instruction& instruction) {
  const plan::Buffer& first = buffer(instruction.moves.front());
  if (first.kind == plan::BufferKind::kOptimizerState) {
    visits_->come(first.part);
    return;
  }
  auto found = offloaded_.extract(first.offloaded_by);
  copies_->copy_in(found.mapped());
  reloaded_.emplace(instruction.id, std::move(found.mapped()));
}

void StepCopies::hand_over(const plan::Instruction& instruction, StepTimer& timer) {
  if (plan::runs_on(program_, instruction)) visits_->time(instruction.part, timer.take_last());
}

void StepCopies::wait_for_step() {
  if (visits_ == nullptr || visits_->empty()) {
    device_.synchronize();
    return;
  }
  device_.compute_queue().synchronize();
  copies_->in().synchronize();
}

void StepCopies::read_step_before(const StepTimer& timer,
                                  std::vector<plan::Measurement>& measurements) {
  if (visits_ == nullptr) return;
  const auto ended = visits_->collect();
  for (const plan::Buffer& one : program_.buffers) {
    const auto found = ended.find(one.part);
    if (!one.is_carried_in() || found == ended.end()) continue;
    const auto& [start, stop] = found->second;
    timer.place(start, stop, measurements[static_cast<size_t>(one.offloaded_by)]);
  }
}

}  // namespace trireme::execute
