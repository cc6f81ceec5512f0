#include "trireme/data/bpe_trainer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trireme/base/error.h"
#include "trireme/base/file.h"
#include "trireme/data/bpe.h"
#include "trireme/data/tokenizer_json.h"

namespace trireme::data {
namespace {

Json training_golden() {
  return parse_json(read_file(TRIREME_SOURCE_DIR "/tests/goldens/tokenizers/training.json"),
                    "training.json");
}

std::unique_ptr<Tokenizer> train(const BpeTrainOptions& options,
                                 const std::vector<std::string>& texts, int threads = 1) {
  ThreadPool pool(threads);
  const std::vector<std::string_view> views(texts.begin(), texts.end());
  return train_bpe_on_texts(options, views, pool);
}

TEST(BpeTrainer, MergesTheMostFrequentPairFirst) {
  // "low" x5, "lower" x2, "newest" x6, "widest" x3 (Sennrich et al. 2016, algorithm 1): e+s occurs 9 times, es+t 9 times,
  // l+o 7 times, lo+w 7 times, n+e 6, ... Spaces belong to words here, so words stand alone.
  std::vector<std::string> texts;
  const auto add = [&](const char* word, int count) {
    texts.insert(texts.end(), static_cast<size_t>(count), word);
  };
  add("low", 5);
  add("lower", 2);
  add("newest", 6);
  add("widest", 3);
  const auto file = parse_tokenizer_file(
      train({.vocab_size = 260, .special_tokens = {}}, texts)->to_json(), "test");
  using Merge = std::pair<std::string, std::string>;
  EXPECT_EQ(file.merges, (std::vector<Merge>{{"e", "s"}, {"es", "t"}, {"l", "o"}, {"lo", "w"}}));
}

TEST(BpeTrainer, EqualsTheTokenizersLibrary) {
  const Json golden = training_golden();
  const auto texts = golden["texts"].get<std::vector<std::string>>();
  const std::pair<const char*, std::vector<std::string>> cases[] = {
      {"gpt2", {"<|endoftext|>"}},
      {"llama3", {"<|begin_of_text|>", "<|end_of_text|>"}},
      {"qwen2", {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}},
  };
  for (const auto& [pattern, special] : cases) {
    const auto tokenizer =
        train({.vocab_size = 440, .pattern = pattern, .special_tokens = special}, texts);
    const auto file = parse_tokenizer_file(tokenizer->to_json(), pattern);
    const auto vocab = golden[pattern]["vocab"].get<std::vector<std::string>>();
    ASSERT_EQ(file.vocab.size(), vocab.size()) << pattern;
    for (size_t i = 0; i < vocab.size(); ++i)
      ASSERT_EQ(file.vocab[i].first, vocab[i]) << pattern << " id " << i;
    const auto merges =
        golden[pattern]["merges"].get<std::vector<std::pair<std::string, std::string>>>();
    EXPECT_EQ(file.merges, merges) << pattern;
  }
}

TEST(BpeTrainer, DoesNotDependOnThreadsOrOrderOfTexts) {
  auto texts = training_golden()["texts"].get<std::vector<std::string>>();
  const BpeTrainOptions options{.vocab_size = 400, .pattern = "llama3"};
  const std::string one = train(options, texts, 1)->to_json();
  EXPECT_EQ(train(options, texts, 4)->to_json(), one);
  std::reverse(texts.begin(), texts.end());
  EXPECT_EQ(train(options, texts, 3)->to_json(), one);
}

TEST(BpeTrainer, CutsLongTextsWithoutCuttingWords) {
  std::string text;
  for (int i = 0; text.size() < (size_t{3} << 20); ++i) text += " word" + std::to_string(i % 97);
  std::vector<std::string> lines;
  for (size_t at = 0; at < text.size();) {
    size_t end = text.find(' ', at + 1);
    if (end == std::string::npos) end = text.size();
    lines.push_back(text.substr(at, end - at));
    at = end;
  }
  const BpeTrainOptions options{.vocab_size = 320};
  EXPECT_EQ(train(options, {text}, 3)->to_json(), train(options, lines, 1)->to_json());
}

TEST(BpeTrainer, ReportsProgressAndStopsWhenPairsRunOut) {
  ThreadPool pool(2);
  const std::vector<std::string_view> texts = {"aa aa aa", "bb"};
  std::vector<std::string> phases;
  int64_t counted = 0;
  const auto tokenizer =
      train_bpe_on_texts({.vocab_size = 1000}, texts, pool, [&](const BpeTrainProgress& progress) {
        if (phases.empty() || phases.back() != progress.phase) phases.emplace_back(progress.phase);
        if (phases.back() == "count") counted = progress.done;
      });
  EXPECT_EQ(phases, (std::vector<std::string>{"count", "merge"}));
  EXPECT_EQ(counted, 10);
  // 256 bytes, one special token, "aa" (three times) and " aa" (twice); "bb" occurs once, below min_frequency.
  EXPECT_EQ(tokenizer->vocab_size(), 259);
  EXPECT_EQ(tokenizer->token_to_id("<|endoftext|>"), 0);
}

TEST(BpeTrainer, RefusesOptionsThatCannotWork) {
  const auto message = [](const BpeTrainOptions& options, const std::vector<std::string>& texts) {
    try {
      train(options, texts);
    } catch (const Error& error) {
      return std::string(error.what()) + " | " + error.hint();
    }
    return std::string("accepted");
  };
  EXPECT_THAT(message({.vocab_size = 100}, {"x"}), testing::HasSubstr("at least 257"));
  EXPECT_THAT(message({.pattern = "gpt-2"}, {"x"}), testing::HasSubstr("did you mean 'gpt2'"));
  EXPECT_THAT(message({.special_tokens = {""}}, {"x"}), testing::HasSubstr("special token"));
  EXPECT_THAT(message({}, {""}), testing::HasSubstr("no text"));
  EXPECT_THAT(message({.vocab_size = int64_t{1} << 40}, {"x"}), testing::HasSubstr("too large"));
}

}  // namespace
}  // namespace trireme::data
