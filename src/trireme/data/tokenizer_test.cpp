#include "trireme/data/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "trireme/base/error.h"
#include "trireme/base/file.h"
#include "trireme/data/tokenizer_json.h"
#include "trireme/data/tokenizer_report.h"

namespace trireme::data {
namespace {

using testing::HasSubstr;

const std::string kGoldens = TRIREME_SOURCE_DIR "/tests/goldens/tokenizers/";
constexpr const char* kNames[] = {"gpt2",   "llama3",    "qwen2",  "added",   "digits",
                                  "custom", "few-bytes", "llama2", "mistral", "phi3",
                                  "gemma",  "neox",      "olmo2",  "glm4",    "gpt-oss",
                                  "tekken", "deepseek3", "t5",     "xlnet",   "bert"};

std::string golden_json(const std::string& name) {
  return read_file(kGoldens + name + ".tokenizer.json");
}

std::string from_hex(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2)
    bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  return bytes;
}

std::vector<std::string> golden_texts(const std::string& name) {
  std::vector<std::string> texts;
  for (const Json& row : parse_json(read_file(kGoldens + name + ".cases.json"), name))
    texts.push_back(from_hex(row["hex"]));
  return texts;
}

class GoldenTokenizer : public testing::TestWithParam<const char*> {};

// The goldens are made by the `tokenizers` library (tests/goldens/make_tokenizer_goldens.py).
TEST_P(GoldenTokenizer, HasTheLibrarysIdsAndOffsets) {
  const std::string name = GetParam();
  const auto tokenizer = parse_tokenizer(golden_json(name), name);
  const Json cases = parse_json(read_file(kGoldens + name + ".cases.json"), name);
  ASSERT_GT(cases.size(), 60u);
  for (const Json& row : cases) {
    const std::string text = from_hex(row["hex"]);
    const auto ids = row["ids"].get<std::vector<int32_t>>();
    const auto encoding = tokenizer->encode_with_offsets(text);
    ASSERT_EQ(encoding.ids, ids) << text;
    ASSERT_EQ(tokenizer->encode(text), ids) << text;
    std::vector<int64_t> offsets;
    for (const CharRange& range : encoding.offsets) {
      offsets.push_back(range.begin);
      offsets.push_back(range.end);
    }
    ASSERT_EQ(offsets, row["offsets"].get<std::vector<int64_t>>()) << text;
    ASSERT_EQ(tokenizer->encode(text, {.add_special_tokens = false, .parse_special = false}),
              row["plain"].get<std::vector<int32_t>>())
        << text;
    ASSERT_EQ(tokenizer->decode(ids), row["decoded"].get<std::string>()) << text;
  }
}

TEST_P(GoldenTokenizer, IsTheSameAfterWritingAndReading) {
  const auto tokenizer = parse_tokenizer(golden_json(GetParam()), GetParam());
  const std::string json = tokenizer->to_json();
  const auto again = parse_tokenizer(json, "written");
  EXPECT_EQ(again->to_json(), json);
  EXPECT_EQ(again->fingerprint(), tokenizer->fingerprint());
  for (const auto& text : golden_texts(GetParam()))
    ASSERT_EQ(again->encode(text), tokenizer->encode(text));
  // What is written means the same to any reader: the sections are equal as JSON.
  const Json written = Json::parse(json), original = Json::parse(golden_json(GetParam()));
  for (const char* key :
       {"added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model"}) {
    EXPECT_EQ(written[key], original[key]) << key;
  }
}

// Cutting for threads and streams must not change an id.
TEST_P(GoldenTokenizer, EncodesInPiecesAndInParallelAsInOne) {
  const auto tokenizer = parse_tokenizer(golden_json(GetParam()), GetParam());
  std::mt19937 random(17);
  const auto texts = golden_texts(GetParam());
  std::string joined;
  while (joined.size() < (size_t{1} << 20) + 12345) {
    joined += texts[random() % texts.size()];
    if (random() % 3 == 0) joined += " some words, then";
  }
  for (const bool parse_special : {true, false}) {
    const EncodeOptions options{.add_special_tokens = false, .parse_special = parse_special};
    const std::string part = joined.substr(0, 60000);
    const auto whole = tokenizer->encode(part, options);
    StreamEncoder stream(*tokenizer, parse_special);
    std::vector<int32_t> streamed;
    for (size_t at = 0; at < part.size();) {
      const size_t length = std::min<size_t>(1 + random() % 3000, part.size() - at);
      stream.feed(std::string_view(part).substr(at, length), streamed);
      at += length;
    }
    stream.finish(streamed);
    ASSERT_EQ(streamed, whole);
  }
  ThreadPool pool(3);
  std::vector<std::string_view> views(texts.begin(), texts.end());
  views.insert(views.begin() + 7, joined);
  const auto parallel = encode_parallel(pool, *tokenizer, views);
  ASSERT_EQ(parallel.size(), views.size());
  for (size_t i = 0; i < views.size(); ++i)
    ASSERT_EQ(parallel[i], tokenizer->encode(views[i])) << i;
}

TEST_P(GoldenTokenizer, DecodesAStreamAsTheWhole) {
  const auto tokenizer = parse_tokenizer(golden_json(GetParam()), GetParam());
  std::mt19937 random(29);
  for (int round = 0; round < 100; ++round) {
    std::vector<int32_t> ids(1 + random() % 40);
    for (auto& id : ids)
      id = static_cast<int32_t>(random() % static_cast<uint32_t>(tokenizer->vocab_size() + 3));
    StreamDecoder stream(*tokenizer);
    std::string text;
    for (const int32_t id : ids) text += stream.feed(id);
    text += stream.finish();
    ASSERT_EQ(text, tokenizer->decode(ids));
  }
}

INSTANTIATE_TEST_SUITE_P(All, GoldenTokenizer, testing::ValuesIn(kNames), [](const auto& info) {
  std::string name = info.param;
  std::erase(name, '-');
  return name;
});

TEST(Tokenizer, HandlesAMegabyteWithoutASpace) {
  const auto tokenizer = parse_tokenizer(golden_json("gpt2"), "gpt2");
  std::string text;
  std::mt19937 random(1);
  while (text.size() < size_t{1} << 20) text += static_cast<char>('a' + random() % 26);
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
}

TEST(Tokenizer, KnowsItsEnds) {
  const auto llama3 = parse_tokenizer(golden_json("llama3"), "llama3");
  EXPECT_EQ(llama3->id_to_token(llama3->bos_id().value()), "<|begin_of_text|>");
  EXPECT_EQ(llama3->id_to_token(llama3->eos_id().value()), "<|end_of_text|>");
  EXPECT_TRUE(llama3->is_special(*llama3->eos_id()));
  EXPECT_FALSE(llama3->is_special(*llama3->token_to_id("a")));
  const auto qwen2 =
      parse_tokenizer(golden_json("qwen2"), "qwen2",
                      R"({"eos_token": {"content": "<|im_end|>"}, "bos_token": null})");
  EXPECT_EQ(qwen2->id_to_token(qwen2->eos_id().value()), "<|im_end|>");
  EXPECT_FALSE(qwen2->bos_id().has_value());
  const Json config = Json::parse(tokenizer_config_json(*llama3, 4096));
  EXPECT_EQ(config["model_max_length"], 4096);
  EXPECT_EQ(config["eos_token"], "<|end_of_text|>");
  EXPECT_EQ(config["bos_token"], "<|begin_of_text|>");
}

TEST(ByteTokenizer, KeepsBytesAsTheyAre) {
  const auto tokenizer = make_byte_tokenizer();
  std::string all;
  for (int b = 0; b < 256; ++b) all += static_cast<char>(b);
  const auto ids = tokenizer->encode(all);
  ASSERT_EQ(ids.size(), 256u);
  for (int32_t b = 0; b < 256; ++b) EXPECT_EQ(ids[static_cast<size_t>(b)], b);
  EXPECT_EQ(tokenizer->vocab_size(), 257);
  EXPECT_EQ(tokenizer->eos_id(), 256);
  EXPECT_EQ(tokenizer->encode("a<|endoftext|>b"), (std::vector<int32_t>{'a', 256, 'b'}));
  EXPECT_EQ(tokenizer->encode("<|e", {}), (std::vector<int32_t>{'<', '|', 'e'}));
  EXPECT_EQ(tokenizer->encode("<|endoftext|>", {.parse_special = false}).size(), 13u);
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{'h', 'i', 256}), "hi");
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{'h', 256}, false), "h<|endoftext|>");
  // Offsets count characters; an ill-formed sequence counts as one.
  const auto encoding = tokenizer->encode_with_offsets("\u00e9\xE2\x82z<|endoftext|>y");
  const std::vector<CharRange> wanted = {{0, 1}, {0, 1}, {1, 2}, {1, 2}, {2, 3}, {3, 16}, {16, 17}};
  EXPECT_EQ(encoding.offsets, wanted);
}

