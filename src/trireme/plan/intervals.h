// Unions of time intervals: what of one queue's time another one covers. Internal to this room.
#pragma once

#include <utility>
#include <vector>

namespace trireme::plan {

using Interval = std::pair<double, double>;  ///< begin and end

/// The union, as intervals in order that do not touch.
std::vector<Interval> merged(std::vector<Interval> intervals);
/// Of intervals that do not overlap.
double length(const std::vector<Interval>& intervals);

/// Lengths of a union of intervals and of what others leave of it.
struct Coverage {
  double length = 0.0;
  double uncovered = 0.0;
};
Coverage cover(std::vector<Interval> intervals, std::vector<Interval> by);

/// Of something that comes again every `period`: adds what of the interval is in one period that begins at 0, where part of
/// the interval, which is no longer than the period, may lie before it.
void add_folded(std::vector<Interval>& intervals, Interval interval, double period);

}  // namespace trireme::plan
