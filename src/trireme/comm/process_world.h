// The world of ranks that are processes: who they are comes from launchers' variables, they meet at the rendezvous, and talk over
// TCP.
#pragma once

#include <memory>

#include "trireme/comm/group.h"
#include "trireme/comm/rendezvous/placement.h"

namespace trireme::comm {

/// Blocks until all ranks have come. When a rank is lost, or stops the run, everything under way fails here at once with an error
/// that names it. `timeout_s`: how long a rank may be waited for. Null for one rank alone. Error{kConfig} for variables
/// that contradict each other, Error{kDevice} that names who did not come.
std::unique_ptr<World> make_process_world(const Placement& placement,
                                          const Environment& environment, double timeout_s);

}  // namespace trireme::comm
