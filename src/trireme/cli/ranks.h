// The ranks that this process is.
#pragma once

#include <cstdint>
#include <functional>

#include "trireme/comm/group.h"

namespace trireme::cli {

/// How many ranks there are: `threads`, or as many as a launcher's variables say. Error{kConfig} for variables that contradict each
/// other.
int64_t num_ranks(int threads);

/// Calls `body` for each rank of this process: with null for one rank alone, with the world of the rank that a launcher's
/// variables say it is, or, for `threads` above 1, in a thread for each of so many. An error of a rank ends the others. Throws the
/// error of the rank that failed first.
void run_as_ranks(int threads, double timeout_s, const std::function<void(comm::World*)>& body);

}  // namespace trireme::cli
