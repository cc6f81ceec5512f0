#include "trireme/cluster/slices.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "trireme/base/error.h"
#include "trireme/cluster/lane_tree.h"

namespace trireme::cluster {
namespace {

using ::testing::ElementsAre;

TEST(Slices, AreWholeBlocksAndEven) {
  std::mt19937 random(3);
  for (int draw = 0; draw < 300; ++draw) {
    const int64_t elements = std::uniform_int_distribution<int64_t>(0, 5000)(random);
    const int64_t ranks = std::uniform_int_distribution<int64_t>(1, 17)(random);
    const int64_t block = std::uniform_int_distribution<int64_t>(1, 300)(random);
    const std::vector<int64_t> bounds = slice_bounds(elements, ranks, block);
    ASSERT_EQ(bounds.size(), static_cast<size_t>(ranks) + 1);
    EXPECT_EQ(bounds.front(), 0);
    EXPECT_EQ(bounds.back(), elements);
    int64_t fewest = elements;
    int64_t most = 0;
    for (size_t r = 0; r < static_cast<size_t>(ranks); ++r) {
      ASSERT_LE(bounds[r], bounds[r + 1]);
      EXPECT_TRUE(bounds[r] % block == 0 || bounds[r] == elements);
      const int64_t blocks = (bounds[r + 1] - bounds[r] + block - 1) / block;
      fewest = std::min(fewest, blocks);
      most = std::max(most, blocks);
    }
    EXPECT_LE(most - fewest, 1);
  }
}

TEST(Slices, AtMatricesAreTheNearestToEven) {
  EXPECT_THAT(slice_bounds_at({0, 10, 20, 30, 40}, 2), ElementsAre(0, 20, 40));
  EXPECT_THAT(slice_bounds_at({0, 10, 20, 30, 40}, 3), ElementsAre(0, 10, 30, 40));
  EXPECT_THAT(slice_bounds_at({0, 90, 100}, 2), ElementsAre(0, 90, 100));
  EXPECT_THAT(slice_bounds_at({0, 100}, 4), ElementsAre(0, 0, 0, 100, 100));
  EXPECT_THAT(slice_bounds_at({0}, 2), ElementsAre(0, 0, 0));
  EXPECT_THROW(slice_bounds_at({0, 5, 3}, 2), Error);
}

// What a ring sends, (n - 1) / n of the gradient per rank, for powers of two; another number adds what its ranges cut out
// of the tree.
TEST(Slices, SendWhatTheoryNeeds) {
  constexpr int64_t kElements = 1 << 20;
  for (int64_t lanes = 1; lanes <= 16; lanes *= 2) {
    for (int64_t ranks = 1; ranks <= lanes; ++ranks) {
      const std::vector<int64_t> bounds = slice_bounds(kElements, ranks, 1024);
      for (int64_t i = 0; i < ranks; ++i) {
        const LaneRange range = lane_range(i, ranks, lanes);
        const auto nodes = static_cast<int64_t>(cover(range.first, range.last).size());
        const auto at = static_cast<size_t>(i);
        const int64_t sent = nodes * (kElements - (bounds[at + 1] - bounds[at]));
        const double ring = static_cast<double>(kElements) * static_cast<double>(ranks - 1) /
                            static_cast<double>(ranks);
        if ((ranks & (ranks - 1)) == 0) {
          EXPECT_LE(static_cast<double>(sent), 1.02 * ring);
          EXPECT_EQ(nodes, 1);
        } else {
          EXPECT_LE(static_cast<double>(sent), 1.02 * ring * static_cast<double>(nodes));
        }
      }
    }
  }
}

}  // namespace
}  // namespace trireme::cluster
