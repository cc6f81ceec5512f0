#include "trireme/plan/search_space.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <set>

#include "trireme/base/error.h"
#include "trireme/base/suggest.h"
#include "trireme/plan/schedule.h"
#include "trireme/plan/stages.h"
#include "trireme/plan/validate_parallel.h"

namespace trireme::plan {

namespace {

std::vector<int64_t> divisors(int64_t number, int64_t most) {
  std::vector<int64_t> result;
  for (int64_t d = 1; d <= std::min(number, most); ++d) {
    if (number % d == 0) result.push_back(d);
  }
  return result;
}

bool recomputable(model::PartKind kind) {
  return kind == model::PartKind::kAttention || kind == model::PartKind::kMlp ||
         kind == model::PartKind::kExperts || kind == model::PartKind::kCombine;
}

/// `of` says which layers, and which parts of them, run again.
template <typename Of>
std::vector<Recompute> parts_where(const model::ModelSpec& spec, const Of& of) {
  std::vector<Recompute> parts(spec.parts.size(), Recompute::kNone);
  for (size_t part = 0; part < parts.size(); ++part) {
    const model::PartSpec& one = spec.parts[part];
    if (one.layer >= 0 && recomputable(one.kind) && of(one)) parts[part] = Recompute::kFull;
  }
  return parts;
}

std::vector<RecomputeChoice> recompute_choices(const model::ModelSpec& spec) {
  const bool experts = std::ranges::any_of(
      spec.layers, [](const model::LayerSpec& layer) { return layer.moe.has_value(); });
  std::vector<RecomputeChoice> choices;
  choices.push_back({"none", {"none"}, parts_where(spec, [](const auto&) { return false; })});
  const auto of_kind = [&](const char* name, model::PartKind kind, bool said) {
    const auto parts =
        parts_where(spec, [&](const model::PartSpec& part) { return part.kind == kind; });
    if (std::ranges::find(parts, Recompute::kFull) == parts.end()) return;
    choices.push_back(
        {name, said ? std::vector<std::string>{name} : std::vector<std::string>(), parts});
  };
  of_kind("attention", model::PartKind::kAttention, true);
  of_kind("mlp", model::PartKind::kMlp, true);
  of_kind("experts", model::PartKind::kExperts, false);
  // Some layers, evenly spread, so that every stage has its share.
  for (const int64_t quarters : {1, 2, 3}) {
    RecomputeChoice choice;
    choice.name = fmt::format("{} of 4 layers", quarters);
    const auto chosen = [&](int64_t layer) {
      return layer * quarters / 4 != (layer + 1) * quarters / 4;
    };
    choice.parts =
        parts_where(spec, [&](const model::PartSpec& part) { return chosen(part.layer); });
    for (size_t layer = 0; layer < spec.layers.size() && !experts; ++layer) {
      if (chosen(static_cast<int64_t>(layer)))
        choice.names.push_back(fmt::format("layer.{}", layer));
    }
    choices.push_back(std::move(choice));
  }
  choices.push_back({"full",
                     experts ? std::vector<std::string>() : std::vector<std::string>{"full"},
                     parts_where(spec, [](const auto&) { return true; })});
  // Of few layers, some are the same.
  std::vector<RecomputeChoice> distinct;
  for (RecomputeChoice& choice : choices) {
    if (std::ranges::none_of(
            distinct, [&](const RecomputeChoice& other) { return other.parts == choice.parts; }))
      distinct.push_back(std::move(choice));
  }
  return distinct;
}

int64_t number_of(const std::string& name, const std::string& text) {
  int64_t value = -1;
  const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), value);
  TRIREME_USER_CHECK(failed == std::errc() && end == text.data() + text.size() && value >= 0,
                     kConfig, "give a whole number", "{} = \"{}\" is not a number", name, text);
  return value;
}

struct SizeDimension {
  const char* name;
  std::vector<int64_t> SearchSpace::* values;
};
constexpr std::array<SizeDimension, 9> kSizes = {{{"dp", &SearchSpace::dp},
                                                  {"tp", &SearchSpace::tp},
                                                  {"cp", &SearchSpace::cp},
                                                  {"ep", &SearchSpace::ep},
                                                  {"etp", &SearchSpace::etp},
                                                  {"pp", &SearchSpace::pp},
                                                  {"chunks", &SearchSpace::chunks},
                                                  {"zero", &SearchSpace::zero},
                                                  {"micro", &SearchSpace::micro}}};

