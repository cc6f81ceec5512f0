#include "trireme/comm/rank_names.h"

#include <gtest/gtest.h>

namespace trireme::comm {
namespace {

TEST(RankNames, RunsOfThreeAreShortened) {
  EXPECT_EQ(name_ranks({3}), "rank 3");
  EXPECT_EQ(name_ranks({1, 3}), "ranks 1 and 3");
  EXPECT_EQ(name_ranks({1, 2}), "ranks 1 and 2");
  EXPECT_EQ(name_ranks({0, 1, 2}), "ranks 0-2");
  EXPECT_EQ(name_ranks({0, 1, 2, 5, 7}), "ranks 0-2, 5 and 7");
  EXPECT_EQ(name_ranks({0, 2, 3, 8, 9, 10, 11}), "ranks 0, 2, 3 and 8-11");
}

TEST(RankNames, HostsFollowTheirRanks) {
  EXPECT_EQ(name_rank(2, "beta"), "rank 2 (beta)");
  EXPECT_EQ(name_rank(2, ""), "rank 2");
  EXPECT_EQ(name_ranks_by_host({1, 3}, {}), "ranks 1 and 3");
  EXPECT_EQ(name_ranks_by_host({0, 1, 3}, {"a", "a", "b", "b"}), "ranks 0 and 1 (a), rank 3 (b)");
}

}  // namespace
}  // namespace trireme::comm
