#include "trireme/plan/search.h"

#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <queue>
#include <tuple>

#include "trireme/base/error.h"
#include "trireme/base/thread_pool.h"
#include "trireme/plan/fold.h"
#include "trireme/plan/step_floor.h"

namespace trireme::plan {

namespace {

// Sums in another order differ in their last digits.
constexpr double kRounding = 1.0 - 1e-9;
// Candidates that are looked at together: more threads than that find nothing to do, and the result does not depend on them.
constexpr size_t kTogether = 8;

/// A run whose candidate-dependent fields are of one candidate.
class CandidateRun {
 public:
  CandidateRun(const PlannedRun& run, const SearchSpace& space, bool of_trireme)
      : space_(space), habits_(run.stack), of_trireme_(of_trireme), run_(run) {
    Strategy& strategy = run_.strategy;
    strategy.parallel = {};
    strategy.stage_layers.clear();
    strategy.offload_activations.clear();  // copies to the host have no price
    strategy.offload_optimizer = false;
    strategy.record = false;
    strategy.delay_weight_gradients = false;
    strategy.lanes = 1;
  }
  const PlannedRun& of(const Candidate& candidate) {
    apply(space_, candidate, habits_, of_trireme_, run_);
    return run_;
  }
  const PlannedRun& run() const { return run_; }

 private:
  const SearchSpace& space_;
  const StackProfile habits_;
  const bool of_trireme_;
  PlannedRun run_;
};

/// Schedules, what they keep, and cuts of the model: the same for many candidates. Thread-safe.
class Shapes {
 public:
  std::shared_ptr<const PipelineSchedule> schedule(const Parallel& parallel,
                                                   int64_t micro_batches) {
    const Key key{parallel.schedule, parallel.pp, micro_batches, parallel.chunks};
    return found(schedules_, key, [&] {
      return make_schedule(parallel.schedule, static_cast<int>(parallel.pp), micro_batches,
                           static_cast<int>(parallel.chunks));
    });
  }

  std::shared_ptr<const std::vector<RankInFlight>> kept(const Strategy& strategy) {
    const int64_t micro_batches = memory_micro_batches(strategy);
    const Parallel& parallel = strategy.parallel;
    const Key key{parallel.schedule, parallel.pp, micro_batches, parallel.chunks};
    return found(kept_, key, [&] { return in_flight(*schedule(parallel, micro_batches)); });
  }

  std::shared_ptr<const Stages> stages(const PlannedRun& run, int recompute) {
    return found(stages_, std::pair(run.strategy.parallel.stages(), recompute),
                 [&] { return stages_of(run); });
  }

 private:
  using Key = std::tuple<ScheduleKind, int64_t, int64_t, int64_t>;

  template <typename Map, typename Make>
  typename Map::mapped_type found(Map& map, const typename Map::key_type& key, const Make& make) {
    {
      const std::lock_guard lock(mutex_);
      const auto known = map.find(key);
      if (known != map.end()) return known->second;
    }
    using Value = typename Map::mapped_type::element_type;
    auto made = std::make_shared<Value>(make());
    const std::lock_guard lock(mutex_);
    return map.try_emplace(key, std::move(made)).first->second;
  }

