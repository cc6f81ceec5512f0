// Schedules in event time, and what is wrong with one that cannot run.
#include <algorithm>
#include <array>
#include <numeric>

#include "trireme/base/error.h"
#include "trireme/plan/schedule.h"

namespace trireme::plan {

namespace {

constexpr double kNotDone = -1.0;

// When each stage's work on each micro-batch ended.
class Ends {
 public:
  Ends(int stages, int64_t micro_batches)
      : micro_batches_(micro_batches),
        forward_(static_cast<size_t>(stages * micro_batches), kNotDone),
        input_(forward_),
        weight_(forward_) {}

  double& of(Work work, int stage, int64_t micro_batch) {
    std::vector<double>& ends = work == Work::kForward          ? forward_
                                : work == Work::kBackwardWeight ? weight_
                                                                : input_;
    return ends[static_cast<size_t>(stage * micro_batches_ + micro_batch)];
  }

 private:
  int64_t micro_batches_;
  std::vector<double> forward_;
  std::vector<double> input_;
  std::vector<double> weight_;
};

// The actions whose results an action needs.
std::vector<Action> needs(const PipelineSchedule& schedule, const Action& action) {
  switch (action.work) {
    case Work::kForward:
      if (action.stage == 0) return {};
      return {{Work::kForward, action.stage - 1, action.micro_batch}};
    case Work::kBackwardWeight:
      return {{Work::kBackwardInput, action.stage, action.micro_batch}};
    case Work::kBackwardInput:
    case Work::kBackward:
      break;
  }
  std::vector<Action> all = {{Work::kForward, action.stage, action.micro_batch}};
  if (action.stage + 1 < schedule.num_stages())
    all.push_back({Work::kBackwardInput, action.stage + 1, action.micro_batch});
  return all;
}

// One action, or two that are done together.
size_t length_at(const std::vector<Action>& order, size_t at) {
  return order[at].with_next && at + 1 < order.size() ? 2 : 1;
}

std::vector<Action> needs_at(const PipelineSchedule& schedule, size_t rank, size_t at) {
  const std::vector<Action>& order = schedule.ranks[rank];
  std::vector<Action> all = needs(schedule, order[at]);
  if (length_at(order, at) == 2) {
    for (const Action& need : needs(schedule, order[at + 1])) all.push_back(need);
  }
  return all;
}

struct Run {
  ScheduleTimeline timeline;
  std::vector<size_t> next;  // place in its list that a rank came to
  Ends ends;
};

// As far as it goes.
Run run(const PipelineSchedule& schedule, const std::vector<StageCost>& costs, double transfer) {
  const auto ranks = schedule.ranks.size();
  Run result{
      {}, std::vector<size_t>(ranks, 0), Ends(schedule.num_stages(), schedule.micro_batches)};
  ScheduleTimeline& timeline = result.timeline;
  timeline.start.resize(ranks);
  timeline.end.resize(ranks);
  timeline.busy.assign(ranks, 0.0);
  std::vector<double> free_at(ranks, 0.0);
  for (bool moved = true; moved;) {
    moved = false;
    for (size_t r = 0; r < ranks; ++r) {
      const std::vector<Action>& order = schedule.ranks[r];
      size_t& at = result.next[r];
      while (at < order.size()) {
        double start = free_at[r];
        bool ready = true;
        for (const Action& need : needs_at(schedule, r, at)) {
          const double end = result.ends.of(need.work, need.stage, need.micro_batch);
          ready = ready && end != kNotDone;
          const bool away =
              schedule.rank_of_stage[static_cast<size_t>(need.stage)] != static_cast<int>(r);
          start = std::max(start, end + (away ? transfer : 0.0));
        }
        if (!ready) break;
        const size_t length = length_at(order, at);
        double end = start;
        for (size_t i = at; i < at + length; ++i) {
          const auto stage = static_cast<size_t>(order[i].stage);
          end += costs[costs.size() == 1 ? 0 : stage].of(order[i].work);
        }
        for (size_t i = 0; i < length; ++i, ++at) {
          const Action& action = order[at];
          result.ends.of(action.work, action.stage, action.micro_batch) = end;
          if (action.work == Work::kBackward)
            result.ends.of(Work::kBackwardWeight, action.stage, action.micro_batch) = end;
          timeline.start[r].push_back(start);
          timeline.end[r].push_back(end);
        }
        timeline.busy[r] += end - start;
        timeline.makespan = std::max(timeline.makespan, end);
        free_at[r] = end;
        moved = true;
      }
    }
  }
  return result;
}

/// Where a need is done: rank and place. A backward does a backward-input too.
struct Place {
  int rank = -1;
  size_t at = 0;
};
Place find(const PipelineSchedule& schedule, const Action& need) {
  const int rank = schedule.rank_of_stage[static_cast<size_t>(need.stage)];
  const std::vector<Action>& order = schedule.ranks[static_cast<size_t>(rank)];
  for (size_t at = 0; at < order.size(); ++at) {
    const Work work = order[at].work == Work::kBackward ? Work::kBackwardInput : order[at].work;
    if (work == need.work && order[at].stage == need.stage &&
        order[at].micro_batch == need.micro_batch)
      return {rank, at};
  }
  return {};
}

// Follows who waits for whom from a rank that stands still until a rank comes again.
ScheduleProblem deadlock(const PipelineSchedule& schedule, Run& stuck) {
  size_t rank = 0;
  while (stuck.next[rank] == schedule.ranks[rank].size()) ++rank;
  std::string text;
  std::vector<char> seen(schedule.ranks.size(), 0);
  const int first = static_cast<int>(rank);
  while (seen[rank] == 0) {
    seen[rank] = 1;
    const Action& action = schedule.ranks[rank][stuck.next[rank]];
    for (const Action& need : needs_at(schedule, rank, stuck.next[rank])) {
      if (stuck.ends.of(need.work, need.stage, need.micro_batch) != kNotDone) continue;
      const Place place = find(schedule, need);
      const Action& waited = schedule.ranks[static_cast<size_t>(place.rank)][place.at];
      text += fmt::format("{}rank {} waits before {} for {} of rank {}", text.empty() ? "" : "; ",
                          rank, describe(action), describe(waited), place.rank);
      rank = static_cast<size_t>(place.rank);
      break;
    }
  }
  return {first, "no rank can go on: " + text};
}

const char* name_of(Work work) {
  return work == Work::kForward          ? "forward"
         : work == Work::kBackwardWeight ? "backward-weight"
                                         : "backward-input";
}

// Every stage does every kind of work on every micro-batch once, in order.
void check_actions(const PipelineSchedule& schedule, std::vector<ScheduleProblem>& problems) {
  const int stages = schedule.num_stages();
  constexpr std::array<Work, 3> kWorks = {Work::kForward, Work::kBackwardInput,
                                          Work::kBackwardWeight};
  for (int rank = 0; rank < schedule.num_ranks(); ++rank) {
    const std::vector<Action>& order = schedule.ranks[static_cast<size_t>(rank)];
    const auto problem = [&](std::string text) { problems.push_back({rank, std::move(text)}); };
    // The micro-batch that comes next, by work and stage.
    std::vector<std::array<int64_t, 3>> expected(static_cast<size_t>(stages));
    for (size_t at = 0; at < order.size(); ++at) {
      const Action& action = order[at];
      if (action.stage < 0 || action.stage >= stages || action.micro_batch < 0 ||
          action.micro_batch >= schedule.micro_batches) {
        problem(fmt::format("{}: there are {} stages and {} micro-batches, counted from 0",
                            describe(action), stages, schedule.micro_batches));
        return;
      }
      const int owner = schedule.rank_of_stage[static_cast<size_t>(action.stage)];
      if (owner != rank) {
        problem(fmt::format("{}: stage {} is on rank {}", describe(action), action.stage, owner));
        return;
      }
      if (action.with_next &&
          (action.work != Work::kForward || at + 1 == order.size() ||
           (order[at + 1].work != Work::kBackward && order[at + 1].work != Work::kBackwardInput)))
        problem(
            fmt::format("{} is to be done together with what comes next: only a forward with a "
                        "backward is",
                        describe(action)));
      for (size_t work = 0; work < kWorks.size(); ++work) {
        if (action.work != kWorks[work] && (action.work != Work::kBackward || work == 0)) continue;
        int64_t& next = expected[static_cast<size_t>(action.stage)][work];
        if (action.micro_batch < next)
          problem(fmt::format("{}: stage {} does its {} of micro-batch {} again, or out of order",
                              describe(action), action.stage, name_of(kWorks[work]),
                              action.micro_batch));
        if (action.micro_batch > next)
          problem(fmt::format("{} comes before the {} of micro-batch {} of stage {}",
                              describe(action), name_of(kWorks[work]), next, action.stage));
        next = std::max(next, action.micro_batch + 1);
      }
    }
    for (int stage = 0; stage < stages; ++stage) {
      if (schedule.rank_of_stage[static_cast<size_t>(stage)] != rank) continue;
      for (size_t work = 0; work < kWorks.size(); ++work) {
        const int64_t next = expected[static_cast<size_t>(stage)][work];
        if (next < schedule.micro_batches)
          problem(fmt::format("stage {} lacks the {} of micro-batch {}", stage,
                              name_of(kWorks[work]), next));
      }
    }
  }
}

}  // namespace

std::string describe(const Action& action) {
  constexpr std::array<char, 4> kLetters = {'F', 'I', 'W', 'B'};
  return fmt::format("{}{}{}", action.stage, kLetters[static_cast<size_t>(action.work)],
                     action.micro_batch);
}

double StageCost::of(Work work) const {
  switch (work) {
    case Work::kForward:
      return forward;
    case Work::kBackwardInput:
      return backward_input;
    case Work::kBackwardWeight:
      return backward_weight;
    case Work::kBackward:
      return backward_input + backward_weight;
  }
  return 0.0;
}

double ScheduleTimeline::bubble_share() const {
  const double all = makespan * static_cast<double>(busy.size());
  return all > 0.0 ? 1.0 - std::accumulate(busy.begin(), busy.end(), 0.0) / all : 0.0;
}

std::vector<ScheduleProblem> schedule_problems(const PipelineSchedule& schedule) {
  std::vector<ScheduleProblem> problems;
  for (int stage = 0; stage < schedule.num_stages(); ++stage) {
    const int rank = schedule.rank_of_stage[static_cast<size_t>(stage)];
    if (rank < 0 || rank >= schedule.num_ranks())
      problems.push_back(
          {-1, fmt::format("stage {} is on rank {} of {}", stage, rank, schedule.num_ranks())});
  }
  if (problems.empty()) check_actions(schedule, problems);
  if (!problems.empty()) return problems;
  Run result = run(schedule, {StageCost{}}, 0.0);
  for (size_t r = 0; r < schedule.ranks.size(); ++r) {
    if (result.next[r] < schedule.ranks[r].size()) return {deadlock(schedule, result)};
  }
  return {};
}

ScheduleTimeline run_schedule(const PipelineSchedule& schedule, const std::vector<StageCost>& costs,
                              double transfer) {
  TRIREME_CHECK(costs.size() == 1 || costs.size() == schedule.rank_of_stage.size(),
                "{} costs for {} stages", costs.size(), schedule.num_stages());
  Run result = run(schedule, costs, transfer);
  for (size_t r = 0; r < schedule.ranks.size(); ++r) {
    TRIREME_CHECK(result.next[r] == schedule.ranks[r].size(), "{}",
                  deadlock(schedule, result).text);
  }
  return std::move(result.timeline);
}

std::vector<int64_t> peak_in_flight(const PipelineSchedule& schedule, KeptUntil until) {
  std::vector<int64_t> peaks;
  for (const std::vector<Action>& order : schedule.ranks) {
    int64_t kept = 0;
    int64_t peak = 0;
    for (const Action& action : order) {
      if (action.work == Work::kForward) ++kept;
      peak = std::max(peak, kept);
      const Work last =
          until == KeptUntil::kBackwardInput ? Work::kBackwardInput : Work::kBackwardWeight;
      if (action.work == last || action.work == Work::kBackward) --kept;
    }
    peaks.push_back(peak);
  }
  return peaks;
}

}  // namespace trireme::plan
