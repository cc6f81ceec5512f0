#include "trireme/plan/search.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "trireme/base/error.h"
#include "trireme/plan/random_runs.h"

namespace trireme::plan {
namespace {

struct Problem {
  PlannedRun run;
  SearchSpace space;
  SearchOptions options;
  bool of_trireme = false;
};

Problem random_problem(RandomRuns& random) {
  Problem problem;
  PlannedRun& run = problem.run;
  run.spec = random.model();
  run.cluster = random.cluster();
  run.stack = random.stack();
  problem.of_trireme = run.stack.name == "trireme";
  run.strategy.precision = random.coin() ? Precision::kBf16 : Precision::kFp32;
  run.strategy.seq_len = random.pick<int64_t>({128, 256});
  run.strategy.sequences = random.pick<int64_t>({2, 4, 8, 12, 24});
  use_profiles(shipped_profiles(), "", run);
  SearchSpace& space = problem.space;
  space = search_space(run, random.pick<int64_t>({2, 4, 6, 8}));
  // Some of the dimensions, so that all of it can be priced.
  const auto fix_some = [&](const char* name, const std::vector<std::string>& values) {
    if (random.generator()() % 3 != 0) fix(space, name, random.pick(values));
  };
  fix_some("cp_kind", {"ring", "gather", "ulysses"});
  fix_some("recompute", {"none", "attention", "2 of 4 layers", "full"});
  fix_some("schedule", {"1f1b", "gpipe", "interleaved", "zb-h1", "zbv"});
  fix_some("etp", {"1"});
  fix_some("tp", {"1", "2"});
  fix_some("micro", {"1", "2"});
  fix_some("zero", {"0", "1", "3"});
  fix(space, "cp", random.pick<std::string>({"1", "1", "2"}));
  if (space.chunks.size() > 1) fix(space, "chunks", random.pick<std::string>({"1", "2", "3"}));
  if (random.generator()() % 4 == 0) vary(space, "overlap", "none,stack,all");
  if (random.generator()() % 4 == 0) vary(space, "sp", "0,1");
  problem.options.best = random.pick<int>({1, 3});
  problem.options.threads = 2;
  if (random.coin()) problem.options.pareto_within = 1.5;
  return problem;
}

std::vector<int64_t> numbers(const std::vector<Priced>& all) {
  std::vector<int64_t> result;
  for (const Priced& one : all) result.push_back(one.number);
  return result;
}

// By definition: what nothing else beats in both.
std::vector<Priced> front_of(const std::vector<Priced>& ordered) {
  std::vector<Priced> front;
  for (const Priced& one : ordered) {
    const bool beaten = std::ranges::any_of(ordered, [&](const Priced& other) {
      if (other.number == one.number || other.step_s > one.step_s ||
          other.peak_bytes > one.peak_bytes)
        return false;
      return other.step_s < one.step_s || other.peak_bytes < one.peak_bytes ||
             other.number < one.number;
    });
    if (!beaten) front.push_back(one);
  }
  return front;
}

TEST(Search, FindsWhatPricingAllOfThemFinds) {
  RandomRuns random(7);
  int64_t priced = 0;
  int64_t candidates = 0;
  int spaces = 0;
  constexpr int kSpaces = 300;
  constexpr int64_t kMostToPrice = 400;
  for (int i = 0; spaces < kSpaces; ++i) {
    Problem problem = random_problem(random);
    int64_t all_of_them = 0;
    LeftOut left_out;
    candidate_groups(problem.run, problem.space, all_of_them, left_out);
    if (all_of_them == left_out.count || all_of_them - left_out.count > kMostToPrice) continue;
    std::vector<Priced> all = price_all(problem.run, problem.of_trireme, problem.space);
    ASSERT_EQ(static_cast<int64_t>(all.size()), all_of_them - left_out.count);
    ++spaces;
    // A device whose memory is between what the smallest and the largest candidate hold.
    std::vector<double> peaks;
    for (const Priced& one : all) peaks.push_back(one.peak_bytes);
    std::ranges::sort(peaks);
    const double limit =
        peaks[static_cast<size_t>(random.between(0.0, 0.999) * static_cast<double>(peaks.size()))];
    problem.run.cluster.device.usable_bytes = limit;
    std::erase_if(all, [&](const Priced& one) { return one.peak_bytes > limit; });
    std::ranges::sort(all, comes_before);
    const SearchResult result =
        search(problem.run, problem.of_trireme, problem.space, problem.options);
    std::vector<Priced> front = front_of(all);
    std::erase_if(front, [&](const Priced& one) {
      return one.step_s > problem.options.pareto_within * all.front().step_s;
    });
    all.resize(std::min(all.size(), static_cast<size_t>(problem.options.best)));
    ASSERT_EQ(numbers(result.best), numbers(all)) << "space " << i;
    ASSERT_EQ(numbers(result.pareto), numbers(front)) << "space " << i;
    ASSERT_EQ(result.best.front().step_s, all.front().step_s);
    const SearchCounts& counts = result.counts;
    EXPECT_EQ(counts.candidates, counts.left_out.count + counts.by_memory + counts.by_busy +
                                     counts.by_timeline + counts.priced);
    EXPECT_EQ(counts.refused, 0);
    EXPECT_TRUE(result.complete);
    priced += counts.priced;
    candidates += counts.candidates - counts.left_out.count;
  }
  // Bounds leave most of them out, or they would be of no use.
  EXPECT_LT(priced, candidates / 2);
}

PlannedRun small_run() {
  PlannedRun run;
  run.spec = model::spec_from_config(R"({"model_type": "llama", "vocab_size": 32768,
      "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8,
      "num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 2048})",
                                     "test");
  run.cluster = shipped_profiles().cluster("dgx-h100");
  run.stack = shipped_profiles().stack("megatron-core");
  run.strategy.precision = Precision::kBf16;
  run.strategy.seq_len = 2048;
  run.strategy.sequences = 32;
  use_profiles(shipped_profiles(), "", run);
  return run;
}

TEST(Search, OfNothingThatFitsSaysWhoHoldsLeast) {
  PlannedRun run = small_run();
  SearchSpace space = search_space(run, 4);
  fix(space, "cp", "1");
  const std::vector<Priced> all = price_all(run, false, space);
  const auto least =
      std::ranges::min_element(all, {}, [](const Priced& one) { return one.peak_bytes; });
  run.cluster.device.usable_bytes = 0.5 * least->peak_bytes;
  const SearchResult result = search(run, false, space, {});
  EXPECT_TRUE(result.best.empty());
  EXPECT_TRUE(result.pareto.empty());
  ASSERT_TRUE(result.smallest.has_value());
  EXPECT_EQ(result.smallest->peak_bytes, least->peak_bytes);
  EXPECT_EQ(result.counts.feasible(), 0);
}

TEST(Search, ReserveIsMemoryThatNobodyHas) {
  PlannedRun run = small_run();
  SearchSpace space = search_space(run, 4);
  SearchOptions options;
  const SearchResult free = search(run, false, space, options);
  options.reserve_bytes = run.cluster.device.usable_bytes - free.pareto.back().peak_bytes;
  const SearchResult tight = search(run, false, space, options);
  ASSERT_FALSE(tight.best.empty());
  EXPECT_EQ(tight.best.front().number, free.pareto.back().number);
  EXPECT_EQ(tight.limit_bytes, free.pareto.back().peak_bytes);
}

TEST(Search, IsTheSameWithAnyNumberOfThreads) {
  const PlannedRun run = small_run();
  const SearchSpace space = search_space(run, 8);
  SearchOptions options;
  options.threads = 1;
  const SearchResult one = search(run, false, space, options);
  options.threads = 3;
  const SearchResult three = search(run, false, space, options);
  EXPECT_EQ(numbers(one.best), numbers(three.best));
  EXPECT_EQ(numbers(one.pareto), numbers(three.pareto));
  EXPECT_EQ(one.counts.priced, three.counts.priced);
  EXPECT_EQ(one.counts.timelines, three.counts.timelines);
}

TEST(Search, EndsWhenItIsToldTo) {
  const PlannedRun run = small_run();
  const SearchSpace space = search_space(run, 8);
  SearchOptions options;
  int calls = 0;
  options.progress = [&](const SearchProgress&) { return ++calls < 4; };
  const SearchResult result = search(run, false, space, options);
  EXPECT_FALSE(result.complete);
  EXPECT_EQ(calls, 4);
}

TEST(Search, FixedDimensionsAreThoseOfEveryCandidate) {
  const PlannedRun run = small_run();
  SearchSpace space = search_space(run, 8);
  fix(space, "tp", "2");
  fix(space, "schedule", "zb-h1");
  fix(space, "recompute", "full");
  fix(space, "zero", "1");
  SearchOptions options;
  options.best = 1000;
  const SearchResult result = search(run, false, space, options);
  ASSERT_FALSE(result.best.empty());
  for (const Priced& one : result.best) {
    EXPECT_EQ(one.candidate.tp, 2);
    EXPECT_EQ(one.candidate.zero, 1);
    EXPECT_EQ(one.candidate.tp * one.candidate.dp * one.candidate.pp * one.candidate.cp, 8);
    if (one.candidate.pp > 1) {
      EXPECT_EQ(one.candidate.schedule, ScheduleKind::kZeroBubbleH1);
    }
    EXPECT_EQ(space.recompute[static_cast<size_t>(one.candidate.recompute)].name, "full");
  }
}

TEST(Search, UnknownDimensionsAndValuesAreNamed) {
  const PlannedRun run = small_run();
  SearchSpace space = search_space(run, 8);
  EXPECT_THROW(fix(space, "tensor", "2"), Error);
  EXPECT_THROW(fix(space, "tp", "two"), Error);
  EXPECT_THROW(fix(space, "tp", "3"), Error);  // of eight
  EXPECT_THROW(fix(space, "zero", "4"), Error);
  EXPECT_THROW(fix(space, "schedule", "2f2b"), Error);
  EXPECT_THROW(fix(space, "recompute", "most"), Error);
  EXPECT_THROW(vary(space, "precision", "bf16,fp4"), Error);
}

}  // namespace
}  // namespace trireme::plan
