#include "trireme/cluster/lane_tree.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <map>
#include <set>
#include <string>

#include "trireme/base/error.h"

namespace trireme::cluster {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

/// The sum that every layout must make, by definition: halves first, recursively.
std::string tree_of(int64_t first, int64_t size) {
  if (size == 1) return std::to_string(first);
  return "(" + tree_of(first, size / 2) + "+" + tree_of(first + size / 2, size / 2) + ")";
}

/// What a rank with lanes [first, last) holds once its last lane is finished, as expressions in ascending order. Fails if
/// it ever adds what it does not hold.
std::vector<std::string> rank_sums(int64_t first, int64_t last) {
  std::map<int64_t, std::string> held;
  for (int64_t lane = first; lane < last; ++lane) {
    held[lane] = std::to_string(lane);
    for (const LaneNode& left : carries(first, lane)) {
      EXPECT_TRUE(held.contains(left.first) && held.contains(left.first + left.size));
      held[left.first] = "(" + held[left.first] + "+" + held[left.first + left.size] + ")";
      held.erase(left.first + left.size);
    }
    EXPECT_LE(held.size(), 2U * std::bit_width(static_cast<uint64_t>(last)));
  }
  std::vector<std::string> sums;
  for (const auto& [at, expression] : held) sums.push_back(expression);
  return sums;
}

TEST(LaneTree, EveryNumberOfRanksMakesTheSameSum) {
  for (int64_t lanes = 1; lanes <= 64; lanes *= 2) {
    for (int64_t ranks = 1; ranks <= lanes; ++ranks) {
      SCOPED_TRACE(std::to_string(ranks) + " ranks, " + std::to_string(lanes) + " lanes");
      std::vector<std::string> pieces;
      for (int64_t index = 0; index < ranks; ++index) {
        const LaneRange range = lane_range(index, ranks, lanes);
        const std::vector<std::string> sums = rank_sums(range.first, range.last);
        const std::vector<LaneNode> nodes = cover(range.first, range.last);
        ASSERT_EQ(sums.size(), nodes.size());
        for (size_t i = 0; i < nodes.size(); ++i)
          EXPECT_EQ(sums[i], tree_of(nodes[i].first, nodes[i].size));
        pieces.insert(pieces.end(), sums.begin(), sums.end());
      }
      const std::vector<LaneNode> nodes = cover_of_all(ranks, lanes);
      ASSERT_EQ(pieces.size(), nodes.size());
      std::set<int> gone;
      for (const LaneAddition& addition : tree_order(nodes)) {
        const auto left = static_cast<size_t>(addition.left);
        const auto right = static_cast<size_t>(addition.right);
        EXPECT_FALSE(gone.contains(addition.left));
        EXPECT_TRUE(gone.insert(addition.right).second) << "node " << right << " is added twice";
        pieces[left] = "(" + pieces[left] + "+" + pieces[right] + ")";
      }
      EXPECT_EQ(gone.size(), pieces.size() - 1);
      EXPECT_EQ(pieces[0], tree_of(0, lanes));
    }
  }
}

TEST(LaneTree, RangesAreContiguousAndEven) {
  for (int64_t lanes = 1; lanes <= 64; lanes *= 2) {
    for (int64_t ranks = 1; ranks <= lanes; ++ranks) {
      int64_t next = 0;
      for (int64_t index = 0; index < ranks; ++index) {
        const LaneRange range = lane_range(index, ranks, lanes);
        EXPECT_EQ(range.first, next);
        EXPECT_GE(range.last - range.first, lanes / ranks);
        EXPECT_LE(range.last - range.first, (lanes + ranks - 1) / ranks);
        for (int64_t lane = range.first; lane < range.last; ++lane)
          EXPECT_EQ(rank_of_lane(lane, ranks, lanes), index);
        next = range.last;
      }
      EXPECT_EQ(next, lanes);
    }
  }
}

TEST(LaneTree, APowerOfTwoOfRanksHoldsOneNodeEach) {
  for (int64_t lanes = 1; lanes <= 64; lanes *= 2) {
    for (int64_t ranks = 1; ranks <= lanes; ranks *= 2)
      EXPECT_EQ(cover_of_all(ranks, lanes).size(), static_cast<size_t>(ranks));
  }
}

TEST(LaneTree, ThreeOfEight) {
  EXPECT_THAT(cover(0, 2), ElementsAre(LaneNode{0, 2}));
  EXPECT_THAT(cover(2, 5), ElementsAre(LaneNode{2, 2}, LaneNode{4, 1}));
  EXPECT_THAT(cover(5, 8), ElementsAre(LaneNode{5, 1}, LaneNode{6, 2}));
  // 0: lanes 0 1, 1: lanes 2 3, 2: lane 4, 3: lane 5, 4: lanes 6 7.
  EXPECT_THAT(tree_order(cover_of_all(3, 8)), ElementsAre(LaneAddition{0, 1}, LaneAddition{2, 3},
                                                          LaneAddition{2, 4}, LaneAddition{0, 2}));
  EXPECT_THAT(carries(2, 3), ElementsAre(LaneNode{2, 1}));
  EXPECT_THAT(carries(5, 7), ElementsAre(LaneNode{6, 1}));
  EXPECT_THAT(carries(0, 7), ElementsAre(LaneNode{6, 1}, LaneNode{4, 2}, LaneNode{0, 4}));
  EXPECT_THAT(carries(0, 4), IsEmpty());
}

TEST(LaneTree, RefusesWhatIsNoTree) {
  EXPECT_THROW(lane_range(0, 1, 6), Error);
  EXPECT_THROW(lane_range(0, 9, 8), Error);
  EXPECT_THROW(lane_range(3, 3, 8), Error);
  EXPECT_THROW(tree_order({{0, 2}, {1, 1}}), Error);
  EXPECT_THROW(tree_order({{2, 1}, {0, 1}}), Error);
}

}  // namespace
}  // namespace trireme::cluster
