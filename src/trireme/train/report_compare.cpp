// Runs side by side: what each had reached after the same time of training.
#include <algorithm>
#include <cmath>

#include "trireme/train/report.h"

namespace trireme::train {

namespace {

constexpr size_t kPoints = 240;  // of the common clock

double seconds_of(const std::vector<StepMetrics>& metrics) {
  double sum = 0.0;
  for (const StepMetrics& m : metrics) sum += m.step_s;
  return sum;
}

OrderedJson rounded(double x) {
  return std::isfinite(x) ? OrderedJson(std::round(x * 1e5) / 1e5) : OrderedJson(nullptr);
}

/// Values at the points of the clock, null before the first step and after the last one. The training loss is a mean over
/// a fortieth of the run; validation stays where it was measured.
OrderedJson run_json(const std::string& name, const std::vector<StepMetrics>& metrics,
                     const std::vector<double>& clock) {
  const size_t reach = std::max<size_t>(1, metrics.size() / 80);
  std::vector<OrderedJson> loss(clock.size());
  std::vector<OrderedJson> valid(clock.size());
  double now = 0.0;
  size_t point = 0;
  for (size_t i = 0; i < metrics.size(); ++i) {
    now += metrics[i].step_s;
    const size_t begin = i > reach ? i - reach : 0;
    const size_t end = std::min(metrics.size(), i + reach + 1);
    double sum = 0.0;
    for (size_t k = begin; k < end; ++k) sum += metrics[k].loss;
    const size_t first = point;
    while (point < clock.size() && clock[point] <= now + 1e-9)
      loss[point++] = rounded(sum / static_cast<double>(end - begin));
    if (metrics[i].valid_loss && point > 0)
      valid[std::max(first, point) - 1] = rounded(*metrics[i].valid_loss);
  }
  return {{"name", name}, {"loss", loss}, {"valid_loss", valid}};
}

}  // namespace

OrderedJson comparison_json(const Report& report) {
  if (report.compared.empty() || report.metrics.empty()) return nullptr;
  double longest = seconds_of(report.metrics);
  for (const ReportRun& run : report.compared) longest = std::max(longest, seconds_of(run.metrics));
  std::vector<double> clock;
  for (size_t i = 1; i <= kPoints; ++i)
    clock.push_back(longest * static_cast<double>(i) / static_cast<double>(kPoints));
  OrderedJson seconds = OrderedJson::array();
  for (const double s : clock) seconds.push_back(std::round(s * 10) / 10);
  OrderedJson runs = OrderedJson::array();
  runs.push_back(run_json(report.title, report.metrics, clock));
  for (const ReportRun& run : report.compared)
    runs.push_back(run_json(run.name, run.metrics, clock));
  return {{"seconds", seconds}, {"runs", runs}};
}

}  // namespace trireme::train
