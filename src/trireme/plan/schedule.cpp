#include "trireme/plan/schedule.h"

#include <algorithm>
#include <array>
#include <utility>

#include "trireme/base/error.h"

namespace trireme::plan {

namespace {

using Order = std::vector<Action>;

// Stages go round the ranks again and again, or down the ranks and up again.
std::vector<int> round_robin(int ranks, int chunks) {
  std::vector<int> rank_of_stage;
  rank_of_stage.reserve(static_cast<size_t>(ranks) * static_cast<size_t>(chunks));
  for (int stage = 0; stage < ranks * chunks; ++stage) rank_of_stage.push_back(stage % ranks);
  return rank_of_stage;
}

std::vector<int> v_shape(int ranks) {
  std::vector<int> rank_of_stage;
  rank_of_stage.reserve(2 * static_cast<size_t>(ranks));
  for (int rank = 0; rank < ranks; ++rank) rank_of_stage.push_back(rank);
  for (int rank = ranks - 1; rank >= 0; --rank) rank_of_stage.push_back(rank);
  return rank_of_stage;
}

// Schedules are written down for a number of micro-batches that suits them; those beyond the run's own are left out, which
// takes nothing away that another one waits for.
void drop_beyond(PipelineSchedule& schedule) {
  for (Order& order : schedule.ranks) {
    for (size_t i = 0; i + 1 < order.size(); ++i) {
      if (order[i + 1].micro_batch >= schedule.micro_batches) order[i].with_next = false;
    }
    std::erase_if(
        order, [&](const Action& action) { return action.micro_batch >= schedule.micro_batches; });
  }
}

void gpipe(PipelineSchedule& schedule) {
  for (int rank = 0; rank < schedule.num_ranks(); ++rank) {
    Order& order = schedule.ranks[static_cast<size_t>(rank)];
    for (const Work work : {Work::kForward, Work::kBackward}) {
      for (int64_t i = 0; i < schedule.micro_batches; ++i) order.push_back({work, rank, i});
    }
  }
}

void one_forward_one_backward(PipelineSchedule& schedule) {
  const int ranks = schedule.num_ranks();
  for (int rank = 0; rank < ranks; ++rank) {
    Order& order = schedule.ranks[static_cast<size_t>(rank)];
    const int64_t ahead = std::min<int64_t>(ranks - 1 - rank, schedule.micro_batches);
    for (int64_t i = 0; i < ahead; ++i) order.push_back({Work::kForward, rank, i});
    for (int64_t i = 0; i < schedule.micro_batches; ++i) {
      if (i + ahead < schedule.micro_batches) order.push_back({Work::kForward, rank, i + ahead});
      order.push_back({Work::kBackward, rank, i});
    }
  }
}

// 1F1B whose rank r is r weight gradients behind: as much is kept on every rank as 1F1B keeps on the first.
void zero_bubble_h1(PipelineSchedule& schedule) {
  one_forward_one_backward(schedule);
  for (int rank = 0; rank < schedule.num_ranks(); ++rank) {
    Order order;
    int64_t weights = 0;
    for (const Action& action : schedule.ranks[static_cast<size_t>(rank)]) {
      if (action.work == Work::kForward) {
        order.push_back(action);
        continue;
      }
      order.push_back({Work::kBackwardInput, rank, action.micro_batch});
      if (action.micro_batch >= rank) order.push_back({Work::kBackwardWeight, rank, weights++});
    }
    while (weights < schedule.micro_batches)
      order.push_back({Work::kBackwardWeight, rank, weights++});
    schedule.ranks[static_cast<size_t>(rank)] = std::move(order);
  }
}

// As many micro-batches as there are ranks go through a rank's first stage, then through its next, and so on.
void interleaved(PipelineSchedule& schedule, int chunks) {
  const int ranks = schedule.num_ranks();
  const int64_t rounds = (schedule.micro_batches + ranks - 1) / ranks;
  const int64_t round = int64_t{ranks} * chunks;
  const int64_t total = rounds * round;
  for (int rank = 0; rank < ranks; ++rank) {
    Order& order = schedule.ranks[static_cast<size_t>(rank)];
    const auto add = [&](Work work, int64_t at) {
      const auto chunk = static_cast<int>(at % round / ranks);
      const int used = work == Work::kForward ? chunk : chunks - 1 - chunk;
      order.push_back({work, used * ranks + rank, at / round * ranks + at % ranks});
    };
    const int64_t ahead =
        std::min<int64_t>(2 * (ranks - 1 - rank) + int64_t{chunks - 1} * ranks, total);
    for (int64_t i = 0; i < ahead; ++i) add(Work::kForward, i);
    for (int64_t i = 0; i < total; ++i) {
      if (i + ahead < total) add(Work::kForward, i + ahead);
      add(Work::kBackward, i);
    }
  }
}

// Which stage a rank has on the way down (0) or up (1) the V.
int stage_of_arm(int ranks, int rank, int arm) {
  return arm == 0 ? rank : 2 * ranks - 1 - rank;
}

// Phases of a rank: forwards down; forwards both ways; backwards of the upper arm with weights apart; forward and backward
// together, in turn on either arm; and the same the other way round. Written for at least 2 ranks micro-batches.
void dual_pipe_v(PipelineSchedule& schedule) {
  const int ranks = schedule.num_ranks();
  const int64_t micro_batches = std::max<int64_t>(schedule.micro_batches, 2 * ranks);
  for (int rank = 0; rank < ranks; ++rank) {
    Order& order = schedule.ranks[static_cast<size_t>(rank)];
    std::array<int64_t, 2> forwards{};
    std::array<int64_t, 2> backwards{};
    std::vector<Action> pending;  // weights, oldest first
    size_t weights_done = 0;
    const auto forward = [&](int arm, bool with_next = false) {
      order.push_back({Work::kForward, stage_of_arm(ranks, rank, arm),
                       forwards[static_cast<size_t>(arm)]++, with_next});
    };
    const auto backward = [&](int arm, bool apart = false) {
      const int stage = stage_of_arm(ranks, rank, arm);
      const int64_t micro_batch = backwards[static_cast<size_t>(arm)]++;
      order.push_back({apart ? Work::kBackwardInput : Work::kBackward, stage, micro_batch});
      if (apart) pending.push_back({Work::kBackwardWeight, stage, micro_batch});
    };
    const auto weight = [&] { order.push_back(pending[weights_done++]); };
    const auto both = [&](int forward_arm, int backward_arm) {
      forward(forward_arm, true);
      backward(backward_arm);
    };
    const int below = ranks - 1 - rank;
    for (int i = 0; i < 2 * below; ++i) forward(0);
    for (int i = 0; i <= rank; ++i) {
      forward(0);
      forward(1);
    }
    for (int i = 0; i < below; ++i) {
      backward(1, true);
      weight();
      forward(1);
    }
    for (int64_t i = 0; i < micro_batches - 2 * ranks + rank + 1; ++i) {
      both(0, 1);
      both(1, 0);
    }
    for (int i = 0; i < below; ++i) {
      backward(1);
      both(1, 0);
    }
    // The last ones wait for their neighbours: from the middle on, weights are left for the gaps.
    const int middle = (rank + 1) / 2;
    bool apart = false;
    for (int i = 0; i <= rank; ++i) {
      apart = apart || (i == middle && rank % 2 == 1);
      backward(1, apart);
      apart = apart || (i == middle && rank % 2 == 0);
      backward(0, apart);
    }
    for (int i = 0; i < below; ++i) {
      weight();
      backward(0, true);
    }
    while (weights_done < pending.size()) weight();
  }
}

// A building block (arXiv 2405.15362): when, in units of one action, a micro-batch's four actions are done on a rank; the
// next micro-batch's follow 6 units later, for 4 actions and 2 weights. `steps` go from a rank to the next one, `turns` are
// the first action after the one it waits for, where the way changes its direction.
struct BuildingBlock {
  std::array<int, 4>
      steps;  // forward down, forward up, backward down (of the upper arm), backward up
  std::array<int, 3> turns;
};

std::vector<Order> repeat(const BuildingBlock& block, int ranks, int64_t micro_batches) {
  const std::array<int, 4>& steps = block.steps;
  const int64_t last = ranks - 1;
  const int64_t up = last * steps[0] + block.turns[0];
  const int64_t back = up + last * steps[1] + block.turns[1];
  const int64_t home = back + last * steps[2] + block.turns[2];
  std::vector<Order> orders;
  for (int rank = 0; rank < ranks; ++rank) {
    std::vector<std::pair<int64_t, Action>> timed;
    const int64_t below = last - rank;
    for (int64_t i = 0; i < micro_batches; ++i) {
      const int64_t begin = 6 * i;
      const int lower = stage_of_arm(ranks, rank, 0);
      const int upper = stage_of_arm(ranks, rank, 1);
      timed.push_back({begin + steps[0] * rank, {Work::kForward, lower, i}});
      timed.push_back({begin + up + steps[1] * below, {Work::kForward, upper, i}});
      timed.push_back({begin + back + steps[2] * rank, {Work::kBackwardInput, upper, i}});
      timed.push_back({begin + home + steps[3] * below, {Work::kBackwardInput, lower, i}});
    }
    std::ranges::stable_sort(timed, {}, [](const auto& entry) { return entry.first; });
    Order& order = orders.emplace_back();
    for (const auto& [time, action] : timed) order.push_back(action);
  }
  return orders;
}

// Puts weights where a rank would wait, or where it must not keep any more: at most `limit` forwards whose weights' gradients are
// not done. Time goes in units of an action. Returns how long it takes; -1 if the order cannot be kept under the limit.
int64_t fill_weights(PipelineSchedule& schedule, const std::vector<Order>& orders, int64_t limit) {
  const int last_stage = schedule.num_stages() - 1;
  const auto micro_batches = static_cast<size_t>(schedule.micro_batches);
  struct Done {
    std::vector<int64_t> forward;
    std::vector<int64_t> backward;
  };
  constexpr int64_t kNever = INT64_MAX;
  std::vector<Done> done(
      schedule.rank_of_stage.size(),
      {std::vector<int64_t>(micro_batches, kNever), std::vector<int64_t>(micro_batches, kNever)});
  const auto ready = [&](const Action& action, int64_t now) {
    const auto stage = static_cast<size_t>(action.stage);
    const auto i = static_cast<size_t>(action.micro_batch);
    if (action.work == Work::kForward) return stage == 0 || done[stage - 1].forward[i] <= now;
    return done[stage].forward[i] <= now &&
           (action.stage == last_stage || done[stage + 1].backward[i] <= now);
  };
  struct Rank {
    size_t next = 0;
    int64_t kept = 0;
    std::vector<Action> weights;
    size_t weights_done = 0;
  };
  std::vector<Rank> ranks(orders.size());
  size_t left = 0;
  int64_t makespan = 0;
  for (size_t r = 0; r < orders.size(); ++r) {
    schedule.ranks[r].clear();
    left += orders[r].size() + orders[r].size() / 2;
  }
  for (int64_t now = 0; left > 0; ++now) {
    bool moved = false;
    for (size_t r = 0; r < orders.size(); ++r) {
      Rank& rank = ranks[r];
      const Action* next = rank.next < orders[r].size() ? &orders[r][rank.next] : nullptr;
      const bool full = next != nullptr && next->work == Work::kForward && rank.kept >= limit;
      if (next != nullptr && !full && ready(*next, now)) {
        const auto stage = static_cast<size_t>(next->stage);
        const auto i = static_cast<size_t>(next->micro_batch);
        if (next->work == Work::kForward) {
          done[stage].forward[i] = now + 1;
          ++rank.kept;
        } else {
          done[stage].backward[i] = now + 1;
          rank.weights.push_back({Work::kBackwardWeight, next->stage, next->micro_batch});
        }
        schedule.ranks[r].push_back(*next);
        ++rank.next;
      } else if (rank.weights_done < rank.weights.size()) {
        schedule.ranks[r].push_back(rank.weights[rank.weights_done++]);
        --rank.kept;
      } else {
        continue;
      }
      moved = true;
      --left;
    }
    if (!moved) return -1;  // all that was begun is done: nothing will become ready
    makespan = now + 1;
  }
  return makespan;
}

// If all actions take one time, as short as can be: all of a rank's work after the ranks - 1 forwards that the last rank waits for.
// Keeps what 1F1B keeps.
void zero_bubble_v(PipelineSchedule& schedule) {
  const int ranks = schedule.num_ranks();
  const BuildingBlock block = {{4, 2, 4, 2}, {1, 1, 1}};
  const int64_t makespan =
      fill_weights(schedule, repeat(block, ranks, schedule.micro_batches), 2 * int64_t{ranks});
  TRIREME_CHECK(makespan > 0, "zbv of {} ranks does not fit", ranks);
}

// Keeps half of what 1F1B keeps, at most 0.55 where the number of ranks is even and above 2. From 20 ranks on that leaves room for the
// paper's block, of half of 1F1B's bubble; below, a shorter one must do, of two thirds.
void v_half(PipelineSchedule& schedule) {
  constexpr std::array<BuildingBlock, 6> kBlocks = {{{{1, 2, 1, 2}, {1, 1, 1}},
                                                     {{1, 2, 1, 2}, {4, 1, 4}},
                                                     {{1, 1, 1, 2}, {3, 3, 1}},
                                                     {{1, 1, 1, 1}, {1, 1, 1}},
                                                     {{1, 1, 1, 1}, {3, 1, 3}},
                                                     {{1, 1, 1, 1}, {5, 1, 3}}}};
  const int ranks = schedule.num_ranks();
  const int64_t even = ranks + ranks % 2;
  int64_t limit = ranks == 2 ? 3 : std::max<int64_t>(even, int64_t{11} * ranks / 10);
  int64_t best = -1;
  for (; best < 0; ++limit) {
    PipelineSchedule candidate = schedule;
    for (const BuildingBlock& block : kBlocks) {
      const int64_t makespan =
          fill_weights(candidate, repeat(block, ranks, schedule.micro_batches), limit);
      if (makespan < 0 || (best >= 0 && makespan >= best)) continue;
      best = makespan;
      schedule.ranks = candidate.ranks;
    }
    TRIREME_CHECK(limit <= 2 * ranks, "v-half of {} ranks does not fit", ranks);
  }
}

}  // namespace

int fixed_chunks(ScheduleKind kind) {
  switch (kind) {
    case ScheduleKind::kGPipe:
    case ScheduleKind::k1F1B:
    case ScheduleKind::kZeroBubbleH1:
      return 1;
    case ScheduleKind::kZeroBubbleV:
    case ScheduleKind::kDualPipeV:
    case ScheduleKind::kVHalf:
      return 2;
    case ScheduleKind::kInterleaved:
    case ScheduleKind::kText:
      return 0;
  }
  return 0;
}

PipelineSchedule make_schedule(ScheduleKind kind, int ranks, int64_t micro_batches, int chunks) {
  TRIREME_CHECK(ranks >= 1 && micro_batches >= 1 && chunks >= 1,
                "{} ranks, {} micro-batches, {} chunks", ranks, micro_batches, chunks);
  const int fixed = fixed_chunks(kind);
  TRIREME_CHECK(fixed == 0 || fixed == chunks, "{} has {} stages a rank, not {}", to_string(kind),
                fixed, chunks);
  PipelineSchedule schedule;
  schedule.micro_batches = micro_batches;
  schedule.ranks.resize(static_cast<size_t>(ranks));
  schedule.rank_of_stage = fixed == 2 ? v_shape(ranks) : round_robin(ranks, chunks);
  switch (kind) {
    case ScheduleKind::kGPipe:
      gpipe(schedule);
      break;
    case ScheduleKind::k1F1B:
      one_forward_one_backward(schedule);
      break;
    case ScheduleKind::kInterleaved:
      interleaved(schedule, chunks);
      break;
    case ScheduleKind::kZeroBubbleH1:
      zero_bubble_h1(schedule);
      break;
    case ScheduleKind::kZeroBubbleV:
      zero_bubble_v(schedule);
      break;
    case ScheduleKind::kDualPipeV:
      dual_pipe_v(schedule);
      break;
    case ScheduleKind::kVHalf:
      v_half(schedule);
      break;
    case ScheduleKind::kText:
      TRIREME_CHECK(false, "a schedule of a file comes from parse_schedule()");
  }
  drop_beyond(schedule);
  return schedule;
}

PipelineSchedule interleaved_pairs(int64_t micro_batches) {
  PipelineSchedule schedule;
  schedule.micro_batches = micro_batches;
  schedule.rank_of_stage = {0};
  std::vector<Action>& actions = schedule.ranks.emplace_back();
  for (int64_t i = 0; i <= micro_batches; ++i) {
    if (i < micro_batches) actions.push_back({Work::kForward, 0, i, i > 0});
    if (i > 0) actions.push_back({Work::kBackward, 0, i - 1, false});
  }
  return schedule;
}

}  // namespace trireme::plan
