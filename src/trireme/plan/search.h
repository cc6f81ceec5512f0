// The best way to run a model on a cluster: branch and bound over a SearchSpace. Pure; uses threads of its own.
//
// Prices are predict()'s. A candidate is not priced where bounds (step_floor.h) show that it is neither among the best nor on the
// Pareto front of time and memory, so the result is that of pricing all of them (search_test.cpp compares). Order: step time, then
// peak memory, then the number of the candidate, which counts in the order of the space's lists.
#pragma once

#include <cmath>
#include <functional>
#include <optional>

#include "trireme/plan/search_space.h"

namespace trireme::plan {

struct SearchProgress {
  int64_t bounded = 0;  ///< groups whose candidates have bounds, of
  int64_t groups = 0;
  int64_t open = 0;  ///< candidates that are not decided
  int64_t priced = 0;
  double best_s = 0.0;  ///< 0: none yet
};

struct SearchOptions {
  int best = 5;
  bool pareto = true;
  double pareto_within = HUGE_VAL;  ///< the front up to so many times the best step
  /// A rank may hold the device's usable bytes less this.
  double reserve_bytes = 0.0;
  int threads = 0;  ///< 0: as many as there are CPUs
  /// Called now and then from the calling thread; false ends the search with what it has.
  std::function<bool(const SearchProgress&)> progress = {};
};

struct Priced {
  int64_t number = 0;  ///< of the candidate
  Candidate candidate;
  double step_s = 0.0;
  double peak_bytes = 0.0;
  Prediction prediction;
};

/// Of the candidates: `candidates` = left out + by memory + by busy + by timeline + priced, if the search came to its end.
struct SearchCounts {
  int64_t candidates = 0;
  LeftOut left_out;         ///< that model or batch do not allow
  int64_t by_memory = 0;    ///< the bound of memory does not fit
  int64_t by_busy = 0;      ///< not priced by the bound of work
  int64_t by_timeline = 0;  ///< not priced by the bound of the timeline
  int64_t timelines = 0;    ///< how many had that one computed
  int64_t priced = 0;
  int64_t unfit = 0;    ///< priced, and did not fit
  int64_t refused = 0;  ///< could not be priced
  std::string refusal;  ///< why: of one of them
  int64_t feasible() const { return candidates - left_out.count - by_memory - unfit - refused; }
};

struct SearchResult {
  SearchCounts counts;
  std::vector<Priced> best;    ///< that fit, in order
  std::vector<Priced> pareto;  ///< by step time; every next one takes longer and holds less
  double limit_bytes = 0.0;
  /// Where nothing fits: the candidate that holds least, if model and batch allow any.
  std::optional<Priced> smallest;
  bool complete = true;  ///< not interrupted
};

/// `run` has model, batch, cluster, stack, tables and factors; what candidates decide is overwritten. `of_trireme`: the stack is
/// Trireme's own. Error{kConfig} if the model cannot have such a batch at all.
SearchResult search(const PlannedRun& run, bool of_trireme, const SearchSpace& space,
                    const SearchOptions& options);

/// All candidates priced, in order of their numbers: the plain reference, for tests and small spaces.
std::vector<Priced> price_all(const PlannedRun& run, bool of_trireme, const SearchSpace& space);
/// Those of them that are wanted.
std::vector<Priced> price_if(const PlannedRun& run, bool of_trireme, const SearchSpace& space,
                             const std::function<bool(const Candidate&)>& wanted);

/// Whether `a` comes before `b` in the order of the search.
bool comes_before(const Priced& a, const Priced& b);

}  // namespace trireme::plan
