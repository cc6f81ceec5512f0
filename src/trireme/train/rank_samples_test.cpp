#include "trireme/train/rank_samples.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace trireme::train {
namespace {

plan::Strategy strategy_of(int64_t dp, int64_t zero, int64_t sequences, int64_t micro,
                           int64_t lanes) {
  plan::Strategy strategy;
  strategy.sequences = sequences;
  strategy.micro = micro;
  strategy.lanes = lanes;
  strategy.parallel.dp = dp;
  strategy.parallel.zero = zero;
  return strategy;
}

// What the ranks' programs compute in a step is exactly the samples that one rank would compute, lane by lane.
TEST(RankSamples, RanksShareEveryStepsSamples) {
  optim::BatchRampSpec ramp;
  ramp.full = 32;
  ramp.start = 16;
  ramp.increment = 16;
  ramp.steps = 3;
  for (const int64_t dp : {1, 2, 3, 4, 8}) {
    for (const int64_t zero : {0, 1, 2}) {
      const plan::Strategy strategy = strategy_of(dp, zero, 32, 2, 8);
      const int64_t steps = 5;
      for (int64_t step = 0; step < steps; ++step) {
        const int64_t sequences = optim::batch_sequences(ramp, step);
        const int64_t begin = optim::sequences_before(ramp, step);
        const int64_t per_lane = sequences / strategy.micro / strategy.lanes;
        std::vector<int64_t> seen;
        for (int rank = 0; rank < dp; ++rank) {
          const RankSamples samples(strategy, ramp, steps, rank);
          const data::SampleOrder order = samples.order();
          int64_t at = samples.micro_batches_before(step);
          for (const int64_t lane : plan::lanes_of(strategy, rank, dp)) {
            for (int64_t i = 0; i < per_lane; ++i) {
              const data::SampleRange range = order(at++);
              EXPECT_EQ(range.rows, 2);
              EXPECT_EQ(range.first, begin + 2 * (lane * per_lane + i));
              seen.push_back(range.first);
            }
          }
          EXPECT_EQ(at, samples.micro_batches_before(step + 1));
        }
        std::ranges::sort(seen);
        ASSERT_EQ(seen.size(), static_cast<size_t>(sequences / 2));
        for (size_t i = 0; i < seen.size(); ++i)
          EXPECT_EQ(seen[i], begin + 2 * static_cast<int64_t>(i));
      }
    }
  }
}

}  // namespace
}  // namespace trireme::train
