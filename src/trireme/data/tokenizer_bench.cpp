// Speed of cutting text into pieces, of BPE, and of training, on text made up like code.
#include <benchmark/benchmark.h>

#include "trireme/data/bpe_trainer.h"
#include "trireme/data/known_patterns.h"
#include "trireme/data/piece_regex.h"
#include "trireme/data/tokenizer.h"

namespace trireme::data {
namespace {

/// About 4 MB of text with the word statistics of code: identifiers, numbers, indentation.
const std::string& sample_text() {
  static const std::string text = [] {
    std::string result;
    uint64_t state = 1;
    const auto next = [&](uint64_t bound) {
      state = state * 6364136223846793005ULL + 1442695040888963407ULL;
      return (state >> 33) % bound;
    };
    while (result.size() < size_t{4} << 20) {
      result.append(4 * next(4), ' ');
      for (uint64_t words = 1 + next(9); words > 0; --words) {
        // Few words are frequent, most are rare.
        uint64_t word = next(1 + next(1 + next(20000)));
        for (word = word * 2654435761ULL % 100000007; word > 0; word /= 19)
          result += static_cast<char>('a' + word % 19);
        const char* const separators[] = {" ", " ", "_", "(", ") ", " = ", ", ", ".", " 42"};
        result += separators[next(9)];
      }
      result += '\n';
    }
    return result;
  }();
  return text;
}

void set_bytes(benchmark::State& state) {
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations()) *
                          static_cast<int64_t>(sample_text().size()));
}

void BM_CutIntoPieces(benchmark::State& state) {
  const auto pattern = static_cast<KnownPattern>(state.range(0));
  for (auto _ : state) {
    size_t pieces = 0;
    for (size_t at = 0; at < sample_text().size(); ++pieces)
      at = known_piece_end(pattern, sample_text(), at);
    benchmark::DoNotOptimize(pieces);
  }
  set_bytes(state);
}
BENCHMARK(BM_CutIntoPieces)
    ->Arg(static_cast<int>(KnownPattern::kGpt2))
    ->Arg(static_cast<int>(KnownPattern::kLlama3));

void BM_CutIntoPiecesReference(benchmark::State& state) {
  const PieceRegex regex(std::string(pattern_text(static_cast<KnownPattern>(state.range(0)))),
                         "bench");
  for (auto _ : state) {
    std::vector<TextPiece> pieces;
    regex.find(sample_text(), {0, sample_text().size()}, pieces);
    benchmark::DoNotOptimize(pieces.size());
  }
  set_bytes(state);
}
BENCHMARK(BM_CutIntoPiecesReference)
    ->Arg(static_cast<int>(KnownPattern::kGpt2))
    ->Arg(static_cast<int>(KnownPattern::kLlama3));

const Tokenizer& trained_tokenizer() {
  static const auto tokenizer = [] {
    ThreadPool pool;
    const std::string_view text = sample_text();
    return train_bpe_on_texts({.vocab_size = 8192, .pattern = "llama3"}, std::span(&text, 1), pool);
  }();
  return *tokenizer;
}

void BM_Encode(benchmark::State& state) {
  for (auto _ : state) {
    benchmark::DoNotOptimize(trained_tokenizer().encode(sample_text(), {false, false}).size());
  }
  set_bytes(state);
}
BENCHMARK(BM_Encode);

void BM_EncodeOnePiece(benchmark::State& state) {
  std::string text = sample_text().substr(0, size_t{1} << 20);
  std::erase_if(text, [](char c) { return c < 'a' || c > 'z'; });
  for (auto _ : state)
    benchmark::DoNotOptimize(trained_tokenizer().encode(text, {false, false}).size());
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations()) *
                          static_cast<int64_t>(text.size()));
}
BENCHMARK(BM_EncodeOnePiece);

void BM_Train(benchmark::State& state) {
  ThreadPool pool;
  const std::string_view text = sample_text();
  for (auto _ : state) {
    benchmark::DoNotOptimize(
        train_bpe_on_texts({.vocab_size = 8192}, std::span(&text, 1), pool)->vocab_size());
  }
  set_bytes(state);
}
BENCHMARK(BM_Train)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace trireme::data