  std::mutex mutex_;
  std::map<Key, std::shared_ptr<const PipelineSchedule>> schedules_;
  std::map<Key, std::shared_ptr<const std::vector<RankInFlight>>> kept_;
  std::map<std::pair<int64_t, int>, std::shared_ptr<const Stages>> stages_;
};

CostModel cost_of(const PlannedRun& run) {
  return {run.spec, run.strategy, run.sharding, run.stack, run.cluster, run.tables, run.factors};
}

/// A candidate that may have to be priced.
struct Open {
  int64_t number = 0;
  double time_s = 0.0;  ///< bounds
  double bytes = 0.0;
  int group = 0;
  bool has_timeline = false;
  Candidate candidate;
};

struct Later {
  bool operator()(const Open& a, const Open& b) const {
    return std::tie(a.time_s, a.bytes, a.number) > std::tie(b.time_s, b.bytes, b.number);
  }
};

/// Hosts are slower where the pipeline crosses nodes: seconds of the parts with and without.
using GroupParts = std::array<std::unique_ptr<const PartSeconds>, 2>;

size_t crosses(const PlannedRun& run) {
  const GroupShape pipeline = group_shape(run.strategy.parallel, run.cluster.node.accelerators,
                                          cluster::Dimension::kPipeline);
  return pipeline.nodes() > 1 ? 1 : 0;
}

struct BoundedGroup {
  GroupParts parts;
  std::vector<Open> open;
  int64_t by_memory = 0;
};

class Search {
 public:
  Search(const PlannedRun& run, bool of_trireme, const SearchSpace& space,
         const SearchOptions& options)
      : space_(space), options_(options), pool_(options.threads) {
    for (int i = 0; i < pool_.num_threads(); ++i)
      idle_.push_back(std::make_unique<CandidateRun>(run, space, of_trireme));
    const PlannedRun& base = idle_.front()->run();
    classes_ = std::make_unique<PartClasses>(base);
    result_.limit_bytes = base.cluster.device.usable_bytes - options.reserve_bytes;
    groups_ = candidate_groups(base, space, result_.counts.candidates, result_.counts.left_out);
  }

  SearchResult run() {
    bound_groups();
    while (result_.complete && !open_.empty()) {
      if (!report()) break;
      look_at_some();
    }
    if (result_.complete && result_.best.empty()) find_smallest();
    std::erase_if(result_.pareto, [&](const Priced& one) {
      return one.step_s > options_.pareto_within * result_.best.front().step_s;
    });
    return std::move(result_);
  }

 private:
  /// Lends a run to whoever needs one.
  class Borrowed {
   public:
    explicit Borrowed(Search& search) : search_(search) {
      const std::lock_guard lock(search.mutex_);
      own_ = std::move(search.idle_.back());
      search.idle_.pop_back();
    }
    ~Borrowed() {
      const std::lock_guard lock(search_.mutex_);
      search_.idle_.push_back(std::move(own_));
    }
    Borrowed(const Borrowed&) = delete;
    Borrowed& operator=(const Borrowed&) = delete;
    const PlannedRun& of(const Candidate& candidate) { return own_->of(candidate); }

   private:
    Search& search_;
    std::unique_ptr<CandidateRun> own_;
  };

  bool report() {
    if (!options_.progress) return true;
    SearchProgress progress;
    progress.groups = static_cast<int64_t>(groups_.size());
    progress.bounded = bounded_;
    progress.open = static_cast<int64_t>(open_.size());
    progress.priced = result_.counts.priced;
    if (!result_.best.empty()) progress.best_s = result_.best.front().step_s;
    result_.complete = result_.complete && options_.progress(progress);
    return result_.complete;
  }

  void bound_groups() {
    std::vector<int64_t> first_number;
    int64_t number = 0;
    for (const CandidateGroup& group : groups_) {
      first_number.push_back(number);
      number +=
          static_cast<int64_t>(group.layouts.size() * space_.zero.size() * space_.recompute.size());
    }
    std::vector<BoundedGroup> bounded(groups_.size());
    constexpr size_t kGroupsTogether = 16;
    for (size_t begin = 0; begin < groups_.size(); begin += kGroupsTogether) {
      const size_t count = std::min(kGroupsTogether, groups_.size() - begin);
      pool_.parallel_for(static_cast<int64_t>(count), [&](int64_t i) {
        const size_t at = begin + static_cast<size_t>(i);
        bound_group(static_cast<int>(at), first_number[at], bounded[at]);
      });
      bounded_ = static_cast<int64_t>(begin + count);
      if (!report()) return;
    }
    std::vector<Open> all;
    result_.counts.by_memory = 0;
    parts_.clear();
    for (BoundedGroup& group : bounded) {
      parts_.push_back(std::move(group.parts));
      result_.counts.by_memory += group.by_memory;
      all.insert(all.end(), group.open.begin(), group.open.end());
    }
    open_ = std::priority_queue<Open, std::vector<Open>, Later>(Later(), std::move(all));
  }

