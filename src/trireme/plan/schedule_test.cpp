#include "trireme/plan/schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <map>
#include <random>
#include <set>
#include <tuple>

#include "trireme/base/error.h"
#include "trireme/plan/schedule_text.h"

namespace trireme::plan {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Le;

constexpr std::array kKinds = {ScheduleKind::kGPipe,       ScheduleKind::k1F1B,
                               ScheduleKind::kInterleaved, ScheduleKind::kZeroBubbleH1,
                               ScheduleKind::kZeroBubbleV, ScheduleKind::kDualPipeV,
                               ScheduleKind::kVHalf};

std::vector<int> chunk_choices(ScheduleKind kind) {
  const int fixed = fixed_chunks(kind);
  return fixed > 0 ? std::vector<int>{fixed} : std::vector<int>{2, 3, 4};
}

template <class Body>
void for_each_schedule(const std::vector<int>& ranks, const Body& body) {
  for (const ScheduleKind kind : kKinds) {
    for (const int p : ranks) {
      for (const int chunks : chunk_choices(kind)) {
        for (const int64_t m : {1, p - 1, p, p + 1, 2 * p, 3 * p - 1, 4 * p, 8 * p}) {
          if (m < 1) continue;
          SCOPED_TRACE(fmt::format("{} on {} ranks, {} chunks, {} micro-batches", to_string(kind),
                                   p, chunks, m));
          body(kind, p, chunks, m, make_schedule(kind, p, m, chunks));
        }
      }
    }
  }
}

// Written again from the rules, without the code under test: everything once, in order, and after what it needs.
void expect_runs(const PipelineSchedule& schedule) {
  std::set<std::tuple<char, int, int64_t>> done;
  const int last = schedule.num_stages() - 1;
  std::vector<size_t> next(schedule.ranks.size(), 0);
  std::map<std::pair<char, int>, int64_t> before;
  for (bool moved = true; moved;) {
    moved = false;
    for (size_t r = 0; r < schedule.ranks.size(); ++r) {
      while (next[r] < schedule.ranks[r].size()) {
        const Action& action = schedule.ranks[r][next[r]];
        const int s = action.stage;
        const int64_t i = action.micro_batch;
        ASSERT_EQ(schedule.rank_of_stage.at(static_cast<size_t>(s)), static_cast<int>(r));
        std::string works;
        bool ready = false;
        switch (action.work) {
          case Work::kForward:
            works = "F";
            ready = s == 0 || done.contains({'F', s - 1, i});
            break;
          case Work::kBackwardWeight:
            works = "W";
            ready = done.contains({'I', s, i});
            break;
          default:
            works = action.work == Work::kBackward ? "IW" : "I";
            ready = done.contains({'F', s, i}) && (s == last || done.contains({'I', s + 1, i}));
        }
        if (!ready) break;
        for (const char work : works) {
          ASSERT_TRUE(done.insert({work, s, i}).second) << describe(action) << " twice";
          const auto at = before.find({work, s});
          if (at != before.end()) {
            ASSERT_LT(at->second, i) << describe(action);
          }
          before[{work, s}] = i;
        }
        ++next[r];
        moved = true;
      }
    }
  }
  for (size_t r = 0; r < schedule.ranks.size(); ++r)
    ASSERT_EQ(next[r], schedule.ranks[r].size()) << "rank " << r << " stands still";
  ASSERT_EQ(done.size(), static_cast<size_t>(3 * schedule.micro_batches * schedule.num_stages()));
}

TEST(Schedule, DoesEverythingOnceInOrderWithoutDeadlock) {
  for_each_schedule({1, 2, 3, 4, 5, 8, 11},
                    [](ScheduleKind, int p, int chunks, int64_t, const PipelineSchedule& schedule) {
                      ASSERT_EQ(schedule.num_ranks(), p);
                      ASSERT_EQ(schedule.num_stages(), p * chunks);
                      expect_runs(schedule);
                      EXPECT_THAT(schedule_problems(schedule), IsEmpty());
                    });
}

// Time of one rank's work if it never waits, in units of one stage's forward.
double ideal(const PipelineSchedule& schedule) {
  return 3.0 * static_cast<double>(schedule.micro_batches) * schedule.num_stages() /
         schedule.num_ranks();
}

// Times from the papers, with F = B = W = 1 of a stage: what the last rank to finish waits in all.
TEST(Schedule, WaitsAsLongAsThePapersSay) {
  for (const int p : {2, 3, 4, 8}) {
    for (const int64_t m : {p, 2 * p, 3 * p, 5 * p, 8 * p}) {
      SCOPED_TRACE(fmt::format("{} ranks, {} micro-batches", p, m));
      const auto waiting = [&](ScheduleKind kind, int chunks) {
        const PipelineSchedule schedule = make_schedule(kind, p, m, chunks);
        const ScheduleTimeline timeline = run_schedule(schedule, {StageCost{}});
        const double waits = timeline.makespan - ideal(schedule);
        EXPECT_NEAR(timeline.bubble_share(), waits / timeline.makespan, 1e-12);
        return waits;
      };
      // (p - 1)(F + B + W); share (p - 1) / (m + p - 1).
      EXPECT_EQ(waiting(ScheduleKind::kGPipe, 1), 3 * (p - 1));
      EXPECT_EQ(waiting(ScheduleKind::k1F1B, 1), 3 * (p - 1));
      const ScheduleTimeline plain =
          run_schedule(make_schedule(ScheduleKind::k1F1B, p, m, 1), {StageCost{}});
      EXPECT_NEAR(plain.bubble_share(), (p - 1.0) / (static_cast<double>(m) + p - 1.0), 1e-12);
      // The same of stages that are smaller by the number of chunks: share (p - 1) / (chunks m + p - 1).
      for (const int chunks : {2, 3, 4})
        EXPECT_EQ(waiting(ScheduleKind::kInterleaved, chunks), 3 * (p - 1));
      // (p - 1)(F + B - W).
      EXPECT_EQ(waiting(ScheduleKind::kZeroBubbleH1, 1), p - 1);
      // The last rank begins after p - 1 forwards; nothing waits beyond that.
      EXPECT_EQ(waiting(ScheduleKind::kZeroBubbleV, 2), p - 1);
      // (p - 1)(F&B + B - 3 W), where F&B takes what a forward and a whole backward do; from 2 p micro-batches on.
      const double dual = waiting(ScheduleKind::kDualPipeV, 2);
      if (m >= 2 * p) {
        EXPECT_EQ(dual, 2 * (p - 1));
      }
      // A half of 1F1B's at best, of stages of half the size; two thirds where its memory is kept under 0.55 of 1F1B's.
      const double v_half = waiting(ScheduleKind::kVHalf, 2);
      EXPECT_LE(v_half, p == 2 || p % 2 == 1 ? 3 * (p - 1) : 4 * (p - 1));
    }
  }
}

TEST(Schedule, KeepsAsMuchAsThePapersSay) {
  for (const int p : {2, 3, 4, 8}) {
    for (const int64_t m : {p, 2 * p, 4 * p, 8 * p}) {
      SCOPED_TRACE(fmt::format("{} ranks, {} micro-batches", p, m));
      const auto peaks = [&](ScheduleKind kind, int chunks, KeptUntil until) {
        return peak_in_flight(make_schedule(kind, p, m, chunks), until);
      };
      const auto whole = [&](ScheduleKind kind, int chunks) {
        return peaks(kind, chunks, KeptUntil::kBackwardWeight);
      };
      EXPECT_THAT(whole(ScheduleKind::kGPipe, 1), Each(m));
      const auto plain = whole(ScheduleKind::k1F1B, 1);
      const auto split = peaks(ScheduleKind::kZeroBubbleH1, 1, KeptUntil::kBackwardInput);
      for (int r = 0; r < p; ++r) {
        EXPECT_EQ(plain[static_cast<size_t>(r)], std::min<int64_t>(p - r, m));
        EXPECT_EQ(split[static_cast<size_t>(r)], std::min<int64_t>(p - r, m));
      }
      // With the weights' share on every rank what 1F1B keeps on the first.
      EXPECT_THAT(whole(ScheduleKind::kZeroBubbleH1, 1), Each(Le(p)));
      for (const int chunks : {2, 3}) {
        const auto kept = whole(ScheduleKind::kInterleaved, chunks);
        for (int r = 0; r < p; ++r) {
          const int64_t ahead = 2 * (p - 1 - r) + (chunks - 1) * p + 1;
          EXPECT_EQ(kept[static_cast<size_t>(r)], std::min<int64_t>(ahead, m * chunks));
        }
      }
      // Of a V in stages of half the size: 1F1B keeps 2 p.
      EXPECT_THAT(whole(ScheduleKind::kZeroBubbleV, 2), Each(Le(2 * p)));
      EXPECT_THAT(whole(ScheduleKind::kDualPipeV, 2), Each(Le(2 * p + 1)));
      if (p == 4 || p == 8) {
        EXPECT_THAT(whole(ScheduleKind::kVHalf, 2), Each(Le(p)));
      } else {
        EXPECT_THAT(whole(ScheduleKind::kVHalf, 2), Each(Le(p + 1)));
      }
    }
  }
}

TEST(Schedule, HalfVKeepsHalfAndWaitsHalfOnManyRanks) {
  for (const int p : {20, 24, 32}) {
    const PipelineSchedule schedule = make_schedule(ScheduleKind::kVHalf, p, 2 * p, 2);
    for (const int64_t kept : peak_in_flight(schedule, KeptUntil::kBackwardWeight))
      EXPECT_LE(static_cast<double>(kept), 0.55 * 2 * p);
    const double waits = run_schedule(schedule, {StageCost{}}).makespan - ideal(schedule);
    EXPECT_LE(waits, 3 * (p - 1)) << p;
  }
}

TEST(Schedule, TransfersAndUnevenStagesTakeTheirTime) {
  // Two ranks, one micro-batch: down, over, and back.
  const PipelineSchedule schedule = make_schedule(ScheduleKind::k1F1B, 2, 1, 1);
  const ScheduleTimeline timeline =
      run_schedule(schedule, {{1.0, 2.0, 3.0}, {10.0, 20.0, 30.0}}, 0.5);
  EXPECT_THAT(timeline.start[0], ElementsAre(0.0, 62.0));
  EXPECT_THAT(timeline.start[1], ElementsAre(1.5, 11.5));
  EXPECT_EQ(timeline.makespan, 67.0);
  // The turn of a V is no transfer.
  const PipelineSchedule turn = make_schedule(ScheduleKind::kZeroBubbleV, 1, 1, 2);
  EXPECT_EQ(run_schedule(turn, {StageCost{}}, 0.5).makespan, 6.0);
}

TEST(Schedule, DualPipePairsForwardsWithBackwards) {
  const int p = 4;
  const int64_t m = 32;
  const PipelineSchedule schedule = make_schedule(ScheduleKind::kDualPipeV, p, m, 2);
  for (int r = 0; r < p; ++r) {
    const auto& order = schedule.ranks[static_cast<size_t>(r)];
    // All but the ramps: 2 (m - 2 p + rank + 1) in the middle and p - 1 - rank on the way out.
    EXPECT_EQ(std::ranges::count(order, true, &Action::with_next),
              2 * (m - 2 * p + r + 1) + p - 1 - r);
    for (size_t i = 0; i < order.size(); ++i) {
      if (!order[i].with_next) continue;
      EXPECT_EQ(order[i].work, Work::kForward);
      EXPECT_EQ(order[i + 1].work, Work::kBackward);
      EXPECT_NE(order[i].stage, order[i + 1].stage);
    }
  }
}

TEST(Schedule, ProblemsAreFoundAndNamed) {
  const auto problem_of = [](const auto& change) {
    PipelineSchedule schedule = make_schedule(ScheduleKind::k1F1B, 2, 3, 1);
    change(schedule);
    const std::vector<ScheduleProblem> problems = schedule_problems(schedule);
    return problems.empty() ? "" : problems.front().text;
  };
  EXPECT_EQ(problem_of([](PipelineSchedule&) {}), "");
  EXPECT_THAT(problem_of([](PipelineSchedule& s) { s.ranks[1].pop_back(); }),
              HasSubstr("stage 1 lacks the backward-input of micro-batch 2"));
  EXPECT_THAT(problem_of([](PipelineSchedule& s) { s.ranks[1].push_back(s.ranks[1][0]); }),
              HasSubstr("1F0: stage 1 does its forward of micro-batch 0 again"));
  EXPECT_THAT(problem_of([](PipelineSchedule& s) { s.ranks[0].push_back({Work::kForward, 1, 0}); }),
              HasSubstr("1F0: stage 1 is on rank 1"));
  EXPECT_THAT(problem_of([](PipelineSchedule& s) { s.ranks[0].push_back({Work::kForward, 0, 3}); }),
              HasSubstr("0F3: there are 2 stages and 3 micro-batches"));
  EXPECT_THAT(problem_of([](PipelineSchedule& s) { std::swap(s.ranks[0][0], s.ranks[0][1]); }),
              HasSubstr("0F1 comes before the forward of micro-batch 0"));
  EXPECT_THAT(problem_of([](PipelineSchedule& s) { std::swap(s.ranks[1][0], s.ranks[1][1]); }),
              HasSubstr("rank 1 waits before 1B0 for 1F0 of rank 1"));
  EXPECT_THAT(problem_of([](PipelineSchedule& s) { s.ranks[0][0].with_next = true; }),
              HasSubstr("only a forward with a backward"));
  // 0 begins with the backward of what 1 has not begun.
  EXPECT_THAT(problem_of([](PipelineSchedule& s) { std::swap(s.ranks[0][1], s.ranks[0][2]); }), "");
  PipelineSchedule crossed = make_schedule(ScheduleKind::kGPipe, 2, 2, 1);
  crossed.ranks[0] = {{Work::kForward, 0, 0},
                      {Work::kBackward, 0, 0},
                      {Work::kForward, 0, 1},
                      {Work::kBackward, 0, 1}};
  const std::vector<ScheduleProblem> problems = schedule_problems(crossed);
  ASSERT_EQ(problems.size(), 1);
  EXPECT_EQ(problems[0].rank, 0);
  EXPECT_EQ(problems[0].text,
            "no rank can go on: rank 0 waits before 0B0 for 1B0 of rank 1; rank 1 waits before 1F1 "
            "for 0F1 of rank 0");
}

TEST(ScheduleText, ReadsWhatItWrites) {
  for_each_schedule({1, 2, 4}, [](ScheduleKind, int, int, int64_t, const PipelineSchedule& made) {
    EXPECT_EQ(parse_schedule(schedule_text(made), "test"), made);
  });
}

TEST(ScheduleText, ReadsCommentsCommasAndBubbles) {
  const PipelineSchedule schedule = parse_schedule(
      "# two ranks\r\n0F0, 0F1,,, 0B0,0B1 # done\n\n\t1F0 1F1+1I0,1I1 1W0 1W1\n", "test");
  EXPECT_THAT(schedule.rank_of_stage, ElementsAre(0, 1));
  EXPECT_EQ(schedule.micro_batches, 2);
  EXPECT_EQ(schedule_text(schedule), "0F0 0F1 0B0 0B1\n1F0 1F1+1I0 1I1 1W0 1W1\n");
}

TEST(ScheduleText, ErrorsNameTheLine) {
  const auto error_of = [](const char* text) -> std::string {
    try {
      parse_schedule(text, "mine.txt");
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kConfig);
      EXPECT_THAT(error.hint(), HasSubstr("0F3"));
      return error.what();
    }
    return "no error";
  };
  EXPECT_EQ(error_of(""), "mine.txt: has no actions");
  EXPECT_EQ(error_of("# nothing\n"), "mine.txt: has no actions");
  EXPECT_EQ(error_of("0F0 0X0\n"), "mine.txt:1: \"0X0\" is not an action");
  EXPECT_EQ(error_of("\n0F0 F\n"), "mine.txt:2: \"F\" is not an action");
  EXPECT_EQ(error_of("0F0 0B\n"), "mine.txt:1: \"0B\" is not an action");
  EXPECT_EQ(error_of("-1F0\n"), "mine.txt:1: \"-1F0\" is not an action");
  EXPECT_EQ(error_of("0F99999999999999999999\n"),
            "mine.txt:1: \"0F99999999999999999999\" is not an action");
  EXPECT_EQ(error_of("9999F0"),
            "mine.txt:1: 9999F0: at most 4096 stages and 1048576 micro-batches");
  EXPECT_EQ(error_of("0F0+"), "mine.txt:1: \"0F0+\" is not an action");
  EXPECT_EQ(error_of("0F0 0B0\n1F0 0B0\n"), "mine.txt:2: 0B0: stage 0 is on the rank of line 1");
  EXPECT_EQ(error_of("0F0 0B0\n2F0 2B0\n"), "mine.txt: stage 1 of 3 is on no rank");
  EXPECT_EQ(error_of("0F0 2F0 0B0 2B0\n# two\n1F0 1B0\n"),
            "mine.txt:3: 1 stages, the first rank has 2: every rank has as many");
  EXPECT_EQ(error_of("0F0 0B0\n1F0 1I0\n"),
            "mine.txt:2: stage 1 lacks the backward-weight of micro-batch 0");
  EXPECT_THAT(
      error_of("0F0 0B0 0F1 0B1\n1F0 1F1 1B0 1B1\n"),
      HasSubstr("mine.txt:1: no rank can go on: rank 0 waits before 0B0 for 1B0 of rank 1"));
}

