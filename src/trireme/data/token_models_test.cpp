// The models on the examples of their origins: SentencePiece's and BERT's own tests, and the rules of
// the `tokenizers` library.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "trireme/base/error.h"
#include "trireme/data/char_bpe.h"
#include "trireme/data/unigram.h"
#include "trireme/data/wordpiece.h"

namespace trireme::data {
namespace {

using testing::ElementsAre;
using Vocabulary = std::vector<std::pair<std::string, int32_t>>;

Vocabulary numbered(const std::vector<std::string>& tokens) {
  Vocabulary vocabulary;
  for (const auto& token : tokens)
    vocabulary.emplace_back(token, static_cast<int32_t>(vocabulary.size()));
  return vocabulary;
}

std::vector<int32_t> ids_of(const TokenModel& model, std::string_view piece) {
  std::vector<int32_t> ids;
  model.encode(piece, ids, nullptr);
  return ids;
}

std::vector<std::string> texts_of(const TokenModel& model, const std::string& piece) {
  std::vector<int32_t> ids;
  std::vector<TokenSpan> spans;
  model.encode(piece, ids, &spans);
  std::vector<std::string> texts;
  for (const TokenSpan& span : spans)
    texts.push_back(piece.substr(span.begin, span.end - span.begin));
  return texts;
}

TEST(CharBpe, FusesUnknownCharactersIfAsked) {
  const auto vocabulary = numbered({"<unk>", "a", "b"});
  const CharBpe apart(vocabulary, {}, {.unknown_token = "<unk>"});
  EXPECT_THAT(ids_of(apart, "accb"), ElementsAre(1, 0, 0, 2));
  const CharBpe fused(vocabulary, {}, {.unknown_token = "<unk>", .fuse_unknown = true});
  EXPECT_THAT(ids_of(fused, "accb"), ElementsAre(1, 0, 2));
  EXPECT_THAT(texts_of(fused, "a\u00e9\u4e2db"), ElementsAre("a", "\u00e9\u4e2d", "b"));
  const CharBpe dropping(vocabulary, {{1, 2, 0}}, {});
  EXPECT_THAT(ids_of(dropping, "acb"), ElementsAre(0));
}

TEST(CharBpe, FallsBackToBytes) {
  const CharBpe model(numbered({"<unk>", "<0x61>", "<0xC3>", "<0xA9>"}), {},
                      {.unknown_token = "<unk>", .byte_fallback = true});
  EXPECT_THAT(ids_of(model, "a"), ElementsAre(1));
  EXPECT_THAT(ids_of(model, "\u00e9"), ElementsAre(2, 3));
  EXPECT_THAT(ids_of(model, "b"), ElementsAre(0));
}

TEST(CharBpe, TakesTokensWholeIfMergesAreIgnored) {
  const auto vocabulary = numbered({"a", "b", "c", "ab", "abc"});
  const std::vector<BpeMerge> merges = {{0, 1, 3}};
  EXPECT_THAT(ids_of(CharBpe(vocabulary, merges, {}), "abc"), ElementsAre(3, 2));
  EXPECT_THAT(ids_of(CharBpe(vocabulary, merges, {.ignore_merges = true}), "abc"), ElementsAre(4));
}

// Cutting is a short way to the ids of the whole.
TEST(CharBpe, EncodesPartsAsTheWhole) {
  std::mt19937 random(7);
  const std::vector<std::string> letters = {"\u2581", "a",      "b",         "c",
                                            "\u00e9", "\u4e2d", "\U0001F600"};
  int cuts = 0;
  for (int round = 0; round < 200; ++round) {
    std::vector<std::string> tokens = {"<unk>"};
    for (size_t i = 0; i < letters.size() - random() % 3; ++i) tokens.push_back(letters[i]);
    const bool with_bytes = random() % 2 == 0;
    for (int b = 0; with_bytes && b < 256; ++b) tokens.push_back(fmt::format("<0x{:02X}>", b));
    std::vector<BpeMerge> merges;
    for (int i = 0; i < 12; ++i) {
      const auto pick = [&] {
        const size_t at = random() % (letters.size() + merges.size());
        return at < letters.size() ? std::min(at + 1, tokens.size() - 1)
                                   : static_cast<size_t>(merges[at - letters.size()].merged);
      };
      const size_t left = pick(), right = pick();
      if (tokens[left].starts_with("<") || tokens[right].starts_with("<")) continue;
      tokens.push_back(tokens[left] + tokens[right]);
      merges.push_back({static_cast<int32_t>(left), static_cast<int32_t>(right),
                        static_cast<int32_t>(tokens.size() - 1)});
    }
    const CharBpe model(
        numbered(tokens), merges,
        {.unknown_token = random() % 2 == 0 ? std::optional<std::string>("<unk>") : std::nullopt,
         .fuse_unknown = random() % 2 == 0,
         .byte_fallback = with_bytes});
    ASSERT_TRUE(model.has_parts());
    std::string text;
    for (size_t i = random() % 150; i > 0; --i) text += letters[random() % letters.size()];
    std::vector<int32_t> parts;
    for (size_t at = 0; at < text.size();) {
      const size_t end = model.part_end(text, at);
      cuts += end < text.size();
      model.encode(std::string_view(text).substr(at, end - at), parts, nullptr);
      at = end;
    }
    if (!text.empty()) {
      ASSERT_EQ(parts, ids_of(model, text)) << text;
    }
  }
  EXPECT_GT(cuts, 200);
}

TEST(CharBpe, SaysWhereNoTokenReachesOver) {
  const uint32_t metaspace = 0x2581;
  const auto all = [] {
    std::vector<std::string> tokens = {"\u2581"};
    for (char c = 0x21; c < 0x7F; ++c) tokens.emplace_back(1, c);
    return tokens;
  }();
  EXPECT_TRUE(CharBpe(numbered(all), {}, {}).parts_before(metaspace));
  auto joined = all;
  joined.push_back("a\u2581");
  const auto a = static_cast<int32_t>(std::find(all.begin(), all.end(), "a") - all.begin());
  const CharBpe joins(numbered(joined), {{a, 0, static_cast<int32_t>(all.size())}}, {});
  EXPECT_FALSE(joins.parts_before(metaspace));
  EXPECT_FALSE(CharBpe(numbered({"\u2581", "a"}), {}, {}).parts_before(metaspace))
      << "b is unknown";
}

// SentencePiece, unigram_model_test.cc, EncodeTest.
TEST(Unigram, FindsTheBestCut) {
  const auto vocabulary =
      numbered({"<unk>", "ab", "cd", "abc", "a", "b", "c", "ABC", "abcdabcd", "q", "r", "qr"});
  const std::vector<double> scores = {0,    0,    -0.1, -0.2, -0.3, -0.4,
                                      -0.5, -0.5, 20,   20.5, 20.5, -0.5};
  const Unigram model(vocabulary, scores, 0, false);
  EXPECT_THAT(texts_of(model, "abc"), ElementsAre("abc"));
  EXPECT_THAT(texts_of(model, "AB"), ElementsAre("AB"));
  EXPECT_THAT(texts_of(model, "abcd"), ElementsAre("ab", "cd"));
  EXPECT_THAT(texts_of(model, "abcc"), ElementsAre("abc", "c"));
  EXPECT_THAT(texts_of(model, "xabcabaabcdd"), ElementsAre("x", "abc", "ab", "a", "ab", "cd", "d"));
  EXPECT_THAT(texts_of(model, "xyz\u6771\u4eac"), ElementsAre("xyz\u6771\u4eac"));
  EXPECT_THAT(texts_of(model, "abABCcd"), ElementsAre("ab", "ABC", "cd"));
  EXPECT_THAT(texts_of(model, "ababcdabcdcd"), ElementsAre("ab", "abcdabcd", "cd"));
  EXPECT_THAT(texts_of(model, "abqrcd"), ElementsAre("ab", "q", "r", "cd"));
}

TEST(Unigram, WritesUnknownTextInBytes) {
  const auto vocabulary = numbered({"<unk>", "<0xC3>", "<0xA9>", "a"});
  const std::vector<double> scores = {-0.01, 0, 0, -1};
  EXPECT_THAT(ids_of(Unigram(vocabulary, scores, 0, true), "a\u00e9"), ElementsAre(3, 1, 2));
  EXPECT_THAT(ids_of(Unigram(vocabulary, scores, 0, false), "a\u00e9"), ElementsAre(3, 0));
  EXPECT_THROW(ids_of(Unigram(vocabulary, scores, std::nullopt, false), "z"), Error);
}

// BERT, tokenization_test.py, test_wordpiece_tokenizer.
TEST(WordPiece, TakesTheLongestTokenFirst) {
  const auto vocabulary =
      numbered({"[UNK]", "[CLS]", "[SEP]", "want", "##want", "##ed", "wa", "un", "runn", "##ing"});
  const WordPiece model(vocabulary, {});
  EXPECT_THAT(ids_of(model, "unwanted"), ElementsAre(7, 4, 5));
  EXPECT_THAT(texts_of(model, "running"), ElementsAre("runn", "ing"));
  EXPECT_THAT(ids_of(model, "unwantedX"), ElementsAre(0));
  EXPECT_THAT(ids_of(WordPiece(vocabulary, {.max_word_characters = 6}), "running"), ElementsAre(0));
  EXPECT_THROW(ids_of(WordPiece(vocabulary, {.unknown_token = "[NO]"}), "X"), Error);
}

}  // namespace
}  // namespace trireme::data
