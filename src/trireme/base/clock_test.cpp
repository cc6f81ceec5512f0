#include "trireme/base/clock.h"

#include <gtest/gtest.h>

namespace trireme {
namespace {

TEST(FakeClockTest, MovesOnlyWhenTold) {
  FakeClock clock(5);
  EXPECT_EQ(clock.now_ns(), 5);
  clock.advance_ns(10);
  clock.advance_s(2.5);
  EXPECT_EQ(clock.now_ns(), 2'500'000'015);
  EXPECT_DOUBLE_EQ(clock.now_s(), 2.500000015);
}

TEST(SteadyClockTest, NeverGoesBack) {
  int64_t last = steady_clock().now_ns();
  for (int i = 0; i < 1000; ++i) {
    const int64_t now = steady_clock().now_ns();
    EXPECT_GE(now, last);
    last = now;
  }
}

TEST(WallTimeTest, CountsFromTheEpoch) {
  EXPECT_GT(wall_time_s(), 1.7e9);  // November 2023
}

}  // namespace
}  // namespace trireme