SearchPrecision precision_from_name(const std::string& name) {
  for (const SearchPrecision one :
       {SearchPrecision::kFp32, SearchPrecision::kBf16, SearchPrecision::kFp8}) {
    if (name == to_string(one)) return one;
  }
  throw Error(ErrorCode::kConfig, fmt::format("precision \"{}\" is not known", name),
              suggestion(name, {"fp32", "bf16", "fp8"}));
}

OverlapChoice overlap_from_name(const std::string& name) {
  for (const OverlapChoice one :
       {OverlapChoice::kAsStack, OverlapChoice::kNone, OverlapChoice::kAll}) {
    if (name == to_string(one)) return one;
  }
  throw Error(ErrorCode::kConfig, fmt::format("overlap \"{}\" is not known", name),
              suggestion(name, {"stack", "none", "all"}));
}

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  size_t begin = 0;
  for (size_t at = 0; at <= text.size(); ++at) {
    if (at < text.size() && text[at] != ',') continue;
    parts.push_back(text.substr(begin, at - begin));
    begin = at + 1;
  }
  return parts;
}

}  // namespace

const char* to_string(OverlapChoice overlap) {
  switch (overlap) {
    case OverlapChoice::kAsStack:
      return "stack";
    case OverlapChoice::kNone:
      return "none";
    case OverlapChoice::kAll:
      return "all";
  }
  return "?";
}

const char* to_string(SearchPrecision precision) {
  switch (precision) {
    case SearchPrecision::kFp32:
      return "fp32";
    case SearchPrecision::kBf16:
      return "bf16";
    case SearchPrecision::kFp8:
      return "fp8";
  }
  return "?";
}

SearchSpace search_space(const PlannedRun& run, int64_t accelerators) {
  TRIREME_USER_CHECK(accelerators >= 1 && accelerators <= (int64_t{1} << 20), kConfig,
                     "give a number from 1 to 1048576", "{} accelerators", accelerators);
  SearchSpace space;
  space.accelerators = accelerators;
  const model::ModelSpec& spec = run.spec;
  int64_t heads = 1;
  int64_t experts = 1;
  for (const model::LayerSpec& layer : spec.layers) {
    heads = std::max(heads, layer.attention.num_heads);
    if (layer.moe) experts = std::max(experts, layer.moe->num_experts);
  }
  // Across nodes tensor parallelism never pays by much: up to two nodes' accelerators.
  const int64_t node = run.cluster.node.accelerators;
  constexpr int64_t kMostContext = 64;
  space.tp = divisors(accelerators, std::min(heads, std::max<int64_t>(2 * node, 2)));
  space.cp = divisors(accelerators, std::min(kMostContext, run.strategy.seq_len / 2));
  space.cp_kinds = {ContextKind::kRing, ContextKind::kGather, ContextKind::kUlysses};
  for (const int64_t ep : divisors(experts, accelerators)) {
    if (accelerators % ep == 0) space.ep.push_back(ep);
  }
  space.etp = experts > 1 ? divisors(accelerators, node) : std::vector<int64_t>{1};
  const auto units = static_cast<int64_t>(stage_units(spec).size()) - 1;
  space.pp = divisors(accelerators, units);
  space.schedules = {ScheduleKind::k1F1B,         ScheduleKind::kInterleaved,
                     ScheduleKind::kZeroBubbleH1, ScheduleKind::kZeroBubbleV,
                     ScheduleKind::kDualPipeV,    ScheduleKind::kVHalf,
                     ScheduleKind::kGPipe};
  space.chunks = {2, 3, 4, 6, 8};
  // Stage 2 has the price of stage 1: gradients of the last micro-batch are whole in both.
  space.zero = {0, 1, 3};
  constexpr int64_t kMostMicro = 64;
  for (int64_t micro = 1; micro <= kMostMicro && run.strategy.sequences % micro == 0; micro *= 2)
    space.micro.push_back(micro);
  space.sequence_parallel = {1};
  space.recompute = recompute_choices(spec);
  space.precisions = {run.sharding.fp8                             ? SearchPrecision::kFp8
                      : run.strategy.precision == Precision::kFp32 ? SearchPrecision::kFp32
                                                                   : SearchPrecision::kBf16};
  space.overlaps = {OverlapChoice::kAsStack};
  return space;
}

