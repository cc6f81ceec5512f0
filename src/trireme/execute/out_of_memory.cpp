#include "trireme/execute/out_of_memory.h"

#include <fmt/format.h>

#include <algorithm>

#include "trireme/plan/simulate.h"

namespace trireme::execute {

StepOutOfMemory out_of_memory(const model::ModelSpec& spec, const plan::Program& program,
                              const plan::Instruction& instruction,
                              const device::MemoryRefusal& refusal, int64_t peak_bytes) {
  const plan::HeldMemory held = plan::held_before(spec, program, instruction.id);
  // What the instruction held itself is gone by now.
  const int64_t allocated = refusal.held_bytes > 0 ? refusal.held_bytes : peak_bytes;
  const int64_t workspace = std::max<int64_t>(allocated - held.total(), 0);
  const int64_t planned = plan::simulate_in_issue_order(program)
                              .instructions[static_cast<size_t>(instruction.id)]
                              .peak_bytes;
  return {fmt::format("out of memory at {}: {}; held: {}", plan::describe(spec, instruction),
                      refusal.message, plan::describe(spec, held, workspace)),
          instruction.id, held, workspace,
          std::max<int64_t>(allocated + refusal.asked_bytes - planned, 0)};
}

}  // namespace trireme::execute
