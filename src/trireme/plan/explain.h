// The program in words: what `trireme plan explain` and `trireme plan simulate` print.
#pragma once

#include <string>

#include "trireme/base/json.h"
#include "trireme/plan/program.h"
#include "trireme/plan/simulate.h"

namespace trireme::plan {

/// A table for a person: the strategy, the model's FLOPs with their formula, memory by kind, and the
/// instructions with what they wait for and what is held after them. Unless `all`, micro-batches that
/// do the same again are summed up in one line.
std::string explain(const model::ModelSpec& spec, const Program& program, bool all);

/// The whole program: instructions and buffers with every field, and the same figures.
OrderedJson explain_json(const model::ModelSpec& spec, const Program& program);

/// Keys as the interface page lists them for plan simulate, and more.
OrderedJson simulation_json(const model::ModelSpec& spec, const Program& program,
                            const Simulation& simulation);
/// The same for a person, with the instructions that take most of the critical path.
std::string describe(const model::ModelSpec& spec, const Program& program,
                     const Simulation& simulation);

}  // namespace trireme::plan