void fix(SearchSpace& space, const std::string& name, const std::string& value) {
  for (const SizeDimension& size : kSizes) {
    if (name != size.name) continue;
    const int64_t number = number_of(name, value);
    const bool least_zero = name == "zero";
    TRIREME_USER_CHECK(number >= (least_zero ? 0 : 1), kConfig, "give a size of at least 1",
                       "{} = {}", name, number);
    TRIREME_USER_CHECK(!least_zero || number <= 3, kConfig, "ZeRO has stages 0 to 3", "zero = {}",
                       number);
    TRIREME_USER_CHECK(
        least_zero || name == "chunks" || name == "micro" || space.accelerators % number == 0,
        kConfig, "take a divisor, or another number of accelerators",
        "{} = {} does not divide {} accelerators", name, number, space.accelerators);
    space.*size.values = {number};
    // Interleaved stages are open, those of the others are not.
    if (name == "chunks" && number == 1)
      std::erase_if(space.schedules, [](ScheduleKind kind) { return fixed_chunks(kind) != 1; });
    if (name == "chunks" && number > 1)
      std::erase_if(space.schedules, [&](ScheduleKind kind) {
        return fixed_chunks(kind) != 0 && fixed_chunks(kind) != number;
      });
    return;
  }
  if (name == "schedule") {
    space.schedules = {schedule_from_name(value)};
  } else if (name == "cp_kind") {
    space.cp_kinds = {context_kind_from_name(value)};
  } else if (name == "sp") {
    space.sequence_parallel = {static_cast<char>(number_of(name, value) != 0)};
  } else if (name == "precision") {
    space.precisions = {precision_from_name(value)};
  } else if (name == "overlap") {
    space.overlaps = {overlap_from_name(value)};
  } else if (name == "recompute") {
    std::vector<std::string> names;
    names.reserve(space.recompute.size());
    for (const RecomputeChoice& choice : space.recompute) names.push_back(choice.name);
    std::erase_if(space.recompute,
                  [&](const RecomputeChoice& choice) { return choice.name != value; });
    TRIREME_USER_CHECK(!space.recompute.empty(), kConfig, suggestion(value, names),
                       "recompute = \"{}\" is none of {}", value, fmt::join(names, ", "));
  } else {
    throw Error(
        ErrorCode::kConfig, fmt::format("\"{}\" is no dimension of the search", name),
        suggestion(name, {"dp", "tp", "cp", "ep", "etp", "pp", "chunks", "zero", "micro",
                          "schedule", "cp_kind", "sp", "precision", "overlap", "recompute"}));
  }
}

void vary(SearchSpace& space, const std::string& name, const std::string& values) {
  const std::vector<std::string> all = split(values);
  if (name == "precision") {
    space.precisions.clear();
    for (const std::string& one : all) space.precisions.push_back(precision_from_name(one));
  } else if (name == "overlap") {
    space.overlaps.clear();
    for (const std::string& one : all) space.overlaps.push_back(overlap_from_name(one));
  } else if (name == "sp") {
    space.sequence_parallel.clear();
    for (const std::string& one : all)
      space.sequence_parallel.push_back(static_cast<char>(number_of(name, one) != 0));
  } else if (const auto* const size = std::ranges::find_if(
                 kSizes, [&](const SizeDimension& one) { return name == one.name; });
             size != kSizes.end()) {
    std::set<int64_t> sizes;
    for (const std::string& one : all)
      sizes.insert(std::max<int64_t>(number_of(name, one), name == "zero" ? 0 : 1));
    space.*size->values = std::vector<int64_t>(sizes.begin(), sizes.end());
  } else {
    throw Error(ErrorCode::kConfig, fmt::format("\"{}\" has no list of values", name),
                suggestion(name, {"precision", "overlap", "sp", "dp", "tp", "cp", "ep", "etp", "pp",
                                  "chunks", "zero", "micro"}));
  }
}

SearchSpace of_training(SearchSpace space) {
  const auto only = [](std::vector<int64_t>& values, int64_t value) {
    values = std::ranges::find(values, value) == values.end() ? std::vector<int64_t>()
                                                              : std::vector<int64_t>{value};
  };
  // Not with every model, nor with one another (program_limits()): who asks for a number of them gets it.
  if (space.tp.size() > 1) only(space.tp, 1);
  if (space.cp.size() > 1) only(space.cp, 1);
  only(space.etp, 1);
  std::erase_if(space.recompute,
                [](const RecomputeChoice& choice) { return choice.names.empty(); });
  std::erase(space.precisions, SearchPrecision::kFp8);
  std::erase_if(space.overlaps,
                [](OverlapChoice overlap) { return overlap != OverlapChoice::kAsStack; });
  // Data parallel ranks have a lane each, and lanes are a power of two.
  std::vector<int64_t> powers;
  for (int64_t dp = 1; dp <= space.accelerators; dp *= 2) {
    if (space.dp.empty() || std::ranges::find(space.dp, dp) != space.dp.end()) powers.push_back(dp);
  }
  space.dp = powers;
  return space;
}

