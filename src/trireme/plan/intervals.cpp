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

}  // namespace trireme::plan
