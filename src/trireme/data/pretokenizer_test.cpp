#include "trireme/data/pretokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "trireme/base/error.h"
#include "trireme/data/piece_regex.h"
#include "trireme/data/text_split.h"
#include "trireme/data/tokenizer_unicode.h"

namespace trireme::data {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::vector<std::string> known_pieces(KnownPattern pattern, std::string_view text) {
  std::vector<std::string> pieces;
  for (size_t at = 0; at < text.size();) {
    const size_t end = known_piece_end(pattern, text, at);
    pieces.emplace_back(text.substr(at, end - at));
    at = end;
  }
  return pieces;
}

std::vector<std::string> regex_pieces(const std::string& pattern, std::string_view text) {
  std::vector<TextPiece> matches, ranges;
  PieceRegex(pattern, "test").find(text, {0, text.size()}, matches);
  split_at_matches(matches, {0, text.size()}, SplitBehavior::kIsolated, false, ranges);
  std::vector<std::string> pieces;
  for (const auto& range : ranges)
    pieces.emplace_back(text.substr(range.begin, range.end - range.begin));
  return pieces;
}

TEST(KnownPatterns, CutAsTheirExpressionsSay) {
  EXPECT_THAT(known_pieces(KnownPattern::kGpt2, "I'm 12345  years\n\n old!!"),
              ElementsAre("I", "'m", " 12345", " ", " years", "\n\n", " old", "!!"));
  EXPECT_THAT(known_pieces(KnownPattern::kLlama3, "I'M 12345  years\n\n old!!\n"),
              ElementsAre("I", "'M", " ", "123", "45", " ", " years", "\n\n", " old", "!!\n"));
  EXPECT_THAT(known_pieces(KnownPattern::kQwen2, "\tx 42 (a)"),
              ElementsAre("\tx", " ", "4", "2", " (", "a", ")"));
  EXPECT_THAT(known_pieces(KnownPattern::kLlama3, "a   \n  \n   b"),
              ElementsAre("a", "   \n  \n", "  ", " b"));
}

// The plain reference of the hand-written matchers is the expression itself, run by PCRE2.
TEST(KnownPatterns, AgreeWithPcre2OnRandomText) {
  std::mt19937 random(5);
  const std::vector<std::string> parts = {
      "'",      "s",      "S",      "re",         "VE",         "ll",     "'d",
      " ",      "  ",     "\n",     "\r",         "\t",         "a",      "Zq",
      "\u00e9", "\u4e2d", "1",      "23",         "\u00bd",     "\u0663", ".",
      "(",      "--",     "\u00a0", "\u3000",     "\u2028",     "\u0301", "\U0001F600",
      "\u200d", "\u017f", "\u180e", "\U0001E4D0", "\U00016D40", "\ufffd"};
  for (int round = 0; round < 3000; ++round) {
    std::string text;
    for (int n = std::uniform_int_distribution(1, 30)(random); n > 0; --n) {
      if (random() % 8 == 0) {
        uint32_t c = 1 + random() % 0x10FFFE;
        if (c >= 0xD800 && c < 0xE000) c = 'x';
        append_utf8(c, text);
      } else {
        text += parts[random() % parts.size()];
      }
    }
    for (const auto pattern : {KnownPattern::kGpt2, KnownPattern::kLlama3, KnownPattern::kQwen2}) {
      ASSERT_EQ(known_pieces(pattern, text), regex_pieces(std::string(pattern_text(pattern)), text))
          << text;
    }
  }
}

TEST(PieceRegex, FindsMatchesInARange) {
  std::vector<TextPiece> matches;
  const PieceRegex regex("\\d+", "test");
  const std::string text = "ab12cd3";
  regex.find(text, {0, text.size()}, matches);
  ASSERT_EQ(matches.size(), 2u);
  EXPECT_EQ(matches[0].begin, 2u);
  EXPECT_EQ(matches[1].end, 7u);
  matches.clear();
  regex.find(text, {3, 5}, matches);
  ASSERT_EQ(matches.size(), 1u);
  EXPECT_EQ(matches[0].begin, 3u);
  EXPECT_EQ(matches[0].end, 4u);
  EXPECT_TRUE(PieceRegex("x*", "test").matches_empty());
  EXPECT_FALSE(regex.matches_empty());
}

TEST(PieceRegex, SkipsEmptyMatches) {
  EXPECT_THAT(regex_pieces("x*", "\u00e9x\u4e2dxx"), ElementsAre("\u00e9", "x", "\u4e2d", "xx"));
}

TEST(PieceRegex, MatchesLongRuns) {
  const std::string spaces(3000000, ' ');
  EXPECT_EQ(regex_pieces(std::string(pattern_text(KnownPattern::kLlama3)), spaces).size(), 1u);
  const std::string letters(3000000, 'a');
  EXPECT_EQ(regex_pieces("(?:[^\\r\\n\\p{L}]?\\p{L})+|\\s", letters).size(), 1u);
}

TEST(PieceRegex, RefusesByNameWhatEnginesReadDifferently) {
  const std::pair<const char*, const char*> cases[] = {
      {"^a", "'^'"},
      {"a$", "'$'"},
      {".", "'.'"},
      {"\\w+", "\\w"},
      {"\\bword", "\\b"},
      {"[a-z&&[^b]]", "&&"},
      {"[[:alpha:]]", "class inside a class"},
      {"\\p{N}{1,3}+", "{..}+"},
      {"(?<name>a)", "(?<n"},
      {"(?<=a)b", "(?<="},
      {"[\\S]", "\\S inside"},
      {"a\\", "backslash at the end"},
      {"(a", "parenthesis"},
      {"(*UTF)a", "(*"},
  };
  for (const auto& [pattern, reason] : cases) {
    try {
      PieceRegex(pattern, "file.json");
      ADD_FAILURE() << pattern << " was accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kData);
      const std::string_view bare =
          std::string_view(reason).front() == '\'' ? std::string_view(reason).substr(1, 1) : reason;
      EXPECT_THAT(error.what(), HasSubstr(std::string(bare)));
      EXPECT_THAT(error.what(), HasSubstr("file.json"));
    }
  }
}

Pretokenizer parse(const char* text) {
  return Pretokenizer(Json::parse(text), "test");
}

std::vector<std::string> pieces_of(const char* json, const std::string& text) {
  const auto pretokenizer = parse(json);
  AlignedText aligned = AlignedText::without_map(text, true);
  std::vector<std::string> pieces;
  pretokenizer.for_each_piece(aligned, [&](TextPiece piece) {
    pieces.emplace_back(aligned.text().substr(piece.begin, piece.end - piece.begin));
  });
  return pieces;
}

TEST(Pretokenizer, ReadsSequences) {
  const char* const digits = R"({"type": "Sequence", "pretokenizers": [
      {"type": "Digits", "individual_digits": true}, {"type": "ByteLevel", "add_prefix_space": false}]})";
  EXPECT_THAT(pieces_of(digits, "ab 12 c"), ElementsAre("ab", " ", "1", "2", " c"));
  EXPECT_TRUE(parse(digits).splittable());
  EXPECT_TRUE(parse(digits).is_byte_level());

  EXPECT_THAT(pieces_of(R"({"type": "Sequence", "pretokenizers": [
      {"type": "Split", "pattern": {"String": ", "}, "behavior": "Removed", "invert": false},
      {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]})",
                        "a, b,c, "),
              ElementsAre("a", "b,c"));

  const char* const gpt2 = R"({"type": "ByteLevel", "add_prefix_space": true, "use_regex": true})";
  EXPECT_THAT(pieces_of(gpt2, "ab c"), ElementsAre(" ab", " c"));
  EXPECT_TRUE(parse(gpt2).splittable());
  EXPECT_EQ(parse(gpt2).known_pattern(), KnownPattern::kGpt2);
}