void apply(const SearchSpace& space, const Candidate& candidate, const StackProfile& habits,
           bool of_trireme, PlannedRun& run) {
  Strategy& strategy = run.strategy;
  Parallel& parallel = strategy.parallel;
  strategy.micro = candidate.micro;
  strategy.recompute = space.recompute[static_cast<size_t>(candidate.recompute)].parts;
  strategy.precision =
      candidate.precision == SearchPrecision::kFp32 ? Precision::kFp32 : Precision::kBf16;
  parallel.dp = candidate.dp;
  parallel.tp = candidate.tp;
  parallel.cp = candidate.cp;
  parallel.cp_kind = candidate.cp_kind;
  parallel.ep = candidate.ep;
  parallel.etp = candidate.etp;
  parallel.pp = candidate.pp;
  parallel.schedule = candidate.schedule;
  parallel.chunks = candidate.chunks;
  parallel.zero = static_cast<unsigned char>(candidate.zero);
  run.sharding.fp8 = candidate.precision == SearchPrecision::kFp8;
  run.sharding.sequence_parallel = candidate.tp > 1 && candidate.sequence_parallel != 0;
  const auto overlap = [&](bool habit) {
    return candidate.overlap == OverlapChoice::kAsStack ? habit
                                                        : candidate.overlap == OverlapChoice::kAll;
  };
  run.stack.overlap_gradients = overlap(habits.overlap_gradients);
  run.stack.overlap_parameters = overlap(habits.overlap_parameters);
  run.stack.overlap_send = overlap(habits.overlap_send);
  run.own_memory = of_trireme && programs_say(parallel);
}

std::string describe(const SearchSpace& space, const Candidate& c) {
  std::string text;
  const auto add = [&](const char* name, int64_t value) {
    if (value > 1) text += fmt::format("{} {} ", name, value);
  };
  add("tp", c.tp);
  add("cp", c.cp);
  if (c.cp > 1) text += fmt::format("({}) ", to_string(c.cp_kind));
  add("ep", c.ep);
  add("etp", c.etp);
  add("pp", c.pp);
  if (c.pp > 1) {
    text += fmt::format("{} ", to_string(c.schedule));
    if (c.chunks > 1) text += fmt::format("chunks {} ", c.chunks);
  }
  add("dp", c.dp);
  if (c.tp > 1 && c.sequence_parallel == 0) text += "sp 0 ";
  text += fmt::format("zero {} micro {} recompute {}", c.zero, c.micro,
                      space.recompute[static_cast<size_t>(c.recompute)].name);
  if (space.precisions.size() > 1) text += fmt::format(" {}", to_string(c.precision));
  if (space.overlaps.size() > 1) text += fmt::format(" overlap {}", to_string(c.overlap));
  return text;
}

OrderedJson candidate_json(const SearchSpace& space, const Candidate& c) {
  OrderedJson json;
  json["dp"] = c.dp;
  json["zero"] = static_cast<int>(c.zero);
  json["tp"] = c.tp;
  json["sp"] = c.tp > 1 && c.sequence_parallel != 0 ? 1 : 0;
  json["pp"] = c.pp;
  json["schedule"] = to_string(c.schedule);
  json["chunks"] = c.chunks;
  json["cp"] = c.cp;
  json["cp_kind"] = to_string(c.cp_kind);
  json["ep"] = c.ep;
  json["etp"] = c.etp;
  json["micro"] = c.micro;
  json["recompute"] = space.recompute[static_cast<size_t>(c.recompute)].name;
  json["precision"] = to_string(c.precision);
  json["overlap"] = to_string(c.overlap);
  return json;
}

namespace {

class Groups {
 public:
  Groups(const PlannedRun& run, const SearchSpace& space, int64_t& candidates, LeftOut& left_out)
      : run_(run),
        space_(space),
        candidates_(candidates),
        left_out_(left_out),
        experts_(std::ranges::any_of(
            run.spec.layers, [](const model::LayerSpec& layer) { return layer.moe.has_value(); })) {
  }

  std::vector<CandidateGroup> all() {
    for (const SearchPrecision precision : space_.precisions) {
      for (const OverlapChoice overlap : space_.overlaps) {
        for (const int64_t tp : space_.tp) {
          for (const int64_t cp : space_.cp) {
            if (space_.accelerators % (tp * cp) != 0) continue;
            Candidate first;
            first.precision = precision;
            first.overlap = overlap;
            first.tp = static_cast<int32_t>(tp);
            first.cp = static_cast<int32_t>(cp);
            with_kinds(first);
          }
        }
      }
    }
    return std::move(groups_);
  }

