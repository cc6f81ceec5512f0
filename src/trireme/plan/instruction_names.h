// Instructions by name, for tests. Header only.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "trireme/plan/program.h"

namespace trireme::plan {

/// As describe() has them, without their micro-batch; by id.
inline std::vector<std::string> names_of(const model::ModelSpec& spec, const Program& program) {
  std::vector<std::string> names;
  for (const Instruction& instruction : program.instructions) {
    std::string name = describe(spec, instruction);
    names.push_back(name.substr(0, name.find(" micro-batch")));
  }
  return names;
}

/// The first one of this name.
inline int id_of(const model::ModelSpec& spec, const Program& program, const std::string& name) {
  const std::vector<std::string> names = names_of(spec, program);
  const auto found = std::ranges::find(names, name);
  EXPECT_NE(found, names.end()) << name;
  return static_cast<int>(found - names.begin());
}

}  // namespace trireme::plan
