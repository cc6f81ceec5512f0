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

}  // namespace
}  // namespace trireme::nn
