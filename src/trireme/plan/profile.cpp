#include "trireme/plan/profile.h"

#include <algorithm>
#include <cctype>
#include <set>

#include "trireme/base/error.h"
#include "trireme/base/suggest.h"

namespace trireme::plan {

namespace {

char lower(char c) {
  return static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
}

template <typename Map>
std::vector<std::string> names_of(const Map& map) {
  std::vector<std::string> names;
  names.reserve(map.size());
  for (const auto& entry : map) names.push_back(entry.first);
  return names;
}

template <typename Map>
const typename Map::mapped_type& find(const Map& map, const std::vector<Pattern>& patterns,
                                      const std::string& text, const char* what) {
  if (const auto named = map.find(text); named != map.end()) return named->second;
  for (const Pattern& pattern : patterns) {
    if (matches_pattern(pattern.text, text)) return map.at(pattern.name);
  }
  throw Error(ErrorCode::kConfig, fmt::format("no {} \"{}\"", what, text),
              suggestion(text, names_of(map)));
}

}  // namespace

const char* to_string(ComputeType type) {
  switch (type) {
    case ComputeType::kFp32:
      return "fp32";
    case ComputeType::kBf16:
      return "bf16";
    case ComputeType::kFp8:
      return "fp8";
  }
  return "?";
}

double combined(const std::vector<Observation>& observations, const std::string& without,
                double fallback) {
  std::vector<double> values;
  for (const Observation& observation : observations) {
    if (observation.source != without) values.push_back(observation.value);
  }
  if (values.empty()) return fallback;
  std::ranges::sort(values);
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2.0;
}

// The usual two fingers: where a '*' matched too little, it takes one letter more.
bool matches_pattern(std::string_view pattern, std::string_view text) {
  size_t p = 0;
  size_t t = 0;
  size_t star = std::string_view::npos;
  size_t after_star = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      after_star = t;
    } else if (p < pattern.size() && lower(pattern[p]) == lower(text[t])) {
      ++p;
      ++t;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      t = ++after_star;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

const ClusterSpec& ProfileLibrary::cluster(const std::string& name_or_text) const {
  return find(clusters, cluster_patterns, name_or_text, "cluster");
}

const StackProfile& ProfileLibrary::stack(const std::string& name_or_text) const {
  return find(stacks, stack_patterns, name_or_text, "stack");
}

const ReliabilityProfile& ProfileLibrary::reliability(const std::string& name) const {
  return find(reliabilities, {}, name, "reliability");
}

double ProfileLibrary::calibrated(const std::string& key, const std::string& device,
                                  const std::string& stack, const std::string& without,
                                  double fallback) const {
  // Both named, then the stack, then the device, then neither.
  for (const auto& [of_device, of_stack] : std::vector<std::pair<std::string, std::string>>{
           {device, stack}, {"", stack}, {device, ""}, {"", ""}}) {
    std::vector<Observation> observations;
    for (const Calibration& one : calibrations) {
      if (one.key == key && one.device == of_device && one.stack == of_stack)
        observations.insert(observations.end(), one.observations.begin(), one.observations.end());
    }
    const bool any = std::ranges::any_of(
        observations, [&](const Observation& one) { return one.source != without; });
    if (any) return combined(observations, without, fallback);
  }
  return fallback;
}

}  // namespace trireme::plan
