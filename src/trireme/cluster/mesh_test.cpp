#include "trireme/cluster/mesh.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>

#include "trireme/base/error.h"

namespace trireme::cluster {
namespace {

using ::testing::ElementsAre;

// Every shape up to `largest` ranks, with every folding and every shard.
template <class Body>
void for_each_shape(int largest, const Body& body) {
  for (int dp = 1; dp <= largest; ++dp) {
    for (int tp = 1; dp * tp <= largest; ++tp) {
      for (int pp = 1; dp * tp * pp <= largest; ++pp) {
        for (int cp = 1; dp * tp * pp * cp <= largest; ++cp) {
          const int stage = dp * tp * cp;
          for (int ep = 1; ep <= stage; ++ep) {
            for (int etp = 1; ep * etp <= stage; ++etp) {
              if (stage % (ep * etp) != 0) continue;
              // One shard for each shape of the other dimensions would do; all where the world is small.
              for (int shard = 0; shard <= (ep * etp == 1 ? dp : 0); ++shard) {
                if (shard == 0 || dp % shard == 0)
                  body(Mesh({.dp = dp,
                             .tp = tp,
                             .pp = pp,
                             .cp = cp,
                             .ep = ep,
                             .etp = etp,
                             .shard = shard}));
              }
            }
          }
        }
      }
    }
  }
}

TEST(Mesh, CountsRanksFromTensorToPipeline) {
  // By hand from rank = ((pp_i dp + dp_i) cp + cp_i) tp + tp_i with dp 3, cp 2, tp 2, pp 2.
  const Mesh mesh({.dp = 3, .tp = 2, .pp = 2, .cp = 2});
  EXPECT_EQ(mesh.size(), 24);
  EXPECT_EQ(mesh.coordinates(0), (Coordinates{}));
  EXPECT_EQ(mesh.coordinates(19), (Coordinates{.dp = 1, .tp = 1, .pp = 1, .cp = 1}));
  EXPECT_EQ(mesh.rank(Coordinates{.dp = 2, .tp = 0, .pp = 0, .cp = 1}), 10);
  EXPECT_THAT(mesh.group(Dimension::kTensor, 19), ElementsAre(18, 19));
  EXPECT_THAT(mesh.group(Dimension::kContext, 19), ElementsAre(17, 19));
  EXPECT_THAT(mesh.group(Dimension::kData, 19), ElementsAre(15, 19, 23));
  EXPECT_THAT(mesh.group(Dimension::kPipeline, 19), ElementsAre(7, 19));
  EXPECT_THAT(mesh.group(Dimension::kDataContext, 19), ElementsAre(13, 15, 17, 19, 21, 23));
  EXPECT_EQ(mesh.index_in_group(Dimension::kDataContext, 19), 3);
}

TEST(Mesh, FoldsExpertsOverTheStage) {
  // Two experts' ranks across the tensor parallel pair and the next data parallel rank.
  const Mesh mesh({.dp = 2, .tp = 2, .pp = 2, .ep = 2, .etp = 1});
  EXPECT_EQ(mesh.expert_data_size(), 2);
  EXPECT_THAT(mesh.groups(Dimension::kExpert), ElementsAre(ElementsAre(0, 1), ElementsAre(2, 3),
                                                           ElementsAre(4, 5), ElementsAre(6, 7)));
  EXPECT_THAT(
      mesh.groups(Dimension::kExpertData),
      ElementsAre(ElementsAre(0, 2), ElementsAre(1, 3), ElementsAre(4, 6), ElementsAre(5, 7)));
  const Mesh with_tensor({.dp = 2, .tp = 2, .ep = 2, .etp = 2});
  EXPECT_THAT(with_tensor.groups(Dimension::kExpert),
              ElementsAre(ElementsAre(0, 2), ElementsAre(1, 3)));
  EXPECT_THAT(with_tensor.groups(Dimension::kExpertTensor),
              ElementsAre(ElementsAre(0, 1), ElementsAre(2, 3)));
}

TEST(Mesh, ShardsInsideBlocksOfDataParallelRanks) {
  const Mesh mesh({.dp = 6, .tp = 2, .shard = 2});
  EXPECT_THAT(mesh.group(Dimension::kShard, 5), ElementsAre(5, 7));
  EXPECT_THAT(mesh.group(Dimension::kReplicate, 5), ElementsAre(1, 5, 9));
  // With context parallelism every rank of a block's sequences takes a share.
  const Mesh context({.dp = 2, .cp = 2, .shard = 1});
  EXPECT_THAT(context.groups(Dimension::kShard), ElementsAre(ElementsAre(0, 1), ElementsAre(2, 3)));
  EXPECT_THAT(context.groups(Dimension::kReplicate),
              ElementsAre(ElementsAre(0, 2), ElementsAre(1, 3)));
}

TEST(Mesh, GroupsPartitionTheWorldForEveryShapeTo64Ranks) {
  int shapes = 0;
  for_each_shape(64, [&](const Mesh& mesh) {
    ++shapes;
    for (const Dimension dimension : kDimensions) {
      std::vector<int> seen(static_cast<size_t>(mesh.size()), 0);
      const std::vector<std::vector<int>> groups = mesh.groups(dimension);
      int first = -1;
      for (const std::vector<int>& group : groups) {
        ASSERT_EQ(static_cast<int>(group.size()), mesh.group_size(dimension))
            << to_string(dimension);
        ASSERT_GT(group.front(), first);
        first = group.front();
        ASSERT_TRUE(std::is_sorted(group.begin(), group.end()));
        for (const int rank : group) ++seen[static_cast<size_t>(rank)];
      }
      ASSERT_EQ(std::count(seen.begin(), seen.end(), 1), mesh.size()) << to_string(dimension);
    }
  });
  EXPECT_GT(shapes, 1000);
}

TEST(Mesh, GroupsOfARankAreThoseOfTheListAndDimensionsMeetInItAlone) {
  for_each_shape(12, [&](const Mesh& mesh) {
    for (int rank = 0; rank < mesh.size(); ++rank) {
      ASSERT_EQ(mesh.rank(mesh.coordinates(rank)), rank);
      ASSERT_EQ(mesh.rank(mesh.expert_coordinates(rank)), rank);
      ASSERT_EQ(mesh.coordinates(rank).pp, mesh.expert_coordinates(rank).pp);
      for (const Dimension dimension : kDimensions) {
        const std::vector<int> mine = mesh.group(dimension, rank);
        int found = 0;
        for (const std::vector<int>& group : mesh.groups(dimension)) {
          if (group == mine) ++found;
        }
        ASSERT_EQ(found, 1) << to_string(dimension);
        ASSERT_EQ(mine[static_cast<size_t>(mesh.index_in_group(dimension, rank))], rank);
      }
      // Two ranks of one group along a dimension are in different groups along the others.
      const auto meet = [&](Dimension a, Dimension b) {
        std::vector<int> both;
        const std::vector<int> first = mesh.group(a, rank);
        const std::vector<int> second = mesh.group(b, rank);
        std::set_intersection(first.begin(), first.end(), second.begin(), second.end(),
                              std::back_inserter(both));
        EXPECT_THAT(both, ElementsAre(rank)) << to_string(a) << " and " << to_string(b);
      };
      meet(Dimension::kTensor, Dimension::kDataContext);
      meet(Dimension::kTensor, Dimension::kPipeline);
      meet(Dimension::kContext, Dimension::kData);
      meet(Dimension::kStage, Dimension::kPipeline);
      meet(Dimension::kShard, Dimension::kReplicate);
      meet(Dimension::kExpert, Dimension::kExpertTensor);
      meet(Dimension::kExpert, Dimension::kExpertData);
      meet(Dimension::kExpertData, Dimension::kExpertTensor);
    }
  });
}

TEST(Mesh, RefusesShapesThatDoNotDivide) {
  EXPECT_THROW(Mesh({.dp = 2, .ep = 3}), Error);
  EXPECT_THROW(Mesh({.dp = 4, .shard = 3}), Error);
  EXPECT_THROW(Mesh({.dp = 0}), Error);
  const Mesh mesh({.dp = 2});
  EXPECT_THROW(mesh.coordinates(2), Error);
  EXPECT_THROW(mesh.coordinates(-1), Error);
}

}  // namespace
}  // namespace trireme::cluster
