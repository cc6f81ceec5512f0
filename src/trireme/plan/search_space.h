// Which ways to run a model a search looks at. Pure.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "trireme/plan/prediction.h"

namespace trireme::plan {

/// Which parts run again in their backward.
struct RecomputeChoice {
  std::string name;  ///< for people: "full", "1 of 2 layers"
  std::vector<std::string>
      names;                     ///< memory.recompute of a run file; empty: it has no words for it
  std::vector<Recompute> parts;  ///< Strategy::recompute
};

enum class OverlapChoice {
  kAsStack,  ///< the stack's habit
  kNone,     ///< no transfer beside computation
  kAll       ///< gradients, parameters and messages beside it
};
const char* to_string(OverlapChoice overlap);

/// What products compute in.
enum class SearchPrecision { kFp32, kBf16, kFp8 };
const char* to_string(SearchPrecision precision);

/// Values of every dimension; a candidate has one of each, with as many data parallel ranks as the accelerators leave. All lists
/// ascend, in the order in which candidates are counted.
struct SearchSpace {
  int64_t accelerators = 1;
  std::vector<int64_t> dp;  ///< empty: any
  std::vector<int64_t> tp;
  std::vector<int64_t> cp;
  std::vector<ContextKind> cp_kinds;
  std::vector<int64_t> ep;
  std::vector<int64_t> etp;
  std::vector<int64_t> pp;
  std::vector<ScheduleKind> schedules;
  std::vector<int64_t> chunks;  ///< of schedules that leave it open
  std::vector<int64_t> zero;
  std::vector<int64_t> micro;
  std::vector<char> sequence_parallel;  ///< where tp > 1: 0, 1
  std::vector<RecomputeChoice> recompute;
  std::vector<SearchPrecision> precisions;
  std::vector<OverlapChoice> overlaps;
};

/// All that prices are known for. `run` has model, batch, recipe, cluster and stack; its precision is the only one, and overlap
/// is as the stack's.
SearchSpace search_space(const PlannedRun& run, int64_t accelerators);

/// Keeps one value of a dimension ("tp", "pp", "zero", "micro", "schedule", "recompute", "sp", "chunks", "cp_kind", "precision", "overlap", ...).
/// Error{kConfig} for a name, or a value that no candidate has.
void fix(SearchSpace& space, const std::string& name, const std::string& value);
/// Tries several values of a dimension that is fixed by default: "precision" or "overlap"; comma between them.
void vary(SearchSpace& space, const std::string& name, const std::string& values);

/// What the executor runs today: no tensor, context or expert parallelism, recomputation that a run file can say.
SearchSpace of_training(SearchSpace space);

/// Places in the lists of a SearchSpace, and sizes.
struct Candidate {
  int32_t dp = 1;
  int32_t tp = 1;
  int32_t cp = 1;
  int32_t ep = 1;
  int32_t etp = 1;
  int32_t pp = 1;
  int32_t chunks = 1;
  int32_t micro = 1;
  ScheduleKind schedule = ScheduleKind::k1F1B;
  ContextKind cp_kind = ContextKind::kRing;
  int8_t zero = 0;
  int8_t sequence_parallel = 0;
  int8_t recompute = 0;  ///< index
  SearchPrecision precision = SearchPrecision::kBf16;
  OverlapChoice overlap = OverlapChoice::kAsStack;
  bool operator==(const Candidate&) const = default;
};

/// Sets what a candidate decides in a run of the same model, batch, cluster and stack; `habits` is the stack as it was.
void apply(const SearchSpace& space, const Candidate& candidate, const StackProfile& habits,
           bool of_trireme, PlannedRun& run);

/// "tp 8 pp 16 dp 128 1f1b micro 1 zero 1 recompute none".
std::string describe(const SearchSpace& space, const Candidate& candidate);
OrderedJson candidate_json(const SearchSpace& space, const Candidate& candidate);

/// Calls `visit(group)` with candidates that differ in pp, schedule, chunks, zero and recompute only, in order; those that model or
/// batch do not allow are left out and counted by their reason. Returns how many there are, with those left out.
struct LeftOut {
  int64_t count = 0;
  std::map<std::string, int64_t> reasons;
};
struct CandidateGroup {
  Candidate first;  ///< pp, schedule, chunks, zero and recompute are not set
  /// By cut: same number of stages on as many ranks.
  struct Layout {
    int32_t dp = 1;
    int32_t pp = 1;
    ScheduleKind schedule = ScheduleKind::k1F1B;
    int32_t chunks = 1;
  };
  std::vector<Layout> layouts;  ///< by pp, then chunks
};
/// Groups in order; `run` as for search_space().
std::vector<CandidateGroup> candidate_groups(const PlannedRun& run, const SearchSpace& space,
                                             int64_t& candidates, LeftOut& left_out);

}  // namespace trireme::plan
