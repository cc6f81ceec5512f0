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
};

/// One world per rank, which share memory; the i-th is used by the i-th thread. Every rank has a communication thread of its
/// own per group while it lives.
std::vector<std::unique_ptr<World>> make_local_worlds(int size, const LocalOptions& options = {});

/// Runs `body` once per rank, each in a thread of its own, and joins them. If some throw, the others' worlds are aborted, and the
/// error of the rank that failed first is thrown.
void run_ranks(int size, const std::function<void(World&)>& body, const LocalOptions& options = {});

}  // namespace trireme::comm
