#include "trireme/data/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <set>

#include "trireme/base/error.h"

namespace trireme::data {
namespace {

std::vector<uint64_t> all_of(const Permutation& permutation) {
  std::vector<uint64_t> values(permutation.size());
  for (uint64_t i = 0; i < values.size(); ++i) values[i] = permutation(i);
  return values;
}

TEST(Permutation, VisitsEveryIndexExactlyOnceForEverySize) {
  std::mt19937_64 random(7);
  std::vector<uint64_t> sizes;
  for (uint64_t size = 1; size <= 70; ++size) sizes.push_back(size);
  for (int i = 0; i < 30; ++i) sizes.push_back(random() % 20000 + 1);
  for (const uint64_t power : {256U, 1024U, 4096U, 65536U}) {
    sizes.insert(sizes.end(), {power - 1, power, power + 1});
  }
  for (const uint64_t size : sizes) {
    auto values = all_of(Permutation(size, random(), random() % 5));
    std::sort(values.begin(), values.end());
    for (uint64_t i = 0; i < size; ++i) ASSERT_EQ(values[i], i) << "of " << size;
  }
}

TEST(Permutation, DependsOnSeedAndEpochAlone) {
  const auto first = all_of(Permutation(1000, 1, 0));
  EXPECT_EQ(first, all_of(Permutation(1000, 1, 0)));
  EXPECT_NE(first, all_of(Permutation(1000, 2, 0)));
  EXPECT_NE(first, all_of(Permutation(1000, 1, 1)));
}

TEST(Permutation, WorksNearTheLargestSizes) {
  const uint64_t size = (uint64_t{1} << 62) - 57;
  const Permutation permutation(size, 3, 0);
  std::set<uint64_t> seen;
  for (uint64_t i = 0; i < 1000; ++i) {
    EXPECT_LT(permutation(i), size);
    seen.insert(permutation(i));
    seen.insert(permutation(size - 1 - i));
  }
  EXPECT_EQ(seen.size(), 2000U);
}

// A fair shuffle sends each index to each place equally often: over many seeds the counts of a
// chi-squared statistic with n * n cells lie near n * n - n (about (n - 1)^2 degrees of freedom),
// and neighbours do not stay neighbours.
TEST(Permutation, SpreadsLikeAFairShuffle) {
  constexpr uint64_t kSize = 12;
  constexpr int kSeeds = 6000;
  std::vector<double> counts(kSize * kSize, 0);
  int64_t neighbours = 0;
  for (int seed = 0; seed < kSeeds; ++seed) {
    const auto values = all_of(Permutation(kSize, static_cast<uint64_t>(seed), 0));
    for (uint64_t i = 0; i < kSize; ++i) ++counts[i * kSize + values[i]];
    for (uint64_t i = 1; i < kSize; ++i) neighbours += values[i] == values[i - 1] + 1;
  }
  const double expected = double{kSeeds} / kSize;
  double chi_squared = 0;
  for (const double count : counts)
    chi_squared += (count - expected) * (count - expected) / expected;
  // 121 degrees of freedom: mean 121, standard deviation sqrt(2 * 121) = 15.6; five of them either
  // way.
  EXPECT_NEAR(chi_squared, 121, 78);
  // Of the 11 neighbouring pairs each is (k, k + 1) with probability 11 / (12 * 11) = 1 / 12.
  const double mean = kSeeds * 11.0 / 12.0;
  EXPECT_NEAR(static_cast<double>(neighbours), mean, 5 * std::sqrt(mean));
}

void expect_fair(const std::vector<double>& weights, int64_t samples) {
  const Blend blend(weights);
  std::vector<int64_t> used(weights.size(), 0);
  for (int64_t n = 0; n < samples; ++n) {
    const auto [dataset, index] = blend(n);
    ASSERT_EQ(index, used[static_cast<size_t>(dataset)]++);
    for (size_t d = 0; d < weights.size(); ++d) {
      const double owed = blend.weights()[d] * static_cast<double>(n + 1);
      ASSERT_LT(std::abs(static_cast<double>(used[d]) - owed), 1.0)
          << "data set " << d << " after " << n + 1;
    }
  }
}

TEST(Blend, EveryPrefixKeepsTheWeightsWithinOneSample) {
  expect_fair({1}, 100);
  expect_fair({0.7, 0.3}, 1000);
  expect_fair({1, 1, 1}, 1000);
  expect_fair({0.98, 0.01, 0.01}, 5000);
  expect_fair({0.5, 0.25, 0.125, 0.0625, 0.0625}, 1000);
  std::mt19937_64 random(11);
  for (int round = 0; round < 40; ++round) {
    std::vector<double> weights(random() % 9 + 1);
    for (double& weight : weights) weight = static_cast<double>(random() % 200 + 1) / 100;
    expect_fair(weights, 3000);
  }
}

TEST(Blend, WholeAndDecimalWeightsAreExact) {
  EXPECT_EQ(Blend(std::vector<double>{3, 1}).period(), 4);
  EXPECT_EQ(Blend(std::vector<double>{0.7, 0.3}).period(), 10);
  EXPECT_EQ(Blend(std::vector<double>{0.25, 0.5}).weights(),
            (std::vector<double>{1.0 / 3, 2.0 / 3}));
}

TEST(Blend, OtherWeightsAreWithinAMillionth) {
  const std::vector<double> weights{std::sqrt(2.0), std::exp(1.0), 1e-4};
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  const Blend blend(weights);
  for (size_t d = 0; d < weights.size(); ++d)
    EXPECT_NEAR(blend.weights()[d], weights[d] / sum, 1.5e-6);
  // Far beyond the first period, without having walked there.
  const int64_t far = int64_t{1} << 50;
  int64_t before[3];
  for (int i = 0; i < 3; ++i) before[i] = -1;
  for (int64_t n = far; n < far + 10000; ++n) {
    const auto [dataset, index] = blend(n);
    if (before[dataset] >= 0) {
      ASSERT_EQ(index, before[dataset] + 1);
    }
    before[dataset] = index;
  }
}

TEST(Blend, RefusesWeightsThatAreNotPositive) {
  for (const double bad : {0.0, -1.0, std::nan(""), HUGE_VAL}) {
    try {
      const Blend blend(std::vector<double>{1, bad});
      ADD_FAILURE() << bad << " was accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kConfig);
    }
  }
}

}  // namespace
}  // namespace trireme::data
