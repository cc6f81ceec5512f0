#include "trireme/nn/attention_tiles.h"

#include <gtest/gtest.h>

#include <random>
#include <set>
#include <utility>

namespace trireme::nn {
namespace {

// Who sees whom, by the definition: the same document, not ahead, within the window.
bool sees(const std::vector<int32_t>& starts, int64_t window, int64_t query, int64_t key) {
  if (key > query || (window > 0 && key <= query - window)) return false;
  for (const int32_t start : starts) {
    if (key < start && start <= query) return false;
  }
  return true;
}

TEST(AttentionTiles, CoverWhatEveryQuerySeesOnce) {
  std::mt19937 random(5);
  const auto pick = [&](int64_t most) {
    return static_cast<int64_t>(random() % static_cast<uint64_t>(most));
  };
  for (int round = 0; round < 60; ++round) {
    const int64_t ranks = int64_t{1} << pick(4);
    const int64_t length = 2 * ranks * (1 + pick(6));
    const int64_t rows = 1 + pick(3);
    const int64_t window = pick(2) == 0 ? 0 : 1 + pick(length);
    const bool cut = pick(2) == 0;
    kernels::Segments segments;
    for (int64_t row = 0; row < rows; ++row) {
      segments.push_back({0});
      for (int32_t at = 1; cut && at < length; ++at) {
        if (pick(5) == 0) segments.back().push_back(at);
      }
    }
    std::set<int64_t> places;
    for (int64_t rank = 0; rank < ranks; ++rank) {
      const auto pieces = cluster::zigzag_pieces(length, ranks, rank);
      std::vector<int64_t> place_of;
      for (const cluster::PlaceRange& piece : pieces) {
        for (int64_t at = piece.first; at < piece.last; ++at) place_of.push_back(at);
      }
      places.insert(place_of.begin(), place_of.end());
      std::set<std::pair<int64_t, int64_t>> met;  // row and place here
      for (const AttentionTile& tile :
           attention_tiles(rows, pieces, cut ? &segments : nullptr, window)) {
        ASSERT_GE(tile.keys, tile.queries);
        for (int64_t row = tile.row; row < tile.row + tile.rows; ++row) {
          for (int64_t i = 0; i < tile.queries; ++i) {
            EXPECT_TRUE(met.insert({row, tile.query + i}).second);
            const int64_t query = place_of[static_cast<size_t>(tile.query + i)];
            EXPECT_EQ(query, tile.key + tile.keys - tile.queries + i);
            for (int64_t key = 0; key < length; ++key) {
              // As the kernel has it.
              const int64_t j = key - tile.key;
              const int64_t own = i + tile.keys - tile.queries;
              const bool computed =
                  j >= 0 && j < tile.keys && j <= own && (window == 0 || j > own - window);
              EXPECT_EQ(computed, sees(segments[static_cast<size_t>(row)], window, query, key));
            }
          }
        }
      }
      EXPECT_EQ(static_cast<int64_t>(met.size()), rows * length / ranks);
    }
    EXPECT_EQ(static_cast<int64_t>(places.size()), length);
  }
}

TEST(AttentionTiles, OfARingMeetEveryPairOnce) {
  std::mt19937 random(6);
  const auto pick = [&](int64_t most) {
    return static_cast<int64_t>(random() % static_cast<uint64_t>(most));
  };
  for (int round = 0; round < 60; ++round) {
    const int64_t ranks = int64_t{1} << pick(4);
    const int64_t length = 2 * ranks * (1 + pick(6));
    const int64_t window = pick(2) == 0 ? 0 : 1 + pick(length);
    const bool cut = pick(2) == 0;
    kernels::Segments segments = {{0}};
    for (int32_t at = 1; cut && at < length; ++at) {
      if (pick(5) == 0) segments.back().push_back(at);
    }
    const auto places_of = [&](int64_t rank) {
      std::vector<int64_t> places;
      for (const cluster::PlaceRange& piece : cluster::zigzag_pieces(length, ranks, rank)) {
        for (int64_t at = piece.first; at < piece.last; ++at) places.push_back(at);
      }
      return places;
    };
    std::set<std::pair<int64_t, int64_t>> met;
    for (int64_t rank = 0; rank < ranks; ++rank) {
      const std::vector<int64_t> queries = places_of(rank);
      std::set<int64_t> own;
      for (int64_t other = 0; other < ranks; ++other) {
        const std::vector<int64_t> keys = places_of(other);
        for (const AttentionTile& tile : ring_tiles(1, cluster::zigzag_pieces(length, ranks, rank),
                                                    cluster::zigzag_pieces(length, ranks, other),
                                                    cut ? &segments : nullptr, window)) {
          for (int64_t i = 0; i < tile.queries; ++i) {
            bool any = false;
            for (int64_t j = 0; j < tile.keys; ++j) {
              // As the kernel has it.
              if (j > i + tile.past || (window > 0 && j <= i + tile.past - window)) continue;
              any = true;
              EXPECT_TRUE(met.insert({queries[static_cast<size_t>(tile.query + i)],
                                      keys[static_cast<size_t>(tile.key + j)]})
                              .second);
            }
            EXPECT_TRUE(any) << "a query without a key";
            if (tile.own) {
              EXPECT_TRUE(own.insert(tile.query + i).second);
            }
          }
        }
      }
      EXPECT_EQ(static_cast<int64_t>(own.size()), length / ranks);
    }
    int64_t pairs = 0;
    for (int64_t query = 0; query < length; ++query) {
      for (int64_t key = 0; key < length; ++key) {
        if (!sees(segments.front(), window, query, key)) continue;
        ++pairs;
        EXPECT_TRUE(met.contains({query, key})) << query << " sees " << key;
      }
    }
    EXPECT_EQ(static_cast<int64_t>(met.size()), pairs);
  }
}

}  // namespace
}  // namespace trireme::nn