  // Candidates of a group share the seconds of their parts, and those of one cut what their stages do and hold.
  void bound_group(int index, int64_t number, BoundedGroup& bounded) {
    const CandidateGroup& group = groups_[static_cast<size_t>(index)];
    Borrowed own(*this);
    size_t end = 0;
    for (size_t begin = 0; begin < group.layouts.size(); begin = end) {
      const auto cut = [&](size_t at) {
        return std::pair(group.layouts[at].pp, group.layouts[at].chunks);
      };
      end = begin;
      while (end < group.layouts.size() && cut(end) == cut(begin)) ++end;
      bound_layouts(index, begin, end, number, own, bounded);
      number += static_cast<int64_t>((end - begin) * space_.zero.size() * space_.recompute.size());
    }
  }

  void bound_layouts(int index, size_t begin, size_t end, int64_t number, Borrowed& own,
                     BoundedGroup& bounded) {
    const CandidateGroup& group = groups_[static_cast<size_t>(index)];
    Candidate candidate = group.first;
    candidate.dp = group.layouts[begin].dp;
    candidate.pp = group.layouts[begin].pp;
    const bool shares = int64_t{candidate.dp} * candidate.cp > 1;
    // By whether states are shared.
    std::array<std::unique_ptr<const OnceSeconds>, 2> once;
    for (size_t recompute = 0; recompute < space_.recompute.size(); ++recompute) {
      candidate.recompute = static_cast<int8_t>(recompute);
      std::map<bool, std::vector<StageBytes>> bytes;  // by whether programs say it
      for (size_t z = 0; z < space_.zero.size(); ++z) {
        candidate.zero = static_cast<int8_t>(space_.zero[z]);
        if (candidate.zero > 0 && !shares) continue;
        candidate.schedule = group.layouts[begin].schedule;
        candidate.chunks = group.layouts[begin].chunks;
        const PlannedRun& run = own.of(candidate);
        const auto stages = shapes_.stages(run, static_cast<int>(recompute));
        auto& parts = bounded.parts[crosses(run)];
        auto& own_once = once[candidate.zero > 0 ? 1 : 0];
        if (!parts || !own_once) {
          CostModel cost = cost_of(run);
          if (!parts) parts = std::make_unique<const PartSeconds>(run, *classes_, cost);
          own_once = std::make_unique<const OnceSeconds>(run, *classes_, cost);
        }
        const FloorTask task{run,       *classes_, *parts,
                             *own_once, *stages,   rank_micro_batches(run.strategy)};
        const std::vector<StageSeconds> seconds = stage_seconds(task);
        // With Trireme's own memory, what is always held depends on the sharing too.
        if (run.own_memory || !bytes.contains(run.own_memory))
          bytes[run.own_memory] = stage_bytes(run, *classes_, *stages);
        for (size_t layout = begin; layout < end; ++layout) {
          candidate.schedule = group.layouts[layout].schedule;
          const PlannedRun& exact = own.of(candidate);
          Open open;
          open.number = number + static_cast<int64_t>(
                                     ((layout - begin) * space_.recompute.size() + recompute) *
                                         space_.zero.size() +
                                     z);
          open.group = index;
          open.candidate = candidate;
          open.time_s = busy_floor_s(task, seconds) * kRounding;
          open.bytes =
              memory_floor_bytes(exact, bytes[exact.own_memory], *shapes_.kept(exact.strategy)) *
              kRounding;
          if (open.bytes > result_.limit_bytes) ++bounded.by_memory;
          if (open.bytes <= result_.limit_bytes || keep_all_) bounded.open.push_back(open);
        }
      }
    }
  }