// The examples of the library's documentation of SplitDelimiterBehavior.
TEST(Pretokenizer, SplitsInEveryBehavior) {
  const std::string text = "the-final--countdown";
  const auto split = [&](const char* behavior) {
    const std::string json = R"({"type": "Split", "pattern": {"String": "-"}, "invert": false,
                                 "behavior": ")" +
                             std::string(behavior) + "\"}";
    return pieces_of(json.c_str(), text);
  };
  EXPECT_THAT(split("Removed"), ElementsAre("the", "final", "countdown"));
  EXPECT_THAT(split("Isolated"), ElementsAre("the", "-", "final", "-", "-", "countdown"));
  EXPECT_THAT(split("MergedWithPrevious"), ElementsAre("the-", "final-", "-", "countdown"));
  EXPECT_THAT(split("MergedWithNext"), ElementsAre("the", "-final", "-", "-countdown"));
  EXPECT_THAT(split("Contiguous"), ElementsAre("the", "-", "final", "--", "countdown"));
}

TEST(Pretokenizer, PutsMetaspaces) {
  const auto pieces = [](const char* scheme, bool split, const std::string& text) {
    const std::string json =
        R"({"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": ")" +
        std::string(scheme) + "\", \"split\": " + (split ? "true}" : "false}");
    return pieces_of(json.c_str(), text);
  };
  EXPECT_THAT(pieces("always", true, "a  b"), ElementsAre("\u2581a", "\u2581", "\u2581b"));
  EXPECT_THAT(pieces("always", false, "a b"), ElementsAre("\u2581a\u2581b"));
  EXPECT_THAT(pieces("first", false, " a"), ElementsAre("\u2581a"));
  EXPECT_THAT(pieces("never", true, "a\u2581b"), ElementsAre("a", "\u2581b"));
}

