#include "trireme/plan/trace_analysis.h"

#include <algorithm>
#include <cmath>

#include "trireme/plan/intervals.h"

namespace trireme::plan {

namespace {

double end_of(const Trace& trace) {
  double end = 0.0;
  for (const TraceEvent& event : trace.events) {
    end = std::max(end, event.start_us + event.duration_us);
  }
  return end;
}

double hidden_share(const Coverage& coverage) {
  return coverage.length > 0 ? (coverage.length - coverage.uncovered) / coverage.length : 1.0;
}

}  // namespace

TraceSummary summarize(const Trace& trace) {
  TraceSummary summary;
  summary.step_s = end_of(trace) * 1e-6;
  std::vector<Interval> compute;
  std::vector<Interval> copies;
  std::vector<Interval> comm;
  std::vector<Interval> host;
  double flops = 0.0;
  for (const TraceEvent& event : trace.events) {
    const Interval interval{event.start_us * 1e-6, (event.start_us + event.duration_us) * 1e-6};
    if (event.resource == to_string(Resource::kCompute)) {
      compute.push_back(interval);
    } else if (event.resource == to_string(Resource::kHost)) {
      host.push_back(interval);
    } else if (event.resource == to_string(Resource::kCopyOut) ||
               event.resource == to_string(Resource::kCopyIn)) {
      add_folded(copies, interval, summary.step_s);
    } else {
      comm.push_back(interval);
    }
    summary.seconds_by_kind[event.kind] += event.duration_us * 1e-6;
    flops += event.flops;
  }
  compute = merged(std::move(compute));
  summary.compute_s = length(compute);
  summary.host_s = length(merged(std::move(host)));
  std::vector<Interval> all = compute;
  all.insert(all.end(), comm.begin(), comm.end());
  all.insert(all.end(), copies.begin(), copies.end());
  const Coverage communication = cover(std::move(comm), compute);
  summary.comm_s = communication.length;
  summary.exposed_comm_s = communication.uncovered;
  summary.hidden_comm_share = hidden_share(communication);
  const Coverage copied = cover(std::move(copies), compute);
  summary.copy_s = copied.length;
  summary.exposed_copy_s = copied.uncovered;
  summary.hidden_copy_share = hidden_share(copied);
  summary.idle_s = std::max(0.0, summary.step_s - length(merged(std::move(all))));
  summary.achieved_flops = summary.step_s > 0 ? flops / summary.step_s : 0.0;
  summary.peak_bytes = trace.peak_bytes;
  return summary;
}

TraceComparison compare(const Trace& a, const Trace& b) {
  TraceComparison result;
  std::map<std::pair<int, std::string>, const TraceEvent*> in_b;
  for (const TraceEvent& event : b.events) in_b[{event.instruction, event.name}] = &event;
  for (const TraceEvent& left : a.events) {
    const auto found = in_b.find({left.instruction, left.name});
    if (found == in_b.end()) {
      result.only_in_a.push_back(left.name);
      continue;
    }
    const TraceEvent& right = *found->second;
    result.instructions.push_back({left.instruction, left.name, left.kind, left.duration_us,
                                   right.duration_us, left.start_us, right.start_us,
                                   left.held_bytes_after, right.held_bytes_after, left.peak_bytes,
                                   right.peak_bytes});
    ComparedKind& kind = result.by_kind[left.kind];
    kind.a_us += left.duration_us;
    kind.b_us += right.duration_us;
    if (left.held_bytes_after > 0) {
      const double error =
          std::abs(static_cast<double>(left.held_bytes_after - right.held_bytes_after)) /
          static_cast<double>(left.held_bytes_after);
      if (error > result.worst_held_error) {
        result.worst_held_error = error;
        result.worst_held_instruction = left.instruction;
      }
    }
    in_b.erase(found);
  }
  for (const auto& [key, event] : in_b) result.only_in_b.push_back(event->name);
  result.a_step_us = end_of(a);
  result.b_step_us = end_of(b);
  result.a_peak_bytes = a.peak_bytes;
  result.b_peak_bytes = b.peak_bytes;
  return result;
}

}  // namespace trireme::plan
