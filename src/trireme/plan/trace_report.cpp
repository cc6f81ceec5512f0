#include "trireme/plan/trace_report.h"

#include <algorithm>
#include <cmath>

#include "trireme/base/error.h"

namespace trireme::plan {

namespace {

double ratio(double a, double b) {
  return a > 0 ? b / a : 0.0;
}

double mebibytes(int64_t bytes) {
  return static_cast<double>(bytes) / (1024.0 * 1024.0);
}

}  // namespace

OrderedJson to_json(const Trace& trace, const TraceSummary& summary) {
  OrderedJson kinds;
  for (const auto& [kind, seconds] : summary.seconds_by_kind) kinds[kind] = seconds;
  return {{"ranks", OrderedJson::array({{{"rank", trace.rank},
                                         {"source", trace.source},
                                         {"step", trace.step},
                                         {"step_s", summary.step_s},
                                         {"compute_s", summary.compute_s},
                                         {"comm_s", summary.comm_s},
                                         {"exposed_comm_s", summary.exposed_comm_s},
                                         {"hidden_comm_share", summary.hidden_comm_share},
                                         {"copy_s", summary.copy_s},
                                         {"exposed_copy_s", summary.exposed_copy_s},
                                         {"hidden_copy_share", summary.hidden_copy_share},
                                         {"idle_s", summary.idle_s},
                                         {"host_s", summary.host_s},
                                         {"flops_per_s", summary.achieved_flops},
                                         {"peak_bytes", summary.peak_bytes},
                                         {"seconds_by_kind", std::move(kinds)}}})}};
}

std::string describe(const Trace& trace, const TraceSummary& summary) {
  std::string text = fmt::format(
      "{} step of rank {}: {}\n"
      "step {:.4g} s: compute {:.4g} s, communication {:.4g} s ({:.4g} s exposed), idle {:.4g} s, "
      "host {:.4g} s\n"
      "{:.4g} GFLOP/s over the step, peak {:.1f} MiB\n",
      trace.source, trace.rank, trace.model, summary.step_s, summary.compute_s, summary.comm_s,
      summary.exposed_comm_s, summary.idle_s, summary.host_s, summary.achieved_flops * 1e-9,
      mebibytes(summary.peak_bytes));
  if (summary.copy_s > 0) {
    text += fmt::format("copies to and from the host {:.4g} s, {:.1f} % of them behind compute\n",
                        summary.copy_s, 100.0 * summary.hidden_copy_share);
  }
  std::vector<std::pair<double, std::string>> order;
  order.reserve(summary.seconds_by_kind.size());
  for (const auto& [kind, seconds] : summary.seconds_by_kind) order.emplace_back(seconds, kind);
  std::sort(order.rbegin(), order.rend());
  for (const auto& [seconds, kind] : order) {
    text += fmt::format("  {:<18}{:>10.4g} s  {:>5.1f} %\n", kind, seconds,
                        100.0 * ratio(summary.step_s, seconds));
  }
  return text;
}

OrderedJson to_json(const TraceComparison& comparison) {
  OrderedJson instructions = OrderedJson::array();
  for (const ComparedInstruction& row : comparison.instructions) {
    instructions.push_back({{"instruction", row.instruction},
                            {"name", row.name},
                            {"kind", row.kind},
                            {"a_us", row.a_us},
                            {"b_us", row.b_us},
                            {"a_start_us", row.a_start_us},
                            {"b_start_us", row.b_start_us},
                            {"a_held_bytes", row.a_held_bytes},
                            {"b_held_bytes", row.b_held_bytes},
                            {"a_peak_bytes", row.a_peak_bytes},
                            {"b_peak_bytes", row.b_peak_bytes}});
  }
  OrderedJson kinds;
  for (const auto& [kind, times] : comparison.by_kind) {
    kinds[kind] = {{"a_us", times.a_us}, {"b_us", times.b_us}};
  }
  return {{"a_step_us", comparison.a_step_us},
          {"b_step_us", comparison.b_step_us},
          {"a_peak_bytes", comparison.a_peak_bytes},
          {"b_peak_bytes", comparison.b_peak_bytes},
          {"worst_held_error", comparison.worst_held_error},
          {"worst_held_instruction", comparison.worst_held_instruction},
          {"only_in_a", comparison.only_in_a},
          {"only_in_b", comparison.only_in_b},
          {"by_kind", std::move(kinds)},
          {"instructions", std::move(instructions)}};
}

std::string describe(const TraceComparison& comparison, int rows) {
  std::string text = fmt::format(
      "{:<54}{:>12}{:>12}{:>12}{:>8}\n"
      "{:<54}{:>9.3f} ms{:>9.3f} ms{:>9.3f} ms{:>8.3f}\n",
      "", "a", "b", "b - a", "b / a", "step", comparison.a_step_us * 1e-3,
      comparison.b_step_us * 1e-3, (comparison.b_step_us - comparison.a_step_us) * 1e-3,
      ratio(comparison.a_step_us, comparison.b_step_us));
  const auto a_peak = static_cast<double>(comparison.a_peak_bytes);
  const auto b_peak = static_cast<double>(comparison.b_peak_bytes);
  text += fmt::format("{:<54}{:>8.1f} MiB{:>8.1f} MiB{:>8.1f} MiB{:>8.3f}\n", "peak memory",
                      a_peak / 1048576, b_peak / 1048576, (b_peak - a_peak) / 1048576,
                      ratio(a_peak, b_peak));
  const auto time_line = [&](const std::string& name, double a, double b) {
    text += fmt::format("{:<54}{:>9.3f} ms{:>9.3f} ms{:>9.3f} ms{:>8.3f}\n", name, a * 1e-3,
                        b * 1e-3, (b - a) * 1e-3, ratio(a, b));
  };
  for (const auto& [kind, times] : comparison.by_kind)
    time_line("  " + kind, times.a_us, times.b_us);
  std::vector<const ComparedInstruction*> order;
  order.reserve(comparison.instructions.size());
  for (const ComparedInstruction& row : comparison.instructions) order.push_back(&row);
  if (rows > 0) {
    std::stable_sort(order.begin(), order.end(), [](const auto* x, const auto* y) {
      return std::abs(x->b_us - x->a_us) > std::abs(y->b_us - y->a_us);
    });
    order.resize(std::min(order.size(), static_cast<size_t>(rows)));
    text += "instructions that differ most\n";
  } else {
    text += "instructions\n";
  }
  for (const ComparedInstruction* row : order) {
    time_line(fmt::format("{:>6}  {}", row->instruction, row->name), row->a_us, row->b_us);
  }
  if (comparison.worst_held_instruction >= 0) {
    text += fmt::format("bytes held differ by at most {:.2f} % (after instruction {})\n",
                        100.0 * comparison.worst_held_error, comparison.worst_held_instruction);
  }
  const auto missing = [&](const char* where, const std::vector<std::string>& names) {
    if (names.empty()) return;
    text += fmt::format("only in {}: {} instructions, the first is {}\n", where, names.size(),
                        names.front());
  };
  missing("a", comparison.only_in_a);
  missing("b", comparison.only_in_b);
  return text;
}

}  // namespace trireme::plan