TEST(ScheduleText, TornTextsAreReadOrRefused) {
  std::mt19937 random(5);
  const std::string good = schedule_text(make_schedule(ScheduleKind::kDualPipeV, 3, 7, 2));
  int refused = 0;
  for (int round = 0; round < 2000; ++round) {
    std::string text = good;
    for (int change = 0; change < 1 + round % 3; ++change) {
      const size_t at = random() % text.size();
      text[at] = "0123456789FIWB+, \n#-"[random() % 20];
      if (random() % 4 == 0) text.erase(random() % text.size(), 1 + random() % 9);
      if (text.empty()) text = " ";
    }
    try {
      const PipelineSchedule schedule = parse_schedule(text, "test");
      EXPECT_EQ(parse_schedule(schedule_text(schedule), "again"), schedule);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kConfig) << error.what();
      ++refused;
    }
  }
  EXPECT_GT(refused, 1000);
}

TEST(Schedule, PairsOfMicroBatchesDoEverythingOnceAndHoldTwo) {
  for (const int64_t m : {1, 2, 3, 8}) {
    const PipelineSchedule schedule = interleaved_pairs(m);
    EXPECT_THAT(schedule_problems(schedule), IsEmpty());
    expect_runs(schedule);
    EXPECT_EQ(std::ranges::count(schedule.ranks[0], true, &Action::with_next), m - 1);
    EXPECT_THAT(peak_in_flight(schedule, KeptUntil::kBackwardWeight),
                ElementsAre(std::min<int64_t>(m, 2)));
  }
}

}  // namespace
}  // namespace trireme::plan