TEST(ByteTokenizer, WritesATokenizerJsonWithTheSameIds) {
  const auto bytes = make_byte_tokenizer();
  const auto bpe = parse_tokenizer(bytes->to_json(), "bytes");
  EXPECT_EQ(bpe->vocab_size(), 257);
  EXPECT_EQ(bpe->eos_id(), kByteTokenizerEos);
  const std::string text = "def f():\n  return '\u00e9\U0001F600'<|endoftext|>";
  EXPECT_EQ(bpe->encode(text), bytes->encode(text));
  EXPECT_EQ(bytes->token_to_id("\u0120"), 32);
  EXPECT_EQ(bytes->token_to_id("ab"), std::nullopt);
}

TEST(LoadTokenizer, SaysWhatIsMissing) {
  try {
    load_tokenizer("/nowhere/tokenizer.json");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kData);
    EXPECT_THAT(error.what(), HasSubstr("/nowhere/tokenizer.json"));
    EXPECT_THAT(error.hint(), HasSubstr("bytes"));
  }
}

TEST(TokenizerJson, RefusesByNameWhatIsNotSupported) {
  struct Case {
    const char* path;
    Json value;
    const char* reason;
  };
  const Case cases[] = {
      {"/truncation", {{"max_length", 5}}, "truncation"},
      {"/padding", {{"strategy", "BatchLongest"}}, "padding"},
      {"/model/type", "WordLevel", "model type WordLevel"},
      {"/model/dropout", 0.1, "dropout"},
      {"/model/continuing_subword_prefix", "##", "continuing_subword_prefix"},
      {"/model/end_of_word_suffix", "</w>", "end_of_word_suffix"},
      {"/model/ignore_merges", 3, "ignore_merges"},
      {"/model/vocab", Json::array(), "vocab"},
      {"/model/vocab/new", 0, "both have id 0"},
      {"/model/vocab/new", -4, "not a token id"},
      {"/model/vocab/new", 1.5, "not a token id"},
      {"/model/vocab/new", 200000000, "have ids up to 200000000"},
      {"/model/merges", Json::array({"ab"}), "not two tokens"},
      {"/model/merges", Json::array({Json::array({"a"})}), "not a pair"},
      {"/model/merges", Json::array({"a \u00ff\u00ff"}), "not in the vocabulary"},
      {"/normalizer", {{"type", "Precompiled"}}, "normalizer Precompiled"},
      {"/normalizer", {{"type", "Prepend"}, {"prepend", ""}}, "Prepend of nothing"},
      {"/normalizer",
       {{"type", "Replace"}, {"pattern", {{"Regex", "x*"}}}, {"content", "y"}},
       "matches nothing at all"},
      {"/normalizer",
       {{"type", "Replace"}, {"pattern", {{"Regex", "^x"}}}, {"content", "y"}},
       "'^x'"},
      {"/pre_tokenizer", {{"type", "FixedLength"}}, "pre_tokenizer FixedLength"},
      {"/post_processor", {{"type", "Pairs"}}, "post_processor Pairs"},
      {"/post_processor", {{"type", "BertProcessing"}}, "'cls'"},
      {"/post_processor", {{"type", "TemplateProcessing"}}, "no 'single'"},
      {"/post_processor",
       {{"type", "TemplateProcessing"}, {"single", Json::array()}},
       "no sequence A"},
      {"/decoder", {{"type", "CTC"}}, "decoder CTC"},
      {"/decoder", {{"type", "WordPiece"}}, "WordPiece without cleanup"},
      {"/added_tokens/0/id", 7, "'<|endoftext|>' has id 7"},
      {"/added_tokens/0/content", "", "empty token"},
      {"/added_tokens/0/special", "yes", "special"},
      {"/added_tokens", 5, "added_tokens is not a list"},
  };
  for (const auto& test : cases) {
    Json json = Json::parse(golden_json("gpt2"));
    json[Json::json_pointer(test.path)] = test.value;
    try {
      parse_tokenizer(json.dump(), "file.json");
      ADD_FAILURE() << test.path << " = " << test.value << " was accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kData);
      EXPECT_THAT(error.what(), HasSubstr("file.json"));
      EXPECT_THAT(error.what(), HasSubstr(test.reason)) << test.path;
    }
  }
  for (const char* text : {"", "{", "[]", "null", "{}"})
    EXPECT_THROW(parse_tokenizer(text, "file.json"), Error) << text;
}

