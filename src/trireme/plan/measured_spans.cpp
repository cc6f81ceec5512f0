#include "trireme/plan/measured_spans.h"

#include <algorithm>
#include <cmath>

#include "trireme/base/error.h"

namespace trireme::plan {

namespace {

double middle_of(std::vector<double> values) {
  std::ranges::sort(values);
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2.0;
}

}  // namespace

void MeasuredSpans::add(const PlannedRun& run, const Program& program,
                        const std::vector<std::vector<double>>& durations_s,
                        const std::vector<double>& steps_s) {
  TRIREME_CHECK(steps_s.empty() || steps_s.size() == durations_s.size(),
                "{} steps with the durations of {}", steps_s.size(), durations_s.size());
  const std::vector<double> usual = usual_durations(durations_s);
  TRIREME_CHECK(usual.size() == program.instructions.size(), "{} durations for {} instructions",
                usual.size(), program.instructions.size());
  InstructionPrices prices(run, program);
  double count = 0.0;
  double sum = 0.0;
  std::vector<double> beyond = steps_s;
  for (const Instruction& instruction : program.instructions) {
    if (instruction.resource == Resource::kCommunication) continue;
    const auto id = static_cast<size_t>(instruction.id);
    count += 1.0;
    sum += usual[id];
    for (size_t step = 0; step < beyond.size(); ++step) beyond[step] -= durations_s[step][id];
    spans_ += static_cast<int64_t>(durations_s.size());
    const InstructionClass of = prices.class_of(instruction);
    if (usual[id] <= 0.0) {
      ++without_time_[of];
      continue;
    }
    measured_[of].push_back(
        {prices.tables_of(instruction), usual[id], static_cast<double>(durations_s.size())});
  }
  if (!beyond.empty())
    steps_.push_back({count, most_common(std::move(beyond)), sum, middle_of(steps_s)});
}

std::vector<InstructionRate> MeasuredSpans::rates() const {
  std::vector<InstructionRate> rates;
  for (const auto& [of, measured] : measured_) {
    const auto none = without_time_.find(of);
    const bool mostly_none =
        none != without_time_.end() && none->second > static_cast<int64_t>(measured.size());
    if (!mostly_none) rates.push_back(fit_rate(of, measured));
  }
  for (const auto& [of, count] : without_time_) {
    const auto with = measured_.find(of);
    if (with != measured_.end() && count <= static_cast<int64_t>(with->second.size())) continue;
    InstructionRate rate;
    rate.of = of;
    rate.products = rate.attention = rate.memory = 0.0;
    rates.push_back(rate);
  }
  std::ranges::sort(rates, {}, [](const InstructionRate& rate) { return rate.of; });
  return rates;
}

HostTimes MeasuredSpans::host_times() const {
  HostTimes times = beside_instructions();
  std::vector<double> ratios;
  for (const Step& step : steps_) {
    const double expected = step.usual_s + times.gap_s * step.instructions + times.step_s;
    if (expected > 0.0) ratios.push_back(step.median_s / expected);
  }
  if (!ratios.empty()) times.slowdown = std::max(1.0, middle_of(std::move(ratios)));
  return times;
}

HostTimes MeasuredSpans::beside_instructions() const {
  HostTimes times;
  if (steps_.empty()) return times;
  // beyond = gap x instructions + step.
  double n = 0.0;
  double x = 0.0;
  double y = 0.0;
  double xx = 0.0;
  double xy = 0.0;
  for (const Step& step : steps_) {
    n += 1.0;
    x += step.instructions;
    y += step.beyond_s;
    xx += step.instructions * step.instructions;
    xy += step.instructions * step.beyond_s;
  }
  const double spread = n * xx - x * x;
  if (spread > 1e-9 * n * xx) {
    times.gap_s = (n * xy - x * y) / spread;
    times.step_s = (y - times.gap_s * x) / n;
    if (times.gap_s >= 0.0 && times.step_s >= 0.0) return times;
    if (times.gap_s < 0.0) return {0.0, std::max(0.0, y / n), 1.0};
  }
  return {std::max(0.0, xx > 0.0 ? xy / xx : 0.0), 0.0, 1.0};
}

double most_common(std::vector<double> values) {
  TRIREME_CHECK(!values.empty(), "the most common of no value");
  std::ranges::sort(values);
  auto first = values.begin();
  auto count = static_cast<std::ptrdiff_t>(values.size());
  while (count > 3) {
    const std::ptrdiff_t half = (count + 1) / 2;
    auto best = first;
    for (std::ptrdiff_t i = 0; i + half <= count; ++i) {
      if (first[i + half - 1] - first[i] < best[half - 1] - *best) best = first + i;
    }
    first = best;
    count = half;
  }
  if (count == 1) return first[0];
  if (count == 2) return 0.5 * (first[0] + first[1]);
  const double below = first[1] - first[0];
  const double above = first[2] - first[1];
  if (below < above) return 0.5 * (first[0] + first[1]);
  return below > above ? 0.5 * (first[1] + first[2]) : first[1];
}

std::vector<double> usual_durations(const std::vector<std::vector<double>>& durations_s) {
  TRIREME_CHECK(!durations_s.empty(), "no measured step");
  std::vector<double> usual(durations_s.front().size());
  for (size_t i = 0; i < usual.size(); ++i) {
    std::vector<double> values;
    values.reserve(durations_s.size());
    for (const std::vector<double>& step : durations_s) values.push_back(step.at(i));
    usual[i] = most_common(std::move(values));
  }
  return usual;
}

}  // namespace trireme::plan