 private:
  void with_kinds(Candidate first) {
    for (const ContextKind kind : space_.cp_kinds) {
      if (first.cp == 1 && kind != space_.cp_kinds.front()) continue;
      first.cp_kind = kind;
      for (const char sliced : space_.sequence_parallel) {
        if (first.tp == 1 && sliced != space_.sequence_parallel.front()) continue;
        first.sequence_parallel = static_cast<int8_t>(sliced);
        for (const int64_t ep : space_.ep) {
          for (const int64_t etp : space_.etp) {
            for (const int64_t micro : space_.micro) {
              first.ep = static_cast<int32_t>(ep);
              first.etp = static_cast<int32_t>(etp);
              first.micro = static_cast<int32_t>(micro);
              with_layouts(first);
            }
          }
        }
      }
    }
  }

  void with_layouts(const Candidate& first) {
    CandidateGroup group;
    group.first = first;
    const int64_t rest = space_.accelerators / (first.tp * first.cp);
    for (const int64_t pp : space_.pp) {
      if (rest % pp != 0) continue;
      const int64_t dp = rest / pp;
      if (!space_.dp.empty() && std::ranges::find(space_.dp, dp) == space_.dp.end()) continue;
      for (const ScheduleKind schedule : space_.schedules) {
        // Without a pipeline there is one schedule.
        if (pp == 1 && schedule != space_.schedules.front()) continue;
        const int fixed = pp == 1 ? 1 : fixed_chunks(schedule);
        for (const int64_t chunks : fixed > 0 ? std::vector<int64_t>{fixed} : space_.chunks) {
          CandidateGroup::Layout layout;
          layout.dp = static_cast<int32_t>(dp);
          layout.pp = static_cast<int32_t>(pp);
          layout.schedule = pp == 1 ? ScheduleKind::k1F1B : schedule;
          layout.chunks = static_cast<int32_t>(chunks);
          add(group, layout);
        }
      }
    }
    std::ranges::stable_sort(group.layouts, {}, [](const CandidateGroup::Layout& layout) {
      return std::pair(layout.pp, layout.chunks);
    });
    if (!group.layouts.empty()) groups_.push_back(std::move(group));
  }

  void add(CandidateGroup& group, const CandidateGroup::Layout& layout) {
    const int64_t others =
        static_cast<int64_t>(space_.recompute.size()) * num_zero(layout.dp, group.first.cp);
    candidates_ += others;
    const std::string reason = problem(group.first, layout);
    if (reason.empty()) {
      group.layouts.push_back(layout);
      return;
    }
    left_out_.count += others;
    left_out_.reasons[reason] += others;
  }

  int64_t num_zero(int64_t dp, int64_t cp) const {
    return std::ranges::count_if(space_.zero,
                                 [&](int64_t zero) { return zero == 0 || dp * cp > 1; });
  }

  std::string problem(const Candidate& first, const CandidateGroup::Layout& layout) const {
    Strategy strategy = batch_of(run_.strategy);
    const int64_t a_step = int64_t{first.micro} * layout.dp;
    if (strategy.sequences % a_step != 0)
      return fmt::format("{} sequences are not a multiple of micro x dp", strategy.sequences);
    if (!experts_ && first.ep * first.etp > 1) return "the model has no experts";
    Parallel& parallel = strategy.parallel;
    parallel.dp = layout.dp;
    parallel.tp = first.tp;
    parallel.cp = first.cp;
    parallel.cp_kind = first.cp_kind;
    parallel.ep = first.ep;
    parallel.etp = first.etp;
    parallel.pp = layout.pp;
    parallel.schedule = layout.schedule;
    parallel.chunks = layout.chunks;
    strategy.micro = first.micro;
    // Lanes are of the exact reduction, which the plan does not need.
    strategy.lanes = 1;
    while (strategy.lanes < parallel.dp) strategy.lanes *= 2;
    return parallel_problem(run_.spec, strategy);
  }

  static Strategy batch_of(const Strategy& strategy) {
    Strategy batch;
    batch.sequences = strategy.sequences;
    batch.seq_len = strategy.seq_len;
    return batch;
  }

  const PlannedRun& run_;
  const SearchSpace& space_;
  int64_t& candidates_;
  LeftOut& left_out_;
  const bool experts_;
  std::vector<CandidateGroup> groups_;
};

}  // namespace

std::vector<CandidateGroup> candidate_groups(const PlannedRun& run, const SearchSpace& space,
                                             int64_t& candidates, LeftOut& left_out) {
  return Groups(run, space, candidates, left_out).all();
}

}  // namespace trireme::plan
