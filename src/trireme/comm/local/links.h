// Links that take their time: which transfer has which link when. Pure: time is what the caller says. Internal to local/.
#pragma once

#include <cstdint>
#include <list>
#include <vector>

#include "trireme/comm/local/local_world.h"

namespace trireme::comm {

/// 0 inside a node, 1 between two.
int tier_between(int from, int to, int node_size);

/// Each rank has, for each tier, one link out and one in, which carry one transfer at a time. A transfer starts as soon as both
/// of its links are free, in the order in which they were added where several could. Not thread-safe.
class Links {
 public:
  Links(int size, const LocalOptions& options);

  /// Whether a transfer between the two takes time at all.
  bool is_modelled(int from, int to) const;

  struct Passage {
    int64_t id = 0;
    double start_s = 0.0;
    double end_s = 0.0;
  };
  /// A transfer that could start at `now_s`, which no later call goes below.
  void add(int64_t id, int from, int to, int64_t bytes, double now_s);
  /// Those that have ended by `now_s` and were not given out, in the order of their ends. Others start at the moment when links
  /// became free, however late the call is.
  std::vector<Passage> advance(double now_s);
  /// When advance() next gives something out; infinity: nothing is under way.
  double next_s() const;

 private:
  struct Waiting {
    int64_t id;
    int from;
    int to;
    int tier;
    int64_t bytes;
  };
  struct Running {
    Waiting what;
    double start_s;
    double end_s;
  };
  double next_end_s() const;
  void start_those_that_can(double at_s);

  const int node_size_;
  const ModelledLink links_[2];  ///< inside a node, between nodes
  std::vector<char> out_busy_;   ///< by rank and tier
  std::vector<char> in_busy_;
  std::list<Waiting> waiting_;
  std::list<Running> running_;
  std::vector<Passage> ended_;
};

}  // namespace trireme::comm
