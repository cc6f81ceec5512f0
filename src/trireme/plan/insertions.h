// Instructions that go into a finished program. Internal to this room.
#pragma once

#include <cstddef>
#include <vector>

#include "trireme/plan/program.h"

namespace trireme::plan {

struct Insertion {
  int before = 0;     ///< id in the program without insertions
  int first_use = 0;  ///< of a reload: who needs it first; what is needed first comes first
  Instruction instruction;
};

/// What stands for the id of insertion `index` in instructions and buffers until insert_all().
constexpr int id_of_insertion(size_t index) {
  return -2 - static_cast<int>(index);
}

/// Puts them in, of those at one place copies out before copies in, which may wait for them, and renumbers. Error{kInternal}
/// for an instruction that would wait for a later one.
void insert_all(Program& program, std::vector<Insertion> insertions);

/// The last instruction of the compute queue before `id`; -1: none.
int last_compute_before(const Program& program, int id);

}  // namespace trireme::plan
