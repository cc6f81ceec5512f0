// Ranks as threads of one process that talk over TCP all the same: to test and measure what processes do.
#pragma once

#include <functional>

#include "trireme/comm/gloo/gloo_options.h"
#include "trireme/comm/group.h"

namespace trireme::comm {

/// As run_ranks() of local/, over sockets of the loopback interface (or of what the options say).
void run_ranks_over_tcp(int size, const std::function<void(World&)>& body,
                        const GlooOptions& options = {});

}  // namespace trireme::comm