TEST(TokenizerReport, SplitsLinesAtNewlinesAlone) {
  using Lines = std::vector<std::string_view>;
  EXPECT_EQ(split_lines(""), Lines{});
  EXPECT_EQ(split_lines("a\n\nb"), (Lines{"a", "", "b"}));
  EXPECT_EQ(split_lines("a\r\nb\n"), (Lines{"a\r", "b"}));
  EXPECT_EQ(split_lines("\n"), Lines{""});
}

std::string report_of(bool json, bool lines, bool single,
                      std::initializer_list<std::string_view> contents) {
  ThreadPool pool(2);
  const auto tokenizer = make_byte_tokenizer();
  std::FILE* file = std::tmpfile();
  EncodeReport report(json, lines, single, file);
  for (const auto content : contents) report.add("f", content, *tokenizer, {}, pool);
  report.finish();
  std::string text(static_cast<size_t>(std::ftell(file)), '\0');
  std::rewind(file);
  EXPECT_EQ(std::fread(text.data(), 1, text.size(), file), text.size());
  std::fclose(file);
  return text;
}

TEST(TokenizerReport, WritesOneJsonDocument) {
  const Json single = Json::parse(report_of(true, false, true, {"a\u00e9"}));
  EXPECT_EQ(single["ids"], Json({97, 0xC3, 0xA9}));
  EXPECT_EQ(single["offsets"], Json::parse("[[0, 1], [1, 2], [1, 2]]"));
  const Json several = Json::parse(report_of(true, false, false, {"a", ""}));
  ASSERT_EQ(several.size(), 2u);
  EXPECT_EQ(several[1]["ids"], Json::array());
  const Json lines = Json::parse(report_of(true, true, false, {"a\nb\n", "c"}));
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_EQ(lines[1]["line"], 2);
  EXPECT_EQ(lines[2]["ids"], Json({99}));
  EXPECT_EQ(Json::parse(report_of(true, true, false, {""})), Json::array());
  EXPECT_EQ(report_of(false, true, false, {"ab\nc"}), "97 98\n99\n");
}

