#include "trireme/data/normalizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trireme/base/error.h"

namespace trireme::data {
namespace {

using testing::ElementsAre;

std::string normalized(const char* json, const std::string& text) {
  return Normalizer(Json::parse(json), "test").normalized(text);
}

/// Where each character of the normalized text begins in the source.
std::vector<uint32_t> sources(const char* json, const std::string& text) {
  AlignedText aligned = AlignedText::with_map(text, 0);
  Normalizer(Json::parse(json), "test").apply(aligned);
  std::vector<uint32_t> result;
  for (size_t at = 0; at < aligned.text().size();) {
    result.push_back(aligned.source(at, at + 1).begin);
    next_code_point(aligned.text(), at);
  }
  return result;
}

TEST(Normalizer, RewritesText) {
  EXPECT_EQ(normalized("null", " A "), " A ");
  EXPECT_EQ(normalized(R"({"type": "Lowercase"})", "\u00c9T\u0130"), "\u00e9ti\u0307");
  EXPECT_EQ(normalized(R"({"type": "Strip", "strip_left": true, "strip_right": false})",
                       " \u3000"
                       "a "),
            "a ");
  EXPECT_EQ(normalized(R"({"type": "StripAccents"})", "e\u0301\u00e9"), "e\u00e9");
  EXPECT_EQ(normalized(R"({"type": "Prepend", "prepend": "_"})", "a"), "_a");
  EXPECT_EQ(normalized(R"({"type": "Prepend", "prepend": "_"})", ""), "");
  EXPECT_EQ(normalized(R"({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "_"})",
                       "a   b c"),
            "a_b c");
  EXPECT_EQ(
      normalized(
          R"({"type": "Sequence", "normalizers": [{"type": "NFKD"}, {"type": "StripAccents"}]})",
          "\ufb01\u00e9"),
      "fie");
}

// BERT, tokenization_test.py, test_basic_tokenizer_lower and test_chinese.
TEST(Normalizer, CleansTextAsBertDoes) {
  const char* const json =
      R"({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                              "strip_accents": null, "lowercase": true})";
  EXPECT_EQ(normalized(json, "H\u00e9llo\tworld\ufffd"), "hello world");
  EXPECT_EQ(normalized(json, "ah\u535a\u63a8zz"), "ah \u535a  \u63a8 zz");
}

TEST(Normalizer, KeepsTheWayBack) {
  EXPECT_THAT(sources(R"({"type": "Prepend", "prepend": "__"})", "ab"), ElementsAre(0, 0, 0, 1));
  EXPECT_THAT(sources(R"({"type": "Strip", "strip_left": true, "strip_right": true})", "  a b "),
              ElementsAre(2, 3, 4));
  EXPECT_THAT(
      sources(R"({"type": "Replace", "pattern": {"String": "bc"}, "content": "xyz"})", "abcd"),
      ElementsAre(0, 2, 2, 2, 3));
}

TEST(Normalizer, KnowsWhetherTextMayBeCut) {
  const auto is_local = [](const char* json) {
    return Normalizer(Json::parse(json), "test").is_local();
  };
  EXPECT_TRUE(is_local("null"));
  EXPECT_TRUE(is_local(
      R"({"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]})"));
  EXPECT_FALSE(is_local(R"({"type": "Prepend", "prepend": "_"})"));
  const Normalizer gemma(
      Json::parse(R"({"type": "Replace", "pattern": {"String": " "}, "content": "_"})"), "test");
  EXPECT_FALSE(gemma.is_local());
  EXPECT_EQ(gemma.space_replacement(), "_");
}

}  // namespace
}  // namespace trireme::data
