// What the device holds at a moment of a step, by kind.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "trireme/plan/program.h"

namespace trireme::plan {

/// Bytes on the device.
struct HeldMemory {
  int64_t weights = 0;           ///< float32, and bfloat16 copies
  int64_t optimizer_states = 0;  ///< resident, or visiting for their part's step
  int64_t tables = 0;            ///< of rotary embeddings
  int64_t libraries = 0;         ///< of the device's vendor
  int64_t gradients = 0;         ///< of parameters
  int64_t batches = 0;
  int64_t recorded_work =
      0;  ///< of Strategy::record: gradients, activations and workspace, all the time
  /// By part: outputs, what is kept for backward, and the gradients of both.
  std::map<int, int64_t> activations;
  int64_t activation_bytes() const;
  int64_t total() const;
};

/// When an instruction begins, what it releases not counted, what it makes not yet. In issue order, as the executor runs.
HeldMemory held_before(const model::ModelSpec& spec, const Program& program, int instruction);

/// In words, with what the device holds beyond it ("workspace") where that is positive:
/// "weights 1.1 GB, ..., activations 3.1 GB (attention 1.1 GB in 12 parts, mlp 2 GB in 12 parts), workspace 210 MB".
std::string describe(const model::ModelSpec& spec, const HeldMemory& held, int64_t beyond);

/// "1.5 GB".
std::string memory_text(int64_t bytes);

}  // namespace trireme::plan
