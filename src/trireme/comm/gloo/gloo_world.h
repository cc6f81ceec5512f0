// Ranks as processes, over TCP: bytes go through c10d's ProcessGroupGloo, of which only sends and receives are used; what is
// built of them is in carrier.cpp. Internal to comm/: knows c10d.
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <memory>
#include <string>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include "trireme/comm/gloo/gloo_options.h"
#include "trireme/comm/group.h"

namespace trireme::comm {

/// The world of one rank; blocks until all ranks have come. The store is shared by all ranks, used from several threads at
/// once, and outlives the world; keys begin with "comm/". It must still answer while ranks talk: who cannot reach it gives
/// up. Throws Error{kDevice} that names who did not come, Error{kConfig} for an address that is not this machine's.
std::unique_ptr<World> make_gloo_world(c10::intrusive_ptr<c10d::Store> store, int rank, int size,
                                       const GlooOptions& options = {});

}  // namespace trireme::comm
