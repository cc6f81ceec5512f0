#include "trireme/kernels/expert_timing.h"

#include <gtest/gtest.h>

#include <numeric>

#include "trireme/base/error.h"

namespace trireme::kernels {
namespace {

TEST(ExpertTimingTest, RowsAddUpAndFollowTheirLaw) {
  for (const int64_t rows : {1, 7, 100, 4096}) {
    for (const int64_t experts : {1, 3, 64}) {
      for (const bool skewed : {false, true}) {
        const auto counts = rows_of_experts({.rows = rows, .experts = experts, .skewed = skewed});
        EXPECT_EQ(std::accumulate(counts.begin(), counts.end(), int64_t{0}), rows);
        EXPECT_EQ(counts.size(), static_cast<size_t>(experts));
        for (const int64_t count : counts) EXPECT_GE(count, 0);
      }
    }
  }
  // 1, 1/2, 1/3, 1/4 of 25/12.
  EXPECT_EQ(rows_of_experts({.rows = 2500, .experts = 4, .skewed = true}),
            (std::vector<int64_t>{1200, 600, 400, 300}));
}

TEST(ExpertTimingTest, TimesEveryProduct) {
  for (const c10::ScalarType dtype : {c10::kFloat, c10::kBFloat16}) {
    const auto timings = time_experts({.rows = 40,
                                       .experts = 3,
                                       .hidden = 24,
                                       .expert_hidden = 20,
                                       .skewed = true,
                                       .dtype = dtype},
                                      2, 0.0);
    ASSERT_EQ(timings.size(), 3u);
    for (const ExpertTiming& timing : timings) {
      ASSERT_EQ(timing.grouped.size(), 2u);
      ASSERT_EQ(timing.dense.size(), 2u);
      for (size_t i = 0; i < 2; ++i) {
        EXPECT_GT(timing.grouped[i], 0.0);
        EXPECT_GT(timing.dense[i], 0.0);
      }
    }
  }
  EXPECT_THROW(time_experts({.rows = 0}, 1, 0.0), Error);
}

}  // namespace
}  // namespace trireme::kernels
