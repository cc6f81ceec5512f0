// Why a search's best is the best, what it waits for, and what would help. Pure.
#pragma once

#include <string>
#include <vector>

#include "trireme/plan/goodput.h"
#include "trireme/plan/search.h"

namespace trireme::plan {

/// A candidate that differs from the best one in one dimension, by one place of its list.
struct Neighbour {
  std::string change;  ///< "tp 4", "schedule zb-h1"
  Priced priced;
};
/// Priced; those that model or batch do not allow are left out.
std::vector<Neighbour> neighbours(const PlannedRun& run, bool of_trireme, const SearchSpace& space,
                                  const Priced& best);

/// The best of a cluster, or a batch, that is another one.
struct Help {
  std::string change;  ///< "twice the network's bandwidth"
  bool fits = false;
  double step_s = 0.0;
  /// Tokens a second of all accelerators, relative to the best one's.
  double speedup = 0.0;
  std::string strategy;
};
/// Searches again, for one best each. Ends early, with what it has, where `options.progress` says so.
std::vector<Help> what_would_help(const PlannedRun& run, bool of_trireme, const SearchSpace& space,
                                  const SearchOptions& options, const Priced& best);

/// What a step is spent on, the most first: "products 61 %".
struct Share {
  std::string what;
  double share = 0.0;
};
std::vector<Share> shares_of(const Prediction& prediction);
/// What the fullest rank, or the slowest one, is bound by, in a sentence.
std::string bound_of(const Prediction& prediction);
/// What nothing hides: kinds of transfers and the pipeline's idle time, in seconds of a step, the most first.
std::vector<Share> waits_of(const Prediction& prediction);

/// The best of those that training can run today, of a space of their own.
struct Trainable {
  SearchSpace space;
  Priced best;
};

/// All that the command shows; parts that were not asked for are empty.
struct SearchReport {
  const PlannedRun& run;
  const SearchSpace& space;
  const SearchResult& result;
  std::vector<Neighbour> around;
  std::vector<Help> help;
  std::optional<TimeToTokens> time;
  std::optional<Trainable> trainable;  ///< where it is another one than the best of all
  double seconds = 0.0;                ///< that the search took
};
/// What is short where nothing fits, and by how much.
std::string shortage(const SearchReport& report);
OrderedJson search_json(const SearchReport& report);
std::string describe(const SearchReport& report);

}  // namespace trireme::plan
