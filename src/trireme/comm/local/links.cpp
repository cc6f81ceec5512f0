#include "trireme/comm/local/links.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "trireme/base/error.h"

namespace trireme::comm {
namespace {

size_t place(int rank, int tier) {
  return 2 * static_cast<size_t>(rank) + static_cast<size_t>(tier);
}

}  // namespace

Links::Links(int size, const LocalOptions& options)
    : node_size_(options.node_size),
      links_{options.inside_node, options.between_nodes},
      out_busy_(2 * static_cast<size_t>(size), 0),
      in_busy_(2 * static_cast<size_t>(size), 0) {
  for (const ModelledLink& link : links_) {
    TRIREME_CHECK(link.latency_s >= 0 && link.bytes_per_s >= 0, "a link of {} s and {} bytes/s",
                  link.latency_s, link.bytes_per_s);
  }
}

int tier_between(int from, int to, int node_size) {
  return node_size == 0 || from / node_size == to / node_size ? 0 : 1;
}

bool Links::is_modelled(int from, int to) const {
  const ModelledLink& link = links_[tier_between(from, to, node_size_)];
  return from != to && (link.latency_s > 0 || link.bytes_per_s > 0);
}

void Links::add(int64_t id, int from, int to, int64_t bytes, double now_s) {
  ended_ = advance(now_s);
  waiting_.push_back({id, from, to, tier_between(from, to, node_size_), bytes});
  start_those_that_can(now_s);
}

void Links::start_those_that_can(double at_s) {
  for (auto next = waiting_.begin(); next != waiting_.end();) {
    char& out = out_busy_[place(next->from, next->tier)];
    char& in = in_busy_[place(next->to, next->tier)];
    if (out != 0 || in != 0) {
      ++next;
      continue;
    }
    out = 1;
    in = 1;
    const ModelledLink& link = links_[next->tier];
    double duration = link.latency_s;
    if (link.bytes_per_s > 0) duration += static_cast<double>(next->bytes) / link.bytes_per_s;
    running_.push_back({*next, at_s, at_s + duration});
    next = waiting_.erase(next);
  }
}

std::vector<Links::Passage> Links::advance(double now_s) {
  std::vector<Passage> ended = std::exchange(ended_, {});
  for (double at_s = next_end_s(); at_s <= now_s; at_s = next_end_s()) {
    // All that end together are free together.
    for (auto run = running_.begin(); run != running_.end();) {
      if (run->end_s > at_s) {
        ++run;
        continue;
      }
      out_busy_[place(run->what.from, run->what.tier)] = 0;
      in_busy_[place(run->what.to, run->what.tier)] = 0;
      ended.push_back({run->what.id, run->start_s, run->end_s});
      run = running_.erase(run);
    }
    start_those_that_can(at_s);
  }
  return ended;
}

double Links::next_s() const {
  return ended_.empty() ? next_end_s() : ended_.front().end_s;
}

double Links::next_end_s() const {
  double next = std::numeric_limits<double>::infinity();
  for (const Running& run : running_) next = std::min(next, run.end_s);
  return next;
}

}  // namespace trireme::comm
