// A measured machine as a profile (profiles/*.toml), which ProfileLibrary::add() reads. Pure.
#pragma once

#include <string>

#include "trireme/plan/profile.h"

namespace trireme::plan {

/// Device, node, network and cluster of one machine, all under the cluster's name. `source` says who measured what, where and when,
/// and stands beside every number; `note` are lines of a comment at the top. Reading it gives the same numbers to six digits.
std::string profile_toml(const ClusterSpec& machine, const std::string& source,
                         const std::string& note);

}  // namespace trireme::plan
