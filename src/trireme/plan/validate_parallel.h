// Whether a model can run over ranks in a given way, and if not, why and how else. Pure.
#pragma once

#include <string>
#include <vector>

#include "trireme/plan/program.h"

namespace trireme::plan {

/// Something that the [parallel] table asks for and the model or the batch does not allow.
struct ParallelProblem {
  std::string reason;  ///< what is wrong and the nearest way out: "...: use parallel.tp = 2 or 4"
  Parallel instead;    ///< the way out that `reason` names first; valid
};

/// Empty if the strategy's `parallel` suits the model and the rest of the strategy, which validate() has found sound.
std::vector<ParallelProblem> validate_parallel(const model::ModelSpec& spec,
                                               const Strategy& strategy);

/// The first of them without a way out, quickly; empty if there is none.
std::string parallel_problem(const model::ModelSpec& spec, const Strategy& strategy);

}  // namespace trireme::plan
