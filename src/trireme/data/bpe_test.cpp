#include "trireme/data/bpe.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace trireme::data {
namespace {

TEST(ByteAlphabet, IsGpt2s) {
  EXPECT_EQ(byte_stand_in(' '), 0x120u);
  EXPECT_EQ(byte_stand_in('\n'), 0x10Au);
  EXPECT_EQ(byte_stand_in('a'), uint32_t{'a'});
  EXPECT_EQ(byte_stand_in(0xAD), 0x143u);
  EXPECT_EQ(bytes_to_token(" the"), "\u0120the");
  for (int b = 0; b < 256; ++b) {
    const std::string byte(1, static_cast<char>(b));
    EXPECT_EQ(token_to_bytes(bytes_to_token(byte)), byte);
  }
  EXPECT_EQ(token_to_bytes("\u4e2d"), std::nullopt);
}

std::vector<int32_t> identity_bytes() {
  std::vector<int32_t> ids(256);
  for (int b = 0; b < 256; ++b) ids[static_cast<size_t>(b)] = b;
  return ids;
}

TEST(ByteBpe, MergesTheBestRankFirstAndTheLeftmostOfEquals) {
  // Ranks: (b,c) before (a,b); (a,a) once in "aaa" is the left one.
  const ByteBpe model(identity_bytes(), {{'b', 'c', 256}, {'a', 'b', 257}, {'a', 'a', 258}});
  std::vector<int32_t> ids;
  model.encode("abc", ids, nullptr);
  EXPECT_EQ(ids, (std::vector<int32_t>{'a', 256}));
  ids.clear();
  std::vector<TokenSpan> spans;
  model.encode("aaa", ids, &spans);
  EXPECT_EQ(ids, (std::vector<int32_t>{258, 'a'}));
  ASSERT_EQ(spans.size(), 2u);
  EXPECT_EQ(spans[0].end, 2u);
  EXPECT_EQ(spans[1].begin, 2u);
  EXPECT_EQ(spans[1].end, 3u);
}

TEST(ByteBpe, DropsBytesThatHaveNoToken) {
  auto bytes = identity_bytes();
  bytes['x'] = -1;
  const ByteBpe model(bytes, {{'a', 'b', 256}});
  std::vector<int32_t> ids;
  model.encode("axb", ids, nullptr);
  EXPECT_EQ(ids, (std::vector<int32_t>{256}));
  ids.clear();
  model.encode(std::string(500, 'x'), ids, nullptr);
  EXPECT_TRUE(ids.empty());
}

TEST(ByteBpe, EqualsTheReferenceOnRandomMergesAndPieces) {
  std::mt19937 random(3);
  for (int round = 0; round < 60; ++round) {
    // Random merges over three letters, each making the token of the joined text.
    std::vector<std::string> tokens;
    for (int b = 0; b < 256; ++b) tokens.emplace_back(1, static_cast<char>(b));
    std::map<std::string, int32_t> known;
    for (int32_t i = 0; i < 256; ++i) known[tokens[static_cast<size_t>(i)]] = i;
    std::vector<int32_t> used = {'a', 'b', 'c'};
    std::vector<BpeMerge> merges;
    for (int i = 0; i < 60; ++i) {
      const int32_t left = used[random() % used.size()], right = used[random() % used.size()];
      const std::string joined =
          tokens[static_cast<size_t>(left)] + tokens[static_cast<size_t>(right)];
      const auto [it, added] = known.emplace(joined, static_cast<int32_t>(tokens.size()));
      if (added) {
        tokens.push_back(joined);
        used.push_back(it->second);
      }
      merges.push_back({left, right, it->second});
    }
    const ByteBpe model(identity_bytes(), merges);
    for (const int length : {0, 1, 2, 5, 17, 95, 96, 97, 98, 300}) {
      std::string piece;
      for (int i = 0; i < length; ++i) piece += static_cast<char>('a' + random() % 3);
      std::vector<int32_t> ids, wanted;
      std::vector<TokenSpan> spans;
      model.encode(piece, ids, &spans);
      model.encode_reference(piece, wanted);
      ASSERT_EQ(ids, wanted) << piece;
      // The spans are those of the tokens' texts.
      uint32_t done = 0;
      for (size_t i = 0; i < ids.size(); ++i) {
        ASSERT_EQ(spans[i].begin, done);
        done += static_cast<uint32_t>(tokens[static_cast<size_t>(ids[i])].size());
        ASSERT_EQ(spans[i].end, done);
      }
    }
  }
}

TEST(ByteBpe, MergesAMillionBytesInOnePiece) {
  std::vector<BpeMerge> merges;
  int32_t token = 'a';
  for (int32_t next = 256; next < 256 + 10; ++next) {
    merges.push_back({token, token, next});
    token = next;
  }
  const ByteBpe model(identity_bytes(), merges);
  std::vector<int32_t> ids;
  model.encode(std::string(1 << 20, 'a'), ids, nullptr);
  EXPECT_EQ(ids, std::vector<int32_t>(1 << 10, token));
}

TEST(PieceCache, ReturnsWhatWasPutIn) {
  PieceCache cache;
  auto& slot = cache.slot("word");
  EXPECT_FALSE(PieceCache::matches(slot, "word"));
  slot.piece_bytes = 4;
  std::copy_n("word", 4, slot.piece);
  EXPECT_TRUE(PieceCache::matches(cache.slot("word"), "word"));
  EXPECT_FALSE(PieceCache::matches(cache.slot("wore"), "wore"));
}

}  // namespace
}  // namespace trireme::data
