#include "trireme/optim/schedule.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <utility>

#include "trireme/base/error.h"
#include "trireme/base/suggest.h"

namespace trireme::optim {
namespace {

constexpr std::array<std::pair<const char*, ScheduleKind>, 5> kSchedules = {
    {{"cosine", ScheduleKind::kCosine},
     {"linear", ScheduleKind::kLinear},
     {"constant", ScheduleKind::kConstant},
     {"wsd", ScheduleKind::kWsd},
     {"inverse-sqrt", ScheduleKind::kInverseSqrt}}};
constexpr std::array<std::pair<const char*, DecayShape>, 3> kShapes = {
    {{"linear", DecayShape::kLinear},
     {"sqrt", DecayShape::kSqrt},
     {"cosine", DecayShape::kCosine}}};

template <class Value, size_t N>
Value value_of(const std::array<std::pair<const char*, Value>, N>& table, const std::string& name,
               const char* what) {
  std::vector<std::string> names;
  for (const auto& [known, value] : table) {
    if (name == known) return value;
    names.emplace_back(known);
  }
  throw Error(ErrorCode::kConfig, fmt::format("unknown {} \"{}\"", what, name),
              suggestion(name, names));
}

template <class Value, size_t N>
const char* name_of(const std::array<std::pair<const char*, Value>, N>& table, Value value) {
  for (const auto& [name, known] : table) {
    if (known == value) return name;
  }
  return "?";
}

double cosine(double progress) {
  return 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
}

/// 1 at progress 0, 0 at progress 1.
double remaining(DecayShape shape, double progress) {
  switch (shape) {
    case DecayShape::kLinear:
      return 1.0 - progress;
    case DecayShape::kSqrt:
      return 1.0 - std::sqrt(progress);
    case DecayShape::kCosine:
      return cosine(progress);
  }
  return 0.0;
}

int64_t decay_length(const ScheduleSpec& spec) {
  return spec.decay_steps > 0 ? spec.decay_steps : std::max<int64_t>(1, spec.steps / 5);
}

}  // namespace

double learning_rate(const ScheduleSpec& spec, int64_t step) {
  const int64_t s = std::clamp<int64_t>(step, 0, std::max<int64_t>(0, spec.steps - 1));
  if (s < spec.warmup)
    return spec.peak * static_cast<double>(s + 1) / static_cast<double>(spec.warmup);
  const auto between = [&](double factor) {
    return spec.peak * (spec.min_ratio + (1.0 - spec.min_ratio) * factor);
  };
  // The last step has progress 1: the run ends on the rate that was asked for.
  const double span = static_cast<double>(std::max<int64_t>(1, spec.steps - 1 - spec.warmup));
  const double progress = static_cast<double>(s - spec.warmup) / span;
  switch (spec.kind) {
    case ScheduleKind::kConstant:
      return spec.peak;
    case ScheduleKind::kCosine:
      return between(cosine(progress));
    case ScheduleKind::kLinear:
      return between(1.0 - progress);
    case ScheduleKind::kInverseSqrt: {
      const auto warmup = static_cast<double>(std::max<int64_t>(1, spec.warmup));
      return spec.peak * std::sqrt(warmup / std::max(warmup, static_cast<double>(s + 1)));
    }
    case ScheduleKind::kWsd: {
      const int64_t length = decay_length(spec);
      const int64_t start = spec.steps - length;
      if (s < start) return spec.peak;
      return between(remaining(spec.decay_shape,
                               static_cast<double>(s - start + 1) / static_cast<double>(length)));
    }
  }
  return spec.peak;
}

std::vector<std::string> validate(const ScheduleSpec& spec) {
  std::vector<std::string> problems;
  if (!(spec.peak > 0.0) || !std::isfinite(spec.peak)) {
    problems.push_back(fmt::format("the learning rate must be positive, not {}", spec.peak));
  }
  if (!(spec.min_ratio >= 0.0 && spec.min_ratio <= 1.0)) {
    problems.push_back(fmt::format("min_ratio must be between 0 and 1, not {}", spec.min_ratio));
  }
  if (spec.steps < 1)
    problems.push_back(fmt::format("steps must be at least 1, not {}", spec.steps));
  if (spec.warmup < 0)
    problems.push_back(fmt::format("warmup must not be negative: {}", spec.warmup));
  if (spec.steps >= 1 && spec.warmup > spec.steps) {
    problems.push_back(
        fmt::format("warmup of {} steps is longer than the run of {}", spec.warmup, spec.steps));
  }
  if (spec.decay_steps < 0)
    problems.push_back(fmt::format("decay_steps must not be negative: {}", spec.decay_steps));
  if (spec.kind == ScheduleKind::kWsd && spec.decay_steps + spec.warmup > spec.steps) {
    problems.push_back(fmt::format("warmup of {} and decay of {} steps do not fit into {} steps",
                                   spec.warmup, spec.decay_steps, spec.steps));
  }
  return problems;
}

ScheduleKind schedule_from_name(const std::string& name) {
  return value_of(kSchedules, name, "schedule");
}
DecayShape decay_shape_from_name(const std::string& name) {
  return value_of(kShapes, name, "decay shape");
}
const char* to_string(ScheduleKind kind) {
  return name_of(kSchedules, kind);
}
const char* to_string(DecayShape shape) {
  return name_of(kShapes, shape);
}

std::vector<std::string> schedule_names() {
  std::vector<std::string> names;
  for (const auto& [name, kind] : kSchedules) names.emplace_back(name);
  return names;
}

std::vector<std::string> validate(const BatchRampSpec& spec) {
  std::vector<std::string> problems;
  if (spec.full < 1)
    problems.push_back(fmt::format("the batch must have at least 1 sequence, not {}", spec.full));
  if (spec.steps < 0)
    problems.push_back(fmt::format("the ramp-up's steps must not be negative: {}", spec.steps));
  if (spec.steps <= 0) return problems;
  if (spec.start < 1 || spec.start > spec.full) {
    problems.push_back(fmt::format("the ramp-up starts with {} sequences, outside 1 .. {}",
                                   spec.start, spec.full));
  }
  if (spec.increment < 1) {
    problems.push_back(
        fmt::format("the ramp-up's increment must be at least 1, not {}", spec.increment));
  } else if ((spec.full - spec.start) % spec.increment != 0) {
    problems.push_back(
        fmt::format("the ramp-up from {} to {} sequences is no multiple of its increment {}",
                    spec.start, spec.full, spec.increment));
  }
  return problems;
}

int64_t batch_sequences(const BatchRampSpec& spec, int64_t step) {
  if (spec.steps <= 0 || step >= spec.steps) return spec.full;
  const int64_t growth = (spec.full - spec.start) * step / spec.steps;
  return spec.start + growth / spec.increment * spec.increment;
}

int64_t sequences_before(const BatchRampSpec& spec, int64_t step) {
  if (spec.steps <= 0 || spec.full == spec.start) return spec.full * step;
  const int64_t ramp = std::min(step, spec.steps);
  int64_t sum = spec.full * (step - ramp) + spec.start * ramp;
  // Level k adds one increment from the first step s with (full - start) * s / steps >= k * increment.
  const int64_t range = spec.full - spec.start;
  for (int64_t level = spec.increment; level <= range; level += spec.increment) {
    const int64_t first = (level * spec.steps + range - 1) / range;
    if (first >= ramp) break;
    sum += spec.increment * (ramp - first);
  }
  return sum;
}

}  // namespace trireme::optim
