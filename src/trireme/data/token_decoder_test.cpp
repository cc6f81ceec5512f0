// Decoders on the examples of the `tokenizers` library's documentation and tests.
#include "trireme/data/token_decoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trireme/base/error.h"

namespace trireme::data {
namespace {

std::string decoded(const char* json, const std::vector<std::string>& tokens) {
  const TokenDecoder decoder(Json::parse(json), "test");
  TokenDecoder::Stream stream(decoder);
  for (const auto& token : tokens) stream.feed(token);
  stream.finish();
  return stream.take();
}

TEST(TokenDecoder, JoinsBytes) {
  const char* const json = R"({"type": "ByteFallback"})";
  EXPECT_EQ(decoded(json, {"Hey", "friend!"}), "Heyfriend!");
  EXPECT_EQ(decoded(json, {"<0x61>"}), "a");
  EXPECT_EQ(decoded(json, {"<0xE5>"}), "\ufffd");
  EXPECT_EQ(decoded(json, {"<0xE5>", "<0x8f>"}), "\ufffd\ufffd");
  EXPECT_EQ(decoded(json, {"<0xE5>", "<0x8f>", "<0xab>"}), "\u53eb");
  EXPECT_EQ(decoded(json, {"<0xE5>", "<0x8f>", "<0xab>", "a"}),
            "\u53eb"
            "a");
  EXPECT_EQ(decoded(json, {"<0xE5>", "<0x8f>", "a"}),
            "\ufffd\ufffd"
            "a");
}

TEST(TokenDecoder, StripsAndFuses) {
  EXPECT_EQ(decoded(R"({"type": "Strip", "content": "H", "start": 1, "stop": 0})",
                    {"Hey", " friend!", "HHH"}),
            "ey friend!HH");
  EXPECT_EQ(
      decoded(R"({"type": "Strip", "content": "y", "start": 0, "stop": 1})", {"Hey", " friend!"}),
      "He friend!");
  const char* const llama2 = R"({"type": "Sequence", "decoders": [
      {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"},
      {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]})";
  EXPECT_EQ(
      decoded(llama2, {"\u2581Hello", "\u2581\u2581", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>"}),
      "Hello  \U0001F600");
}

TEST(TokenDecoder, PutsWordsTogether) {
  EXPECT_EQ(decoded(R"({"type": "WordPiece", "prefix": "##", "cleanup": false})",
                    {"##uelo", "Ara", "##\u00faj", "##o", "No", "##guera"}),
            "##uelo Ara\u00fajo Noguera");
  EXPECT_EQ(
      decoded(R"({"type": "WordPiece", "prefix": "##", "cleanup": true})", {"it", "'s", "me", "!"}),
      "it's me!");
  EXPECT_EQ(decoded(R"({"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always"})",
                    {"\u2581Hey", "\u2581friend!"}),
            "Hey friend!");
  EXPECT_EQ(decoded(R"({"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "never"})",
                    {"\u2581Hey", "\u2581friend!"}),
            " Hey friend!");
  EXPECT_EQ(decoded("null", {"a", "b"}), "a b");
}

// What is certain comes at once; nothing is taken back.
TEST(TokenDecoder, StreamsWhatIsCertain) {
  const TokenDecoder decoder(Json::parse(R"({"type": "Sequence", "decoders": [
      {"type": "Replace", "pattern": {"String": "_"}, "content": " "}, {"type": "ByteFallback"},
      {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]})"),
                             "test");
  TokenDecoder::Stream stream(decoder);
  stream.feed("_Hi");
  EXPECT_EQ(stream.take(), "Hi");
  stream.feed("<0xC3>");
  EXPECT_EQ(stream.take(), "");
  stream.feed("<0xA9>");
  stream.feed("_you");
  EXPECT_EQ(stream.take(), "\u00e9 you");
  stream.finish();
  EXPECT_EQ(stream.take(), "");
  stream.feed("_again");
  EXPECT_EQ(stream.take(), "again");
}

TEST(TokenDecoder, TellsTheBytesOfATokenAmidOthers) {
  const TokenDecoder decoder(Json::parse(R"({"type": "Sequence", "decoders": [
      {"type": "Replace", "pattern": {"String": "_"}, "content": " "}, {"type": "ByteFallback"}]})"),
                             "test");
  EXPECT_EQ(decoder.bytes_of("_the"), " the");
  EXPECT_EQ(decoder.bytes_of("<0xC3>"), "\xC3");
}

}  // namespace
}  // namespace trireme::data