TEST(Pretokenizer, KnowsWordsAndPunctuation) {
  EXPECT_THAT(pieces_of(R"({"type": "Whitespace"})", "Hey man!!  ok"),
              ElementsAre("Hey", "man", "!!", "ok"));
  EXPECT_THAT(pieces_of(R"({"type": "WhitespaceSplit"})", "Hey man!!\n"),
              ElementsAre("Hey", "man!!"));
  EXPECT_THAT(pieces_of(R"({"type": "BertPreTokenizer"})", "Hey man!! "),
              ElementsAre("Hey", "man", "!", "!"));
  EXPECT_THAT(pieces_of(R"({"type": "Punctuation", "behavior": "Contiguous"})", "a!!b"),
              ElementsAre("a", "!!", "b"));
  EXPECT_THAT(pieces_of(R"({"type": "CharDelimiterSplit", "delimiter": "_"})", "a__b"),
              ElementsAre("a", "b"));
  EXPECT_THAT(pieces_of("null", "a b"), ElementsAre("a b"));
}

TEST(Pretokenizer, MayBeSplitOnlyWherePiecesEndAnyway) {
  const std::pair<const char*, bool> cases[] = {
      {R"({"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": true})",
       true},
      {R"({"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": false})",
       false},
      {R"({"type": "WhitespaceSplit"})", true},
      // The space that a part begins with is not one any more where the second step looks for one at the start.
      {R"({"type": "Sequence", "pretokenizers": [
        {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "never", "split": true},
        {"type": "Metaspace", "replacement": "_", "prepend_scheme": "first", "split": false}]})",
       false},
      {R"({"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"},
        {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": true}]})",
       true},
      {R"({"type": "Punctuation"})", false},
      {R"({"type": "Split", "pattern": {"Regex": "a b|c"}, "behavior": "Isolated"})", false},
      {R"({"type": "Digits"})", false},
      {"null", false},
  };
  for (const auto& [json, splittable] : cases)
    EXPECT_EQ(parse(json).splittable(), splittable) << json;
}

TEST(Pretokenizer, RefusesByName) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"type": "UnicodeScripts"})", "UnicodeScripts"},
      {R"({"type": "Metaspace"})", "replacement"},
      {R"({"type": "Metaspace", "replacement": "_", "prepend_scheme": "last"})",
       "prepend_scheme last"},
      {R"({"type": "Sequence"})", "Sequence without a list"},
      {R"({"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}, {"type": "Digits"}]})",
       "Digits after ByteLevel"},
      {R"({"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Merged"})", "behavior Merged"},
      {R"({"type": "Split", "behavior": "Isolated"})", "Split without a pattern"},
      {R"({"type": "ByteLevel", "use_regex": 1})", "use_regex = 1"},
      {R"([])", "[]"},
  };
  for (const auto& [json, reason] : cases) {
    try {
      parse(json);
      ADD_FAILURE() << json << " was accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kData);
      EXPECT_THAT(error.what(), HasSubstr(reason));
    }
  }
}

}  // namespace
}  // namespace trireme::data
