#include "trireme/comm/local/timetable.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <tuple>
#include <vector>

namespace trireme::comm {
namespace {

LocalOptions links_of(double latency_s, double bytes_per_s) {
  LocalOptions options;
  options.inside_node = {latency_s, bytes_per_s};
  return options;
}

TEST(Timetable, TakesLatencyAndBytesOverRate) {
  Timetable table(2, links_of(0.5, 100));
  const Links::Passage passage = table.enter(0, 1, 150, 10.0);
  EXPECT_DOUBLE_EQ(passage.start_s, 10.0);
  EXPECT_DOUBLE_EQ(passage.end_s, 12.0);
}

TEST(Timetable, WhoIsNamedLaterButReadyEarlierIsNotBehind) {
  Timetable table(3, links_of(0, 100));
  EXPECT_DOUBLE_EQ(table.enter(0, 1, 100, 5.0).start_s, 5.0);
  EXPECT_DOUBLE_EQ(table.enter(0, 2, 100, 1.0).start_s, 1.0);
  // Two seconds do not fit before the one at 5, and not between it and the one at 1.
  EXPECT_DOUBLE_EQ(table.enter(0, 1, 200, 0.0).start_s, 2.0);
  EXPECT_DOUBLE_EQ(table.enter(0, 1, 200, 0.0).start_s, 6.0);
}

TEST(Timetable, RoundsOfAnExchangeLoseNothing) {
  for (int size = 2; size <= 16; ++size) {
    Timetable table(size, links_of(0.01, 1000));
    double end_s = 0;
    for (int round = 1; round < size; ++round) {
      for (int from = 0; from < size; ++from)
        end_s = std::max(end_s, table.enter(from, (from + round) % size, 50, 3.0).end_s);
    }
    EXPECT_NEAR(end_s, 3.0 + (size - 1) * 0.06, 1e-9) << size << " ranks";
  }
}

TEST(Timetable, LinksAreNeverUsedTwiceAtOnceAndNeverIdleForNothing) {
  std::mt19937 random(9);
  Timetable table(4, links_of(0.01, 1000));
  struct Sent {
    int from, to;
    double ready_s;
    Links::Passage passage;
  };
  std::vector<Sent> sent;
  for (int i = 0; i < 200; ++i) {
    const int from = static_cast<int>(random() % 4);
    const int to = (from + 1 + static_cast<int>(random() % 3)) % 4;
    const double ready_s = static_cast<double>(random() % 1000) * 1e-2;
    const Links::Passage passage =
        table.enter(from, to, static_cast<int64_t>(random() % 100), ready_s);
    EXPECT_GE(passage.start_s, ready_s);
    // Where it had to wait, one of its links was in use right before it.
    const bool waited = passage.start_s > ready_s;
    bool excused = false;
    for (const Sent& other : sent) {
      if (other.from != from && other.to != to) continue;
      EXPECT_TRUE(other.passage.end_s <= passage.start_s || passage.end_s <= other.passage.start_s);
      excused = excused || other.passage.end_s == passage.start_s;
    }
    EXPECT_TRUE(!waited || excused);
    sent.push_back({from, to, ready_s, passage});
  }
}

}  // namespace
}  // namespace trireme::comm
