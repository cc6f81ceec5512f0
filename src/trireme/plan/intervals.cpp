#include "trireme/plan/intervals.h"

#include <algorithm>

namespace trireme::plan {

std::vector<Interval> merged(std::vector<Interval> intervals) {
  std::sort(intervals.begin(), intervals.end());
  std::vector<Interval> result;
  for (const Interval& interval : intervals) {
    if (!result.empty() && interval.first <= result.back().second) {
      result.back().second = std::max(result.back().second, interval.second);
    } else {
      result.push_back(interval);
    }
  }
  return result;
}

double length(const std::vector<Interval>& intervals) {
  double sum = 0.0;
  for (const auto& [begin, end] : intervals) sum += end - begin;
  return sum;
}

Coverage cover(std::vector<Interval> intervals, std::vector<Interval> by) {
  const std::vector<Interval> own = merged(std::move(intervals));
  by = merged(std::move(by));
  std::vector<Interval> both = by;
  both.insert(both.end(), own.begin(), own.end());
  return {length(own), length(merged(std::move(both))) - length(by)};
}

void add_folded(std::vector<Interval>& intervals, Interval interval, double period) {
  const auto [begin, end] = interval;
  if (begin < 0.0) intervals.emplace_back(begin + period, std::min(0.0, end) + period);
  if (end > 0.0 || begin >= 0.0) intervals.emplace_back(std::max(0.0, begin), end);
}

}  // namespace trireme::plan
