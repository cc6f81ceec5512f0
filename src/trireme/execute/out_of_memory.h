// A step that ran out of memory: where, and what the device held at that moment.
#pragma once

#include <cstdint>
#include <string>

#include "trireme/base/error.h"
#include "trireme/device/out_of_memory.h"
#include "trireme/plan/held_memory.h"

namespace trireme::execute {

/// Error{kDevice}. The message names the instruction and what was held by kind.
class StepOutOfMemory : public Error {
 public:
  StepOutOfMemory(const std::string& message, int instruction, plan::HeldMemory held,
                  int64_t workspace_bytes, int64_t missing_in_plan_bytes)
      : Error(ErrorCode::kDevice, message, "use a smaller batch.micro or more recomputation"),
        instruction_(instruction),
        held_(std::move(held)),
        workspace_bytes_(workspace_bytes),
        missing_in_plan_bytes_(missing_in_plan_bytes) {}

  int instruction() const { return instruction_; }  ///< id in the program
  /// The program's buffers when the instruction began.
  const plan::HeldMemory& held() const { return held_; }
  /// What the device's allocator counted beyond them when it gave up.
  int64_t workspace_bytes() const { return workspace_bytes_; }
  /// By how much that and the block that was asked for exceed what the program says of the instruction; 0: by nothing.
  int64_t missing_in_plan_bytes() const { return missing_in_plan_bytes_; }

 private:
  int instruction_;
  plan::HeldMemory held_;
  int64_t workspace_bytes_;
  int64_t missing_in_plan_bytes_;
};

/// What was held when memory ended at an instruction: by what the program knows of it, and what the allocator counted, or
/// `peak_bytes` where the refusal does not say.
StepOutOfMemory out_of_memory(const model::ModelSpec& spec, const plan::Program& program,
                              const plan::Instruction& instruction,
                              const device::MemoryRefusal& refusal, int64_t peak_bytes);

}  // namespace trireme::execute
