#include "trireme/plan/goodput.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace trireme::plan {
namespace {

// Failures drawn one by one: the definition of the model, with nothing of its formula.
double simulated_share(double interval, double checkpoint, double restart, double rate,
                       unsigned seed) {
  std::mt19937 random(seed);
  std::exponential_distribution<double> until_failure(rate);
  double wall = 0.0;
  constexpr int kSegments = 20000;
  for (int i = 0; i < kSegments; ++i) {
    for (;;) {
      const double failure = until_failure(random);
      if (failure >= interval + checkpoint) break;
      wall += failure;
      // Restarts fail too, and begin anew.
      for (double again = until_failure(random); again < restart; again = until_failure(random))
        wall += again;
      wall += restart;
    }
    wall += interval + checkpoint;
  }
  return kSegments * interval / wall;
}

TEST(Goodput, IsWhatFailuresOneByOneGive) {
  for (const double rate : {1e-5, 1e-4, 5e-4}) {
    for (const double interval : {600.0, 3600.0}) {
      for (const double restart : {0.0, 900.0}) {
        const double expected = simulated_share(interval, 60.0, restart, rate, 3);
        EXPECT_NEAR(goodput_share(interval, 60.0, restart, rate), expected, 0.015)
            << rate << " " << interval << " " << restart;
      }
    }
  }
}

// Daly's is an estimate: the best share of a scan is hardly better.
TEST(Goodput, BestIntervalIsBestOfAScan) {
  for (const double checkpoint : {2.0, 60.0, 600.0}) {
    for (const double rate : {1e-6, 1e-5, 1e-4}) {
      const double share =
          goodput_share(best_interval_s(checkpoint, rate), checkpoint, 300.0, rate);
      double best = 0.0;
      for (double interval = 1.0; interval < 1e6; interval *= 1.02)
        best = std::max(best, goodput_share(interval, checkpoint, 300.0, rate));
      EXPECT_GE(share, best * 0.998) << checkpoint << " " << rate;
      EXPECT_LE(share, best * 1.0001);
    }
  }
}

TEST(Goodput, WithoutFailuresIsAllOfIt) {
  ReliabilityProfile never;
  never.restart_s = 100.0;
  EXPECT_EQ(goodput(never, 1024.0, 60.0).share, 1.0);
  const TimeToTokens time = time_to_tokens(1e9, 1e6, 2.0, 8.0, never, 60.0, 3.0);
  EXPECT_EQ(time.steps, 1000.0);
  EXPECT_DOUBLE_EQ(time.wall_s, 2000.0);
  EXPECT_DOUBLE_EQ(time.accelerator_hours, 2000.0 * 8.0 / 3600.0);
  EXPECT_DOUBLE_EQ(time.cost, 3.0 * 2000.0 * 8.0 / 3600.0);
}

// The Llama 3 report: over 90 % effective training time with these failures.
TEST(Goodput, OfLlama3IsAboveNinetyPercent) {
  const ReliabilityProfile& published = shipped_profiles().reliability("llama3-h100");
  const double bytes = 405e9 * 12.0;
  const double checkpoint = bytes / (16384.0 * published.checkpoint_bytes_per_s);
  const Goodput result = goodput(published, 16384.0, checkpoint);
  // 54 days of 419 interruptions.
  EXPECT_NEAR(1.0 / result.failures_per_s, 54.0 * 86400.0 / 419.0, 10.0);
  EXPECT_GT(result.share, 0.90);
  EXPECT_LT(result.share, 0.98);
}

}  // namespace
}  // namespace trireme::plan
