#include "trireme/kernels/cpu/router_scores.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace trireme::kernels {
namespace {

TEST(RouterScoresTest, MatchDoublePrecisionForAnyNumberOfExperts) {
  std::mt19937 random(3);
  const auto& kernels = cpu::router_score_kernels();
  for (size_t n = 1; n <= 70; ++n) {
    std::uniform_real_distribution<float> draw(-30.0f, 30.0f);
    std::vector<float> z(n);
    for (float& value : z) value = draw(random);
    const double top = *std::max_element(z.begin(), z.end());
    double sum = 0.0;
    for (const float value : z) sum += std::exp(static_cast<double>(value));

    // One more element than there are experts: nothing past them may be written.
    std::vector<float> p(n + 1, -7.0f);
    EXPECT_NEAR(kernels.softmax(z.data(), n, p.data()), std::log(sum), 1e-5) << n;
    EXPECT_EQ(p[n], -7.0f);
    double entropy = 0.0;
    for (size_t e = 0; e < n; ++e) {
      const double expected = std::exp(static_cast<double>(z[e])) / sum;
      // Half a unit in the last place of z - top, and a few of the exponential and the sum.
      const double bound = (6.0 + 0.5 * (top - z[e])) * std::numeric_limits<float>::epsilon();
      EXPECT_NEAR(p[e], expected, bound * expected + 1e-37) << e << " of " << n;
      entropy -= expected * std::log(expected);
    }
    std::vector<double> sums(n + 1, 0.25);
    EXPECT_NEAR(kernels.add_shares(p.data(), n, 1.0f, sums.data()), entropy, 1e-6) << n;
    for (size_t e = 0; e < n; ++e) EXPECT_EQ(sums[e], 0.25 + static_cast<double>(p[e]));
    EXPECT_EQ(sums[n], 0.25);

    std::vector<float> in_place = z;
    kernels.softmax(in_place.data(), n, in_place.data());
    for (size_t e = 0; e < n; ++e) EXPECT_EQ(in_place[e], p[e]);

    p.assign(n + 1, -7.0f);
    kernels.sigmoid(z.data(), n, p.data());
    for (size_t e = 0; e < n; ++e) {
      const double expected = 1.0 / (1.0 + std::exp(-static_cast<double>(z[e])));
      const double bound = (6.0 + 0.5 * std::abs(z[e])) * std::numeric_limits<float>::epsilon();
      EXPECT_NEAR(p[e], expected, bound * expected + 1e-37);
    }
    EXPECT_EQ(p[n], -7.0f);
  }
}

TEST(RouterScoresTest, AShareOfZeroHasNoEntropyAndNanStaysNan) {
  const auto& kernels = cpu::router_score_kernels();
  const std::vector<float> apart = {200.0f, 0.0f, -200.0f};
  std::vector<float> p(3);
  EXPECT_EQ(kernels.softmax(apart.data(), 3, p.data()), 200.0f);
  EXPECT_EQ(p, (std::vector<float>{1.0f, 0.0f, 0.0f}));
  std::vector<double> sums(3, 0.0);
  EXPECT_EQ(kernels.add_shares(p.data(), 3, 1.0f, sums.data()), 0.0);
  EXPECT_EQ(sums, (std::vector<double>{1.0, 0.0, 0.0}));

  const std::vector<float> broken = {1.0f, std::numeric_limits<float>::quiet_NaN(), 2.0f};
  EXPECT_TRUE(std::isnan(kernels.softmax(broken.data(), 3, p.data())));
  EXPECT_TRUE(std::isnan(p[0]));
  kernels.sigmoid(broken.data(), 3, p.data());
  EXPECT_TRUE(std::isnan(p[1]));
  EXPECT_FALSE(std::isnan(p[0]));
}

}  // namespace
}  // namespace trireme::kernels
