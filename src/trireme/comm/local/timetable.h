// Links that take their time on a clock that is not the wall's: when each transfer has its links. Pure. Internal to local/.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "trireme/comm/local/links.h"

namespace trireme::comm {

/// As Links, for transfers that are named in any order: each gets the first time, from when it is ready, at which both of its
/// links are free for as long as it takes. Not thread-safe.
class Timetable {
 public:
  Timetable(int size, const LocalOptions& options);
  Links::Passage enter(int from, int to, int64_t bytes, double ready_s);

 private:
  using Busy = std::vector<std::pair<double, double>>;  ///< begin and end, in order
  const int node_size_;
  const ModelledLink links_[2];
  std::vector<Busy> out_;  ///< by rank and tier
  std::vector<Busy> in_;
};

}  // namespace trireme::comm