  /// Whether what is known shows that a candidate with these bounds is neither one of the best nor on the front.
  bool needless(const Open& open) const {
    const auto wanted = static_cast<size_t>(options_.best);
    if (result_.best.size() < wanted) return false;
    if (open.time_s <= result_.best[wanted - 1].step_s) return false;
    if (!options_.pareto) return true;
    if (open.time_s > options_.pareto_within * result_.best.front().step_s) return true;
    return std::ranges::any_of(result_.pareto, [&](const Priced& one) {
      return one.step_s < open.time_s && one.peak_bytes <= open.bytes;
    });
  }

  void look_at_some() {
    std::vector<Open> some;
    while (!open_.empty() && some.size() < kTogether) {
      Open open = open_.top();
      open_.pop();
      if (needless(open)) {
        ++(open.has_timeline ? result_.counts.by_timeline : result_.counts.by_busy);
        continue;
      }
      some.push_back(open);
    }
    std::vector<std::optional<Priced>> priced(some.size());
    std::vector<std::string> refusals(some.size());
    pool_.parallel_for(static_cast<int64_t>(some.size()), [&](int64_t i) {
      const auto at = static_cast<size_t>(i);
      Borrowed own(*this);
      if (some[at].has_timeline) {
        priced[at] = price(some[at], own, refusals[at]);
      } else {
        refine(some[at], own);
      }
    });
    for (size_t i = 0; i < some.size(); ++i) {
      if (!some[i].has_timeline) {
        some[i].has_timeline = true;
        ++result_.counts.timelines;
        open_.push(some[i]);
      } else if (priced[i]) {
        take(std::move(*priced[i]));
      } else {
        ++result_.counts.refused;
        result_.counts.refusal = refusals[i];
      }
    }
  }

  void refine(Open& open, Borrowed& own) {
    const PlannedRun& run = own.of(open.candidate);
    CostModel cost = cost_of(run);
    const OnceSeconds once(run, *classes_, cost);
    const auto stages = shapes_.stages(run, open.candidate.recompute);
    const int64_t micro_batches = rank_micro_batches(run.strategy);
    const FloorTask task{run,  *classes_, *parts_[static_cast<size_t>(open.group)][crosses(run)],
                         once, *stages,   micro_batches};
    open.time_s =
        std::max(open.time_s,
                 timeline_floor_s(task, *shapes_.schedule(run.strategy.parallel, micro_batches)) *
                     kRounding);
  }

  static std::optional<Priced> price(const Open& open, Borrowed& own, std::string& refusal) {
    Priced priced;
    priced.number = open.number;
    priced.candidate = open.candidate;
    try {
      priced.prediction = predict(own.of(open.candidate));
    } catch (const Error& error) {
      refusal = error.what();
      return std::nullopt;
    }
    priced.step_s = priced.prediction.step_s;
    priced.peak_bytes = priced.prediction.peak_bytes();
    return priced;
  }

  void take(Priced priced) {
    ++result_.counts.priced;
    if (priced.peak_bytes > result_.limit_bytes) {
      ++result_.counts.unfit;
      if (!result_.smallest || priced.peak_bytes < result_.smallest->peak_bytes)
        result_.smallest = std::move(priced);
      return;
    }
    if (options_.pareto) add_to_front(result_.pareto, priced);
    const auto place = std::ranges::upper_bound(result_.best, priced, comes_before);
    result_.best.insert(place, std::move(priced));
    if (result_.best.size() > static_cast<size_t>(options_.best)) result_.best.pop_back();
  }

  static void add_to_front(std::vector<Priced>& front, const Priced& priced) {
    const auto beats = [](const Priced& a, const Priced& b) {
      if (a.step_s == b.step_s && a.peak_bytes == b.peak_bytes) return a.number < b.number;
      return a.step_s <= b.step_s && a.peak_bytes <= b.peak_bytes;
    };
    if (std::ranges::any_of(front, [&](const Priced& one) { return beats(one, priced); })) return;
    std::erase_if(front, [&](const Priced& one) { return beats(priced, one); });
    front.insert(std::ranges::upper_bound(front, priced, comes_before), priced);
  }

