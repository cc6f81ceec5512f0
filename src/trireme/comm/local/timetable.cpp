#include "trireme/comm/local/timetable.h"

#include <algorithm>

namespace trireme::comm {
namespace {

using Busy = std::vector<std::pair<double, double>>;

/// The first time from `at_s` on at which the link is free for `duration_s`.
double first_gap(const Busy& busy, double at_s, double duration_s) {
  auto next = std::ranges::upper_bound(busy, at_s, {}, &std::pair<double, double>::second);
  for (; next != busy.end() && next->first < at_s + duration_s; ++next) at_s = next->second;
  return at_s;
}

void occupy(Busy& busy, double begin_s, double end_s) {
  const std::pair span(begin_s, end_s);
  busy.insert(std::ranges::upper_bound(busy, span), span);
}

}  // namespace

Timetable::Timetable(int size, const LocalOptions& options)
    : node_size_(options.node_size),
      links_{options.inside_node, options.between_nodes},
      out_(2 * static_cast<size_t>(size)),
      in_(2 * static_cast<size_t>(size)) {}

Links::Passage Timetable::enter(int from, int to, int64_t bytes, double ready_s) {
  const int tier = tier_between(from, to, node_size_);
  const ModelledLink& link = links_[tier];
  double duration_s = link.latency_s;
  if (link.bytes_per_s > 0) duration_s += static_cast<double>(bytes) / link.bytes_per_s;
  if (duration_s == 0.0 || from == to) return {0, ready_s, ready_s};
  Busy& out = out_[2 * static_cast<size_t>(from) + static_cast<size_t>(tier)];
  Busy& in = in_[2 * static_cast<size_t>(to) + static_cast<size_t>(tier)];
  double at_s = ready_s;
  for (double tried_s = -1.0; tried_s != at_s;) {
    tried_s = at_s;
    at_s = first_gap(in, first_gap(out, at_s, duration_s), duration_s);
  }
  occupy(out, at_s, at_s + duration_s);
  occupy(in, at_s, at_s + duration_s);
  return {0, at_s, at_s + duration_s};
}

}  // namespace trireme::comm
