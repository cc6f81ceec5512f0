#include "trireme/plan/parallel.h"

#include <fmt/ranges.h>

#include <array>
#include <utility>

#include "trireme/base/error.h"
#include "trireme/base/suggest.h"

namespace trireme::plan {

namespace {

template <class Kind, size_t count>
using Names = std::array<std::pair<Kind, const char*>, count>;

constexpr Names<ScheduleKind, 7> kScheduleNames = {{{ScheduleKind::kGPipe, "gpipe"},
                                                    {ScheduleKind::k1F1B, "1f1b"},
                                                    {ScheduleKind::kInterleaved, "interleaved"},
                                                    {ScheduleKind::kZeroBubbleH1, "zb-h1"},
                                                    {ScheduleKind::kZeroBubbleV, "zbv"},
                                                    {ScheduleKind::kDualPipeV, "dualpipev"},
                                                    {ScheduleKind::kVHalf, "v-half"}}};
constexpr Names<ContextKind, 3> kContextNames = {{{ContextKind::kRing, "ring"},
                                                  {ContextKind::kGather, "gather"},
                                                  {ContextKind::kUlysses, "ulysses"}}};
constexpr Names<Reduction, 2> kReductionNames = {
    {{Reduction::kExact, "exact"}, {Reduction::kFast, "fast"}}};

template <class Kind, size_t count>
const char* name_of(const Names<Kind, count>& names, Kind kind) {
  for (const auto& [candidate, name] : names) {
    if (candidate == kind) return name;
  }
  return "?";
}

template <class Kind, size_t count>
Kind kind_of(const Names<Kind, count>& names, const std::string& key, const std::string& given) {
  std::vector<std::string> known;
  for (const auto& [kind, name] : names) {
    if (given == name) return kind;
    known.emplace_back(name);
  }
  throw Error(ErrorCode::kConfig, fmt::format("{} = \"{}\" is not known", key, given),
              suggestion(given, known));
}

}  // namespace

const char* to_string(ScheduleKind kind) {
  return kind == ScheduleKind::kText ? "file" : name_of(kScheduleNames, kind);
}

std::vector<std::string> schedule_names() {
  std::vector<std::string> names;
  for (const auto& [kind, name] : kScheduleNames) names.emplace_back(name);
  return names;
}

bool names_schedule_file(const std::string& name) {
  return name.find_first_of("/.") != std::string::npos;
}

ScheduleKind schedule_from_name(const std::string& name) {
  return kind_of(kScheduleNames, "parallel.schedule", name);
}

const char* to_string(ContextKind kind) {
  return name_of(kContextNames, kind);
}

ContextKind context_kind_from_name(const std::string& name) {
  return kind_of(kContextNames, "parallel.cp_kind", name);
}

const char* to_string(Reduction reduction) {
  return name_of(kReductionNames, reduction);
}

Reduction reduction_from_name(const std::string& name) {
  return kind_of(kReductionNames, "parallel.reduction", name);
}

cluster::MeshShape mesh_shape(const Parallel& parallel) {
  return {.dp = static_cast<int>(parallel.dp),
          .tp = static_cast<int>(parallel.tp),
          .pp = static_cast<int>(parallel.pp),
          .cp = static_cast<int>(parallel.cp),
          .ep = static_cast<int>(parallel.ep),
          .etp = static_cast<int>(parallel.etp),
          .shard = static_cast<int>(parallel.shard)};
}

std::string describe(const Parallel& parallel) {
  std::vector<std::string> words;
  const auto size = [&](const char* name, int64_t value, int64_t plain) {
    if (value != plain) words.push_back(fmt::format("{} {}", name, value));
  };
  size("dp", parallel.dp, 1);
  size("zero", parallel.zero, 0);
  size("shard", parallel.shard, 0);
  size("tp", parallel.tp, 1);
  size("pp", parallel.pp, 1);
  if (parallel.pp > 1) {
    words.emplace_back(to_string(parallel.schedule));
    size("chunks", parallel.chunks, 1);
  }
  size("cp", parallel.cp, 1);
  if (parallel.cp > 1) words.emplace_back(to_string(parallel.cp_kind));
  size("ep", parallel.ep, 1);
  size("etp", parallel.etp, 1);
  if (parallel.reduction != Reduction::kExact) words.emplace_back("fast reduction");
  return words.empty() ? "one rank" : fmt::format("{}", fmt::join(words, " "));
}

}  // namespace trireme::plan