  // Nothing fits: the one that holds least, by the bound of memory.
  void find_smallest() {
    keep_all_ = true;
    bound_groups();
    std::vector<Open> all;
    for (; !open_.empty(); open_.pop()) all.push_back(open_.top());
    std::ranges::stable_sort(all, {}, [](const Open& open) { return open.bytes; });
    for (size_t begin = 0; begin < all.size() && report(); begin += kTogether) {
      if (result_.smallest && result_.smallest->peak_bytes <= all[begin].bytes) break;
      const size_t count = std::min(kTogether, all.size() - begin);
      std::vector<std::optional<Priced>> priced(count);
      std::vector<std::string> refusals(count);
      pool_.parallel_for(static_cast<int64_t>(count), [&](int64_t i) {
        Borrowed own(*this);
        priced[static_cast<size_t>(i)] =
            price(all[begin + static_cast<size_t>(i)], own, refusals[static_cast<size_t>(i)]);
      });
      for (std::optional<Priced>& one : priced) {
        if (one && (!result_.smallest || one->peak_bytes < result_.smallest->peak_bytes))
          result_.smallest = std::move(one);
      }
    }
  }

  const SearchSpace& space_;
  const SearchOptions& options_;
  ThreadPool pool_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<CandidateRun>> idle_;
  std::unique_ptr<const PartClasses> classes_;
  Shapes shapes_;
  std::vector<CandidateGroup> groups_;
  std::vector<GroupParts> parts_;  // by group
  std::priority_queue<Open, std::vector<Open>, Later> open_;
  bool keep_all_ = false;  // also what is too large
  int64_t bounded_ = 0;
  SearchResult result_;
};

}  // namespace

bool comes_before(const Priced& a, const Priced& b) {
  return std::tie(a.step_s, a.peak_bytes, a.number) < std::tie(b.step_s, b.peak_bytes, b.number);
}

std::vector<Priced> price_all(const PlannedRun& run, bool of_trireme, const SearchSpace& space) {
  return price_if(run, of_trireme, space, [](const Candidate&) { return true; });
}

std::vector<Priced> price_if(const PlannedRun& run, bool of_trireme, const SearchSpace& space,
                             const std::function<bool(const Candidate&)>& wanted) {
  CandidateRun own(run, space, of_trireme);
  int64_t candidates = 0;
  LeftOut left_out;
  std::vector<Priced> all;
  int64_t number = 0;
  for (const CandidateGroup& group : candidate_groups(own.run(), space, candidates, left_out)) {
    for (const CandidateGroup::Layout& layout : group.layouts) {
      for (size_t recompute = 0; recompute < space.recompute.size(); ++recompute) {
        for (const int64_t zero : space.zero) {
          Priced priced;
          priced.number = number++;
          Candidate& candidate = priced.candidate;
          candidate = group.first;
          candidate.dp = layout.dp;
          candidate.pp = layout.pp;
          candidate.schedule = layout.schedule;
          candidate.chunks = layout.chunks;
          candidate.recompute = static_cast<int8_t>(recompute);
          candidate.zero = static_cast<int8_t>(zero);
          if (zero > 0 && int64_t{layout.dp} * candidate.cp == 1) continue;
          if (!wanted(candidate)) continue;
          priced.prediction = predict(own.of(candidate));
          priced.step_s = priced.prediction.step_s;
          priced.peak_bytes = priced.prediction.peak_bytes();
          all.push_back(std::move(priced));
        }
      }
    }
  }
  return all;
}

SearchResult search(const PlannedRun& run, bool of_trireme, const SearchSpace& space,
                    const SearchOptions& options) {
  return Search(run, of_trireme, space, options).run();
}

}  // namespace trireme::plan
