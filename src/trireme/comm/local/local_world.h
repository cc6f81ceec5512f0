// Ranks as threads of one process.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "trireme/comm/group.h"

namespace trireme::comm {

/// A link between ranks that takes its time: `latency_s` + bytes / `bytes_per_s` for each transfer, one after the other in
/// each direction of each rank. A zero rate: as fast as memory.
struct ModelledLink {
  double latency_s = 0.0;
  double bytes_per_s = 0.0;
};

struct LocalOptions {
  double timeout_s = 60.0;
  /// Ranks per node, 0: all on one; and the links inside a node and between nodes.
  int node_size = 0;
  ModelledLink inside_node;
  ModelledLink between_nodes;
  /// Links take their time on the clock of device/sim, where groups are of its devices and a DeviceProfile is set: bytes move
  /// at once, and what waits for them sees them when the links have carried them.
  bool simulated_clock = false;
  /// Bytes move only once a rank waits for the transfer: what is not waited for is not there, in every run. For tests.
  bool late = false;
};

/// One world per rank, which share memory; the i-th is used by the i-th thread. Some threads, as many as the process has CPUs
/// and no more than four, copy for all of them. Groups end before their world; what others still want from a rank whose
/// world has ended fails at once.
std::vector<std::unique_ptr<World>> make_local_worlds(int size, const LocalOptions& options = {});

/// Runs `body` once per rank, each in a thread of its own, and joins them. If some throw, the others' worlds are aborted, and the
/// error of the rank that failed first is thrown.
void run_ranks(int size, const std::function<void(World&)>& body, const LocalOptions& options = {});

}  // namespace trireme::comm
