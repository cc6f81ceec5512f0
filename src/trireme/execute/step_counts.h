// What a step's micro-batches hold. Internal to this room.
#pragma once

#include <cstdint>
#include <vector>

#include "trireme/data/batch.h"

namespace trireme::execute {

/// Of one rank's micro-batches, or of all ranks': values() of the ranks added up.
struct StepCounts {
  std::vector<int64_t> targets;  ///< of the head, then of the modules that predict further
  int64_t bytes = 0;
  int64_t tokens = 0;

  std::vector<int64_t> values() const;
  static StepCounts from_values(std::vector<int64_t> values);
};

/// With so many modules of multi-token prediction.
StepCounts count(const std::vector<data::Batch>& batches, size_t modules);

}  // namespace trireme::execute
