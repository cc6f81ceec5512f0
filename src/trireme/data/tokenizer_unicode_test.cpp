#include "trireme/data/tokenizer_unicode.h"

#include <gtest/gtest.h>

namespace trireme::data {
namespace {

TEST(Utf8, ReplacesMaximalSubparts) {
  // Unicode 15, section 3.9, tables 3-8 to 3-11.
  const std::string fffd = "\xEF\xBF\xBD";
  const auto times = [&](int n) {
    std::string text;
    for (int i = 0; i < n; ++i) text += fffd;
    return text;
  };
  EXPECT_EQ(replace_invalid_utf8("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"), times(8) + "A");
  EXPECT_EQ(replace_invalid_utf8("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41"), times(8) + "A");
  EXPECT_EQ(replace_invalid_utf8("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42"),
            times(5) + "A" + times(2) + "B");
  EXPECT_EQ(replace_invalid_utf8("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"), times(4) + "A");
  EXPECT_EQ(replace_invalid_utf8("plain \xC3\xA9 \xF0\x9F\x98\x80"),
            "plain \xC3\xA9 \xF0\x9F\x98\x80");
}

TEST(Utf8, FindsWhereASequenceIsCutOff) {
  EXPECT_EQ(complete_utf8_prefix(""), 0u);
  EXPECT_EQ(complete_utf8_prefix("ab"), 2u);
  EXPECT_EQ(complete_utf8_prefix("a\xF0\x9F\x98"), 1u);
  EXPECT_EQ(complete_utf8_prefix("a\xF0\x9F\x98\x80"), 5u);
  EXPECT_EQ(complete_utf8_prefix("a\xC3"), 1u);
  EXPECT_EQ(complete_utf8_prefix("a\x80\x80"), 3u) << "never becomes valid, so nothing to wait for";
  EXPECT_EQ(complete_utf8_prefix("a\xE0\x80"), 3u);
  EXPECT_EQ(first_character_length("\xE2\x82"
                                   "x"),
            2u);
  EXPECT_EQ(first_character_length("\xE2\x82\xACx"), 3u);
}

TEST(Utf8, RoundTripsEveryCodePoint) {
  for (uint32_t c = 1; c <= 0x10FFFF; ++c) {
    if (c == 0xD800) c = 0xE000;
    std::string text;
    append_utf8(c, text);
    ASSERT_TRUE(is_valid_utf8(text)) << c;
    size_t at = 0;
    ASSERT_EQ(next_code_point(text, at), c);
    ASSERT_EQ(at, text.size());
  }
  EXPECT_EQ(count_characters("a\xC3\xA9\xF0\x9F\x98\x80"), 3);
}

TEST(CharClass, KnowsLettersNumbersAndSpaces) {
  const auto& table = CharClassTable::instance();
  EXPECT_EQ(table['a'], kLetterChar);
  EXPECT_EQ(table[0x4E2D], kLetterChar);  // 中
  EXPECT_EQ(table[0x1E9B], kLetterChar);
  EXPECT_EQ(table['7'], kNumberChar);
  EXPECT_EQ(table[0x00BD], kNumberChar);  // ½
  EXPECT_EQ(table[0x2167], kNumberChar);  // Ⅷ
  EXPECT_EQ(table[0x00A0], kSpaceChar);
  EXPECT_EQ(table[0x3000], kSpaceChar);
  EXPECT_EQ(table[0x180E], kOtherChar) << "not white space since Unicode 6.3";
  EXPECT_EQ(table[0x0301], kOtherChar);
  EXPECT_EQ(table[0x1F600], kOtherChar);
  EXPECT_EQ(table[0x10FFFF], kOtherChar);
}

}  // namespace
}  // namespace trireme::data
