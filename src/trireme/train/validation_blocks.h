// Validation over ranks: each evaluates every n-th block, and the sums are in the order of the blocks.
#pragma once

#include <cstdint>
#include <vector>

#include "trireme/comm/group.h"

namespace trireme::train {

struct BlockFigures {
  double loss_sum = 0.0;  ///< nats
  int64_t targets = 0;
  int64_t bytes = 0;
};

/// All `count` blocks in order, of which this rank gives those with number rank, rank + size ... Collective over the world.
/// Blocks.
std::vector<BlockFigures> in_turns(const std::vector<BlockFigures>& mine, int64_t count,
                                   comm::World& world);

}  // namespace trireme::train
