// Pipeline stages: which parts of the model each one has. Pure.
#pragma once

#include <cstdint>
#include <vector>

#include "trireme/model/model_spec.h"

namespace trireme::plan {

/// Stage s has the parts [begin[s], begin[s + 1]), at least one.
struct Stages {
  std::vector<int> begin;  ///< one entry more than there are stages: the number of parts
  int count() const { return static_cast<int>(begin.size()) - 1; }
  int of_part(int part) const;
};

/// What stays together: the embedding; a layer; the last head with all that multi-token prediction adds, which is on the last
/// stage. As parts: unit u has [result[u], result[u + 1]).
std::vector<int> stage_units(const model::ModelSpec& spec);

/// Cuts units into contiguous stages of at least one unit each: boundaries, stages + 1 values, the largest cost of a stage as
/// small as can be, and among those cuts the sum of squares too. With `memory` (by unit), only cuts whose stages have at most
/// `memory_limit` of it; empty if there is none. `stages` from 1 to the number of units. Costs are not negative. O(units^2 stages).
std::vector<int> balanced_cuts(const std::vector<double>& costs, int stages,
                               const std::vector<double>& memory = {}, double memory_limit = 0.0);

/// FLOPs of a token in every unit of stage_units(): forward and backward, and recomputation of parts where `recomputed` says
/// so (by part; empty: none).
std::vector<double> unit_flops(const model::ModelSpec& spec, int64_t seq_len,
                               const std::vector<bool>& recomputed = {});

/// Stages balanced by unit_flops(). Error{kInternal} if there are more of them than units: validate_parallel() says so to users.
Stages cut_stages(const model::ModelSpec& spec, int stages, int64_t seq_len,
                  const std::vector<bool>& recomputed = {});

/// Stages of so many layers each, the embedding on the first and the heads on the last. Error{kConfig} if they are not the
/// model's number of layers; a stage without layers is one only where it has the embedding or a head.
Stages stages_of_layers(const model::ModelSpec& spec, const std::vector<int64_t>& layers);
/// The other way round: stages_of_layers() of the result is `stages`.
std::vector<int64_t> layers_of_stages(const model::ModelSpec& spec, const Stages& stages);

}  // namespace trireme::plan
