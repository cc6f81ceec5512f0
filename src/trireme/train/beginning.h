// How the ranks of a run begin together.
#pragma once

#include <cstdint>
#include <string>

#include "trireme/comm/group.h"
#include "trireme/train/preflight.h"
#include "trireme/train/run_config.h"
#include "trireme/train/train_state.h"

namespace trireme::train {

/// Error{kConfig} if the run's [parallel] table asks for another number of ranks than there are.
void check_ranks(const RunFile& run, int64_t here);

/// Ranks of a machine take its accelerators in turn, if the run file names their kind alone. `world` may be null.
RunFile on_own_device(const RunFile& run, const comm::World* world);

/// What rank 0 found before the others begin.
struct Beginning {
  bool done = false;  ///< nothing is left to do
  std::string precision = {};
  std::string checkpoint = {};  ///< to resume from; "" for none
};
/// Rank 0's first: it prepares the data that the others then find. Collective over the world, with hear_first_rank() on all
/// other ranks; nothing without a world. Blocks.
void tell_ranks(comm::World* world, const Beginning& beginning);
Beginning hear_first_rank(comm::World& world);

/// Ranks that were given different things would train something that nobody asked for, or wait for each other. Collective over
/// the world. Error{kConfig} that says what differs and where. Blocks.
void agree_on_run(const Preflight& preflight, const TrainState& state, const std::string& version,
                  comm::World& world);

}  // namespace trireme::train
