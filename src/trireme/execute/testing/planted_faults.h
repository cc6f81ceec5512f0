// Faults for tests to plant in programs. Header only, for tests.
#pragma once

#include <vector>

#include "trireme/plan/program.h"

namespace trireme::execute {

/// The n-th instruction of a kind; null: the program has fewer.
inline plan::Instruction* nth(plan::Program& program, plan::OpKind kind, int n) {
  for (plan::Instruction& instruction : program.instructions) {
    if (instruction.kind == kind && n-- == 0) return &instruction;
  }
  return nullptr;
}

inline void forget_waits_for(plan::Program& program, int id) {
  for (plan::Instruction& instruction : program.instructions)
    std::erase(instruction.depends_on, id);
}

}  // namespace trireme::execute
