// Which settings would make a run fit into a device's memory: tried on the planner.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trireme/model/model_spec.h"
#include "trireme/plan/program.h"
#include "trireme/train/run_config.h"

namespace trireme::train {

/// A run's settings changed, and the highest that a step would then hold.
struct MemoryOption {
  std::string setting;  ///< as in a run file: memory.recompute = "full"
  int64_t peak_bytes = 0;
};

/// Settings that need less than the run's own `peak_bytes`, in the order in which to try them: those that leave the bits as
/// they are before a smaller batch.micro and fewer batch.lanes, and of each the cheaper first. Offload only where the device has memory of its own.
std::vector<MemoryOption> memory_options(const RunConfig& run, const model::ModelSpec& spec,
                                         plan::Precision precision, int64_t peak_bytes);

/// What to tell the user: the first two options that fit `available_bytes`, else what the least of them needs.
/// `extra_bytes` is held on top of what the planner knows of.
std::string memory_advice(const std::vector<MemoryOption>& options, int64_t available_bytes,
                          int64_t extra_bytes = 0);

}  // namespace trireme::train
