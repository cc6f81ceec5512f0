#include "trireme/cluster/sequence_pieces.h"

#include <gtest/gtest.h>

#include <vector>

namespace trireme::cluster {
namespace {

TEST(SequencePieces, EveryPlaceIsOnOneRankAndAllHaveAsMuchToDo) {
  for (const int64_t ranks : {1, 2, 3, 4, 8}) {
    const int64_t length = 2 * ranks * 5;
    std::vector<int> owners(static_cast<size_t>(length), 0);
    for (int64_t rank = 0; rank < ranks; ++rank) {
      int64_t pairs = 0;  // of a query and a key that it sees
      for (const PlaceRange& piece : zigzag_pieces(length, ranks, rank)) {
        for (int64_t place = piece.first; place < piece.last; ++place) {
          ++owners[static_cast<size_t>(place)];
          pairs += place + 1;
        }
      }
      EXPECT_EQ(pairs, length * (length + 1) / 2 / ranks);
    }
    EXPECT_EQ(owners, std::vector<int>(static_cast<size_t>(length), 1));
  }
}

TEST(SequencePieces, ASecondPieceIsSeenByWhoHasALaterQuery) {
  constexpr int64_t kRanks = 4;
  for (int64_t reader = 0; reader < kRanks; ++reader) {
    for (int64_t owner = 0; owner < kRanks; ++owner) {
      const int64_t last_query = zigzag_pieces(16, kRanks, reader)[1].last - 1;
      EXPECT_EQ(sees_second_piece(reader, owner),
                zigzag_pieces(16, kRanks, owner)[1].first <= last_query);
    }
  }
}

}  // namespace
}  // namespace trireme::cluster
