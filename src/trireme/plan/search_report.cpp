#include "trireme/plan/search_report.h"

#include <algorithm>

#include "trireme/base/error.h"

namespace trireme::plan {

namespace {

// Whether two values are neighbours in a list of them.
template <typename T>
bool adjacent(const std::vector<T>& values, int64_t a, int64_t b) {
  const auto place = [&](int64_t value) {
    return std::ranges::find(values, static_cast<T>(value)) - values.begin();
  };
  return std::abs(place(a) - place(b)) == 1;
}

/// What a candidate has instead of the best one's, if it is one thing and near; else empty.
std::string one_change(const SearchSpace& space, const Candidate& best, const Candidate& other) {
  std::vector<std::string> changes;
  bool near = true;
  const auto size = [&](const char* name, const std::vector<int64_t>& values, int64_t mine,
                        int64_t theirs) {
    if (mine == theirs) return;
    changes.push_back(fmt::format("{} {}", name, theirs));
    near = near && adjacent(values, mine, theirs);
  };
  size("tp", space.tp, best.tp, other.tp);
  size("ep", space.ep, best.ep, other.ep);
  size("etp", space.etp, best.etp, other.etp);
  size("micro", space.micro, best.micro, other.micro);
  size("zero", space.zero, best.zero, other.zero);
  if (best.cp != other.cp || (best.cp > 1 && best.cp_kind != other.cp_kind)) {
    changes.push_back(other.cp > 1 ? fmt::format("cp {} ({})", other.cp, to_string(other.cp_kind))
                                   : "cp 1");
    near = near && (best.cp == other.cp || adjacent(space.cp, best.cp, other.cp));
  }
  if (best.pp != other.pp) {
    // A pipeline of another length, with the same schedule where both have one.
    changes.push_back(other.pp > 1 ? fmt::format("pp {} {}", other.pp, to_string(other.schedule))
                                   : "pp 1");
    const bool same = best.schedule == other.schedule && best.chunks == other.chunks;
    near = near && adjacent(space.pp, best.pp, other.pp) && (same || best.pp == 1 || other.pp == 1);
  } else if (best.schedule != other.schedule) {
    changes.push_back(fmt::format("schedule {}{}", to_string(other.schedule),
                                  other.chunks > 2 ? fmt::format(" chunks {}", other.chunks) : ""));
  } else {
    size("chunks", space.chunks, best.chunks, other.chunks);
  }
  if (best.recompute != other.recompute)
    changes.push_back(
        fmt::format("recompute {}", space.recompute[static_cast<size_t>(other.recompute)].name));
  if (best.tp == other.tp && best.sequence_parallel != other.sequence_parallel)
    changes.push_back(fmt::format("sp {}", static_cast<int>(other.sequence_parallel)));
  if (best.precision != other.precision)
    changes.push_back(fmt::format("precision {}", to_string(other.precision)));
  if (best.overlap != other.overlap)
    changes.push_back(fmt::format("overlap {}", to_string(other.overlap)));
  return near && changes.size() == 1 ? changes.front() : "";
}

double tokens_a_step(const PlannedRun& run) {
  return static_cast<double>(run.strategy.sequences) * static_cast<double>(run.strategy.seq_len);
}

}  // namespace

std::vector<Neighbour> neighbours(const PlannedRun& run, bool of_trireme, const SearchSpace& space,
                                  const Priced& best) {
  std::vector<Neighbour> result;
  for (Priced& one : price_if(run, of_trireme, space, [&](const Candidate& candidate) {
         return !one_change(space, best.candidate, candidate).empty();
       }))
    result.push_back({one_change(space, best.candidate, one.candidate), std::move(one)});
  std::ranges::stable_sort(result, [](const Neighbour& a, const Neighbour& b) {
    return comes_before(a.priced, b.priced);
  });
  return result;
}

std::vector<Help> what_would_help(const PlannedRun& run, bool of_trireme, const SearchSpace& space,
                                  const SearchOptions& options, const Priced& best) {
  std::vector<Help> result;
  SearchOptions one = options;
  one.best = 1;
  one.pareto = false;
  const double rate = tokens_a_step(run) / best.step_s;
  bool complete = true;
  const auto with = [&](std::string change, const auto& set) {
    if (!complete) return;
    PlannedRun other = run;
    SearchSpace others = space;
    set(other, others);
    // Sizes of the batch that the space was made for.
    if (other.strategy.sequences != run.strategy.sequences && space.micro.size() > 1)
      others.micro = search_space(other, others.accelerators).micro;
    const SearchResult found = search(other, of_trireme, others, one);
    complete = found.complete;
    if (!complete) return;
    Help help;
    help.change = std::move(change);
    help.fits = !found.best.empty();
    if (help.fits) {
      help.step_s = found.best.front().step_s;
      help.speedup = tokens_a_step(other) / help.step_s / rate;
      help.strategy = describe(others, found.best.front().candidate);
    }
    result.push_back(std::move(help));
  };
  const bool nodes = space.accelerators > run.cluster.node.accelerators;
  with("twice the peak operations", [](PlannedRun& other, SearchSpace&) {
    for (auto& [type, peak] : other.cluster.device.peak_flops) peak *= 2.0;
  });
  with("twice the memory's bandwidth",
       [](PlannedRun& other, SearchSpace&) { other.cluster.device.memory_bytes_per_s *= 2.0; });
  with("twice the memory", [](PlannedRun& other, SearchSpace&) {
    other.cluster.device.usable_bytes += other.cluster.device.memory_bytes;
  });
  if (space.accelerators > 1 && run.cluster.node.accelerators > 1)
    with("twice the links inside nodes", [](PlannedRun& other, SearchSpace&) {
      for (LinkProfile& link : other.cluster.node.links) link.bytes_per_s *= 2.0;
      other.cluster.node.bridge_bytes_per_s *= 2.0;
    });
  if (nodes)
    with("twice the network",
         [](PlannedRun& other, SearchSpace&) { other.cluster.network.link.bytes_per_s *= 2.0; });
  with("twice the batch", [](PlannedRun& other, SearchSpace&) { other.strategy.sequences *= 2; });
  if (run.strategy.sequences % 2 == 0)
    with("half the batch", [](PlannedRun& other, SearchSpace&) { other.strategy.sequences /= 2; });
  std::ranges::stable_sort(result,
                           [](const Help& a, const Help& b) { return a.speedup > b.speedup; });
  return result;
}

std::vector<Share> shares_of(const Prediction& prediction) {
  std::vector<Share> shares;
  for (const auto& [kind, seconds] : prediction.time_by_kind_s) {
    if (seconds > 0.0) shares.push_back({kind, seconds / prediction.step_s});
  }
  std::ranges::stable_sort(shares,
                           [](const Share& a, const Share& b) { return a.share > b.share; });
  return shares;
}

std::string bound_of(const Prediction& prediction) {
  static const std::map<std::string, std::string> kinds = {
      {"products", "the rate of products"},          {"attention", "the rate of attention"},
      {"memory", "the memory's bandwidth"},          {"host", "the host that launches kernels"},
      {"transfers", "transfers that nothing hides"}, {"idle", "waiting for other stages and sums"}};
  const std::vector<Share> shares = shares_of(prediction);
  if (shares.empty()) return "nothing";
  const auto known = kinds.find(shares.front().what);
  return fmt::format("{} ({:.0f} % of the step)",
                     known == kinds.end() ? shares.front().what : known->second,
                     100.0 * shares.front().share);
}

std::vector<Share> waits_of(const Prediction& prediction) {
  std::vector<Share> waits;
  for (const auto& [kind, seconds] : prediction.exposed_by_kind_s) {
    if (seconds <= 0.0) continue;
    waits.push_back(
        {kind == "inside parts" ? "transfers inside parts (tensor, context, experts)" : kind,
         seconds});
  }
  const auto idle = prediction.time_by_kind_s.find("idle");
  if (idle != prediction.time_by_kind_s.end() && idle->second > 0.0)
    waits.push_back({"other stages (bubble)", idle->second});
  const auto host = prediction.time_by_kind_s.find("host");
  if (host != prediction.time_by_kind_s.end() && host->second > 0.0)
    waits.push_back({"the host", host->second});
  std::ranges::stable_sort(waits, [](const Share& a, const Share& b) { return a.share > b.share; });
  return waits;
}

}  // namespace trireme::plan
