#include "trireme/kernels/kernel_timing.h"

#include <gtest/gtest.h>

#include <set>

#include "trireme/base/error.h"

namespace trireme::kernels {
namespace {

TEST(KernelTimingTest, TimesEachKernelInBothPrecisions) {
  for (const c10::ScalarType dtype : {c10::kFloat, c10::kBFloat16}) {
    const auto timings = time_kernels({.rows = 32,
                                       .seq_len = 16,
                                       .hidden = 32,
                                       .heads = 4,
                                       .kv_heads = 2,
                                       .feed_forward = 48,
                                       .vocab_size = 50,
                                       .dtype = dtype},
                                      0.0);
    std::set<std::string> names;
    for (const KernelTiming& timing : timings) {
      EXPECT_TRUE(names.insert(timing.name).second) << timing.name;
      EXPECT_EQ(timing.rates.size(), 3u) << timing.name;
      for (const double rate : timing.rates) EXPECT_GT(rate, 0) << timing.name;
    }
    EXPECT_EQ(names.size(), 19u);
  }
}

TEST(KernelTimingTest, RefusesShapesThatDoNotDivide) {
  EXPECT_THROW(time_kernels({.rows = 10, .seq_len = 4}), Error);
  EXPECT_THROW(time_kernels({.hidden = 100, .heads = 12}), Error);
}

}  // namespace
}  // namespace trireme::kernels
