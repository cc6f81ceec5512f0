// A thread per rank. Internal to comm/.
#pragma once

#include <functional>
#include <memory>

#include "trireme/comm/group.h"

namespace trireme::comm {

/// Runs `body` once per rank, each in a thread of its own with the world that it makes there, and joins them. If some throw,
/// the others' worlds are aborted, and the error of the rank that failed first is thrown.
void run_rank_threads(int size, const std::function<std::unique_ptr<World>(int rank)>& make,
                      const std::function<void(World&)>& body);

}  // namespace trireme::comm
