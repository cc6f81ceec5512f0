#include "trireme/infer/sampling.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "trireme/base/error.h"

namespace trireme::infer {
namespace {

// Probabilities 0.5, 0.25, 0.125, 0.125 at temperature 1.
const std::vector<float> kLogits = {std::log(0.125f), std::log(0.5f), std::log(0.125f),
                                    std::log(0.25f)};

std::vector<int32_t> ids_of(const std::vector<Candidate>& candidates) {
  std::vector<int32_t> ids;
  for (const Candidate& candidate : candidates) ids.push_back(candidate.id);
  return ids;
}

TEST(SamplingTest, KeepsAllInOrderOfProbabilityWithTiesBySmallerId) {
  const auto candidates = filter_candidates(kLogits, {});
  EXPECT_EQ(ids_of(candidates), (std::vector<int32_t>{1, 3, 0, 2}));
  EXPECT_NEAR(candidates[0].probability, 0.5, 1e-6);
  EXPECT_NEAR(candidates[3].probability, 0.125, 1e-6);
}

TEST(SamplingTest, TopKKeepsTheLargestAndRenormalises) {
  const auto candidates = filter_candidates(kLogits, {.top_k = 2});
  EXPECT_EQ(ids_of(candidates), (std::vector<int32_t>{1, 3}));
  EXPECT_NEAR(candidates[0].probability, 2.0 / 3.0, 1e-6);
}

TEST(SamplingTest, TopPKeepsTheSmallestHeadThatReachesP) {
  EXPECT_EQ(ids_of(filter_candidates(kLogits, {.top_p = 0.5})), (std::vector<int32_t>{1}));
  EXPECT_EQ(ids_of(filter_candidates(kLogits, {.top_p = 0.6})), (std::vector<int32_t>{1, 3}));
  EXPECT_EQ(ids_of(filter_candidates(kLogits, {.top_p = 1e-9})), (std::vector<int32_t>{1}));
}

TEST(SamplingTest, MinPIsRelativeToTheLargest) {
  EXPECT_EQ(ids_of(filter_candidates(kLogits, {.min_p = 0.4})), (std::vector<int32_t>{1, 3}));
}

TEST(SamplingTest, TemperatureSharpens) {
  const auto candidates = filter_candidates(kLogits, {.temperature = 0.5});
  // Squares: 0.25, 0.0625, 0.015625 twice.
  EXPECT_NEAR(candidates[0].probability, 0.25 / 0.34375, 1e-6);
}

TEST(SamplingTest, GreedyTakesTheFirstOfEqualLogits) {
  const std::vector<float> logits = {1.0f, 3.0f, 3.0f};
  EXPECT_EQ(sample(logits, {}, {.temperature = 0.0}, 0, 0), 1);
}

TEST(SamplingTest, RepetitionPenaltyDividesPositiveAndMultipliesNegativeOnce) {
  std::vector<float> logits = {2.0f, -2.0f, 1.0f};
  const std::vector<int32_t> seen = {0, 1, 1, 0};
  apply_repetition_penalty(logits, seen, 2.0);
  EXPECT_EQ(logits, (std::vector<float>{1.0f, -4.0f, 1.0f}));
}

TEST(SamplingTest, DrawsFollowTheDistributionAndDependOnlyOnTheirPlace) {
  std::map<int32_t, int> counts;
  constexpr int kDraws = 20000;
  for (int i = 0; i < kDraws; ++i) ++counts[sample(kLogits, {}, {}, 0, static_cast<uint64_t>(i))];
  // Five standard deviations of a binomial with p = 0.5 and n = 20000 are 354.
  EXPECT_NEAR(counts[1], kDraws / 2, 354);
  EXPECT_NEAR(counts[3], kDraws / 4, 307);
  EXPECT_EQ(sample(kLogits, {}, {.seed = 7}, 3, 9), sample(kLogits, {}, {.seed = 7}, 3, 9));
}

TEST(SamplingTest, RefusesOptionsOutOfRangeByName) {
  for (const SamplingOptions& options :
       {SamplingOptions{.temperature = -1.0}, SamplingOptions{.top_k = -1},
        SamplingOptions{.top_p = 0.0}, SamplingOptions{.min_p = 1.5},
        SamplingOptions{.repetition_penalty = 0.0}}) {
    EXPECT_THROW(check_sampling_options(options), Error);
  }
}

}  // namespace
}  // namespace trireme::infer