TEST(TokenizerReport, ReadsIdsBack) {
  using Sequences = std::vector<std::vector<int32_t>>;
  EXPECT_EQ(read_id_sequences("[1, 2]", "f"), (Sequences{{1, 2}}));
  EXPECT_EQ(read_id_sequences("[1]\n\n[2, 3]\n", "f"), (Sequences{{1}, {2, 3}}));
  EXPECT_EQ(read_id_sequences("[[1], []]", "f"), (Sequences{{1}, {}}));
  EXPECT_EQ(read_id_sequences(report_of(true, true, false, {"a\nb"}), "f"),
            (Sequences{{97}, {98}}));
  for (const char* text : {"x", "[1.5]", "{\"a\": 1}", "[-1]", "[1]\n[\"a\"]"}) {
    try {
      read_id_sequences(text, "ids.json");
      ADD_FAILURE() << text;
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr("ids.json"));
    }
  }
}

TEST(TokenizerReport, InspectsATokenizer) {
  ThreadPool pool(1);
  const auto tokenizer = make_byte_tokenizer();
  const std::string file = TRIREME_SOURCE_DIR "/tests/goldens/tokenizers/few-bytes.tokenizer.json";
  const auto inspection = inspect_tokenizer(*tokenizer, {file}, pool);
  EXPECT_EQ(inspection.tokens, static_cast<int64_t>(read_file(file).size()));
  const auto json = inspection_json(inspection);
  EXPECT_EQ(json["vocab_size"], 257);
  EXPECT_EQ(json["bytes_per_token"], 1.0);
  EXPECT_EQ(json["eos"], "<|endoftext|>");
  EXPECT_THAT(inspection_text(inspection), HasSubstr("257"));
}

}  // namespace
}  // namespace trireme::data
