// How long transfers take and what they send: what `trireme bench comm` shows.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trireme/comm/group.h"

namespace trireme::comm {

/// One kind of transfer at one size.
struct TransferTiming {
  std::string name;             ///< "all_gather" ...
  int64_t bytes = 0;            ///< of the whole tensor: what is gathered, scattered, reduced, sent
  std::vector<double> seconds;  ///< from issue to arrival on this rank, each repetition
  int64_t sent_bytes = 0;       ///< by all ranks together, once
  int64_t theoretical_bytes = 0;  ///< no scheme sends fewer
};

/// Collective over the world: every kind at every size, for about `seconds` each. The same list on every rank, with times of
/// its own.
std::vector<TransferTiming> time_transfers(World& world, device::Device& device,
                                           const std::vector<int64_t>& sizes, double seconds);

}  // namespace trireme::comm
