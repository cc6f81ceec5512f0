// What a valid strategy may ask for and a program cannot express. Pure.
#pragma once

#include <string>
#include <vector>

#include "trireme/plan/program.h"

namespace trireme::plan {

/// Reasons, each with a way out, why there is no program for a strategy that validate() accepts; the planner prices such runs part
/// by part (prediction.h). Empty: build_program() writes it.
std::vector<std::string> program_limits(const model::ModelSpec& spec, const Strategy& strategy);

}  // namespace trireme::plan
