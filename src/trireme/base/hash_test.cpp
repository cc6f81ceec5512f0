#include "trireme/base/hash.h"

#include <gtest/gtest.h>

#include <bit>
#include <set>
#include <string>
#include <string_view>

namespace trireme {
namespace {

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// The published XXH3-64 value of no input with seed 0, as `xxhsum -H3` prints it.
TEST(Hash, MatchesThePublishedValues) {
  EXPECT_EQ(hash_text(xxh3({})), "2d06800538d394c2");
}

TEST(Hash, TextKeepsLeadingZeros) {
  EXPECT_EQ(hash_text(0), "0000000000000000");
  EXPECT_EQ(hash_text(0xabcULL), "0000000000000abc");
}

TEST(Hash, IncrementalEqualsWhole) {
  std::string text;
  for (int i = 0; i < 5000; ++i) text += static_cast<char>(mix(i));
  for (const size_t piece : {1u, 7u, 64u, 1024u, 4999u}) {
    Hasher hasher;
    for (size_t begin = 0; begin < text.size(); begin += piece) {
      hasher.update(bytes_of(std::string_view(text).substr(begin, piece)));
    }
    EXPECT_EQ(hasher.digest(), xxh3(bytes_of(text))) << piece;
  }
  EXPECT_NE(xxh3(bytes_of(text)), xxh3(bytes_of(text.substr(1))));
}

TEST(Mix, DependsOnEachArgumentAndItsPlace) {
  std::set<uint64_t> values;
  for (uint64_t a = 0; a < 8; ++a) {
    for (uint64_t b = 0; b < 8; ++b) {
      for (uint64_t c = 0; c < 8; ++c) values.insert(mix(a, b, c));
    }
  }
  EXPECT_EQ(values.size(), 512u);
}

TEST(Mix, FlipsHalfTheBits) {
  // 64 000 flips of a fair coin have a standard deviation of 126; six of them bound the mean.
  int flips = 0;
  for (uint64_t i = 0; i < 1000; ++i) flips += std::popcount(mix(i) ^ mix(i ^ 1));
  EXPECT_NEAR(flips, 32000, 760);
}

}  // namespace
}  // namespace trireme
