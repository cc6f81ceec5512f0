#include "trireme/data/bpe_trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <queue>

#include "trireme/base/error.h"
#include "trireme/base/file.h"
#include "trireme/base/suggest.h"
#include "trireme/data/bpe.h"
#include "trireme/data/composed_tokenizer.h"
#include "trireme/data/known_patterns.h"
#include "trireme/data/tokenizer_unicode.h"
#include "trireme/data/unicode_forms.h"

namespace trireme::data {
namespace {

constexpr size_t kSegmentBytes = size_t{1} << 20;
/// A longer run without a break is data rather than words (and merging in it would take forever).
constexpr size_t kMaxWordBytes = 8192;

Json pre_tokenizer_json(KnownPattern pattern) {
  const bool gpt2 = pattern == KnownPattern::kGpt2;
  Json byte_level = {{"type", "ByteLevel"},
                     {"add_prefix_space", false},
                     {"trim_offsets", true},
                     {"use_regex", gpt2}};
  if (gpt2) return byte_level;
  Json split = {{"type", "Split"},
                {"pattern", {{"Regex", std::string(pattern_text(pattern))}}},
                {"behavior", "Isolated"},
                {"invert", false}};
  return {{"type", "Sequence"}, {"pretokenizers", Json::array({split, byte_level})}};
}

using WordCounts = std::unordered_map<std::string, int64_t, StringHash, std::equal_to<>>;

struct CountedWord {
  std::string bytes;
  int64_t count;
};

/// Cuts texts where no word is cut.
std::vector<std::string_view> segments_of(std::span<const std::string_view> texts) {
  std::vector<std::string_view> segments;
  for (std::string_view rest : texts) {
    while (rest.size() > 2 * kSegmentBytes) {
      size_t cut = kSegmentBytes;
      while (cut < rest.size() &&
             !(rest[cut] == ' ' && rest[cut - 1] > 0x20 && rest[cut - 1] < 0x7F))
        ++cut;
      if (cut == rest.size()) break;
      segments.push_back(rest.substr(0, cut));
      rest.remove_prefix(cut);
    }
    segments.push_back(rest);
  }
  return segments;
}

void count_words(std::string_view text, KnownPattern pattern, WordCounts& counts) {
  std::string repaired;
  if (!is_valid_utf8(text)) {
    repaired = replace_invalid_utf8(text);
    text = repaired;
  }
  std::string normalized;
  if (pattern == KnownPattern::kQwen2) {
    normalized = to_normal_form(text, NormalForm::kNfc);
    text = normalized;
  }
  for (size_t at = 0; at < text.size();) {
    const size_t end = known_piece_end(pattern, text, at);
    const std::string_view word = text.substr(at, end - at);
    at = end;
    if (word.size() > kMaxWordBytes) continue;
    const auto it = counts.find(word);
    if (it != counts.end()) {
      ++it->second;
    } else {
      counts.emplace(word, 1);
    }
  }
}

/// All words with their counts, sorted by bytes: the same for any number of threads.
std::vector<CountedWord> count_all_words(std::span<const std::string_view> texts,
                                         KnownPattern pattern, ThreadPool& pool,
                                         const BpeTrainCallback& progress) {
  const auto segments = segments_of(texts);
  int64_t total = 0;
  for (const auto& segment : segments) total += static_cast<int64_t>(segment.size());
  const int workers = pool.num_threads();
  std::vector<WordCounts> counts(static_cast<size_t>(workers));
  std::atomic<size_t> next{0};
  std::mutex progress_mutex;
  int64_t done = 0;
  pool.parallel_for(workers, [&](int64_t worker) {
    for (size_t i = next++; i < segments.size(); i = next++) {
      count_words(segments[i], pattern, counts[static_cast<size_t>(worker)]);
      if (!progress) continue;
      const std::scoped_lock lock(progress_mutex);
      done += static_cast<int64_t>(segments[i].size());
      progress({"count", done, total});
    }
  });
  // Each worker unites the words of one share of the hashes.
  std::vector<std::vector<CountedWord>> shares(static_cast<size_t>(workers));
  pool.parallel_for(workers, [&](int64_t share) {
    WordCounts united;
    for (const WordCounts& part : counts) {
      for (const auto& [word, count] : part) {
        if (StringHash{}(word) % static_cast<size_t>(workers) == static_cast<size_t>(share))
          united[word] += count;
      }
    }
    auto& words = shares[static_cast<size_t>(share)];
    for (auto& [word, count] : united) words.push_back({word, count});
  });
  std::vector<CountedWord> words;
  for (auto& share : shares) std::move(share.begin(), share.end(), std::back_inserter(words));
  std::sort(words.begin(), words.end(),
            [](const CountedWord& a, const CountedWord& b) { return a.bytes < b.bytes; });
  return words;
}

using Pair = uint64_t;
Pair pair_of(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

struct PairHash {
  size_t operator()(Pair pair) const {
    pair *= 0x9E3779B97F4A7C15ULL;
    return pair ^ (pair >> 32);
  }
};

/// The words as symbol ids, merged in place; and how often every pair of neighbours occurs.
///
/// Repeats the `tokenizers` library's bookkeeping to the letter, its quirks included, because the order of merges follows
/// from it: a queue entry lists the words that got its pair at one time; an entry whose count is out of date goes back with the
/// present one; the count of a merged pair is left as it was.
class MergeLoop {
 public:
  MergeLoop(const std::vector<CountedWord>& words, const std::vector<int32_t>& byte_ids) {
    size_t total = 0;
    for (const auto& word : words) total += word.bytes.size();
    symbols_.reserve(total);
    words_.reserve(words.size());
    for (const auto& word : words) {
      words_.push_back({symbols_.size(), static_cast<uint32_t>(word.bytes.size()), word.count});
      for (const char c : word.bytes) symbols_.push_back(byte_ids[static_cast<unsigned char>(c)]);
    }
    for (uint32_t i = 0; i < words_.size(); ++i) {
      const int32_t* ids = symbols_.data() + words_[i].begin;
      for (uint32_t k = 0; k + 1 < words_[i].length; ++k)
        add(pair_of(ids[k], ids[k + 1]), words_[i].count, i);
    }
    queue_new_pairs();
  }

  struct Best {
    int32_t left;
    int32_t right;
    std::vector<uint32_t> words;
  };

  /// The most frequent pair, the one with the smallest ids among equals; nothing once none reaches `min_frequency`.
  std::optional<Best> pop(int64_t min_frequency) {
    while (!queue_.empty()) {
      std::pop_heap(queue_.begin(), queue_.end(), lower);
      Entry& top = queue_.back();
      const int64_t now = counts_[top.pair];
      if (top.count != now) {
        top.count = now;
        std::push_heap(queue_.begin(), queue_.end(), lower);
        continue;
      }
      if (top.count < std::max<int64_t>(1, min_frequency)) return std::nullopt;
      Best best{static_cast<int32_t>(top.pair >> 32), static_cast<int32_t>(top.pair & 0xFFFFFFFF),
                std::move(top.words)};
      queue_.pop_back();
      return best;
    }
    return std::nullopt;
  }

  void merge(const Best& best, int32_t merged) {
    for (const uint32_t word : best.words) merge_in(word, best.left, best.right, merged);
    queue_new_pairs();
  }

 private:
  struct Word {
    size_t begin;
    uint32_t length;
    int64_t count;
  };
  struct Entry {
    int64_t count;
    Pair pair;
    std::vector<uint32_t> words;
  };
  static bool lower(const Entry& a, const Entry& b) {
    return a.count != b.count ? a.count < b.count : a.pair > b.pair;
  }

  void add(Pair pair, int64_t count, uint32_t word) {
    counts_[pair] += count;
    auto& words = new_pairs_[pair];
    if (words.empty() || words.back() != word) words.push_back(word);
  }

  void merge_in(uint32_t index, int32_t left, int32_t right, int32_t merged) {
    Word& word = words_[index];
    int32_t* ids = symbols_.data() + word.begin;
    uint32_t out = 0;
    for (uint32_t i = 0; i < word.length;) {
      if (ids[i] != left || i + 1 >= word.length || ids[i + 1] != right) {
        ids[out++] = ids[i++];
        continue;
      }
      if (out > 0) {
        counts_[pair_of(ids[out - 1], left)] -= word.count;
        add(pair_of(ids[out - 1], merged), word.count, index);
      }
      if (i + 2 < word.length) {
        counts_[pair_of(right, ids[i + 2])] -= word.count;
        add(pair_of(merged, ids[i + 2]), word.count, index);
      }
      ids[out++] = merged;
      i += 2;
    }
    word.length = out;
  }

  void queue_new_pairs() {
    for (auto& [pair, words] : new_pairs_) {
      const int64_t count = counts_[pair];
      if (count <= 0) continue;
      queue_.push_back({count, pair, std::move(words)});
      std::push_heap(queue_.begin(), queue_.end(), lower);
    }
    new_pairs_.clear();
  }

  std::vector<int32_t> symbols_;
  std::vector<Word> words_;
  std::unordered_map<Pair, int64_t, PairHash> counts_;
  std::unordered_map<Pair, std::vector<uint32_t>, PairHash> new_pairs_;
  std::vector<Entry> queue_;  ///< a heap
};

void check_options(const BpeTrainOptions& options) {
  TRIREME_USER_CHECK(pattern_by_name(options.pattern) != KnownPattern::kNone, kConfig,
                     suggestion(options.pattern, {"gpt2", "llama3", "qwen2"}),
                     "unknown pre-tokenizer pattern '{}'", options.pattern);
  const auto smallest = static_cast<int64_t>(256 + options.special_tokens.size());
  TRIREME_USER_CHECK(options.vocab_size >= smallest, kConfig,
                     fmt::format("ask for at least {}", smallest),
                     "a vocabulary of {} has no room for the 256 bytes and {} special tokens",
                     options.vocab_size, options.special_tokens.size());
  TRIREME_USER_CHECK(options.vocab_size <= int64_t{1} << 24, kConfig, "ask for less",
                     "a vocabulary of {} is too large", options.vocab_size);
  for (const auto& token : options.special_tokens) {
    TRIREME_USER_CHECK(!token.empty() && is_valid_utf8(token), kConfig, "write it as UTF-8 text",
                       "special token '{}' is empty or not text", token);
  }
}

}  // namespace

std::unique_ptr<Tokenizer> train_bpe_on_texts(const BpeTrainOptions& options,
                                              std::span<const std::string_view> texts,
                                              ThreadPool& pool, const BpeTrainCallback& progress) {
  check_options(options);
  const KnownPattern pattern = pattern_by_name(options.pattern);
  const auto words = count_all_words(texts, pattern, pool, progress);
  TRIREME_USER_CHECK(!words.empty(), kData, "name files with text in them",
                     "there is no text to train a tokenizer on");

  TokenizerFile file =
      make_tokenizer_file(pre_tokenizer_json(pattern), pattern == KnownPattern::kQwen2);
  StringToId ids;
  const auto add = [&](const std::string& token) {
    const auto [it, added] = ids.emplace(token, static_cast<int32_t>(ids.size()));
    if (added) file.vocab.emplace_back(token, it->second);
    return it->second;
  };
  for (const auto& content : options.special_tokens) {
    if (ids.contains(content)) continue;
    AddedToken token;
    token.content = content;
    token.special = true;
    token.id = add(content);
    file.added_tokens.push_back(std::move(token));
  }
  // The byte alphabet, in the order of the stand-ins' code points.
  std::vector<int> order(256);
  for (int b = 0; b < 256; ++b) order[static_cast<size_t>(b)] = b;
  std::sort(order.begin(), order.end(), [](int a, int b) {
    return byte_stand_in(static_cast<uint8_t>(a)) < byte_stand_in(static_cast<uint8_t>(b));
  });
  std::vector<int32_t> byte_ids(256);
  for (const int b : order) {
    const char byte = static_cast<char>(b);
    byte_ids[static_cast<size_t>(b)] = add(bytes_to_token(std::string_view(&byte, 1)));
  }

  MergeLoop loop(words, byte_ids);
  std::vector<std::pair<int32_t, int32_t>> merges;
  const auto total = options.vocab_size - static_cast<int64_t>(ids.size());
  const auto start = static_cast<int64_t>(ids.size());
  while (static_cast<int64_t>(ids.size()) < options.vocab_size) {
    const auto best = loop.pop(options.min_frequency);
    if (!best) break;
    const auto token = [&](int32_t id) { return file.vocab[static_cast<size_t>(id)].first; };
    const int32_t merged = add(token(best->left) + token(best->right));
    merges.emplace_back(best->left, best->right);
    loop.merge(*best, merged);
    if (progress && merges.size() % 64 == 0)
      progress({"merge", static_cast<int64_t>(ids.size()) - start, total});
  }
  if (progress) progress({"merge", static_cast<int64_t>(ids.size()) - start, total});

  // Of a pair that was merged twice, the later rank counts.
  std::unordered_map<Pair, size_t, PairHash> last;
  for (size_t i = 0; i < merges.size(); ++i) last[pair_of(merges[i].first, merges[i].second)] = i;
  for (size_t i = 0; i < merges.size(); ++i) {
    if (last[pair_of(merges[i].first, merges[i].second)] != i) continue;
    file.merges.emplace_back(file.vocab[static_cast<size_t>(merges[i].first)].first,
                             file.vocab[static_cast<size_t>(merges[i].second)].first);
  }
  return make_composed_tokenizer(std::move(file), "the trained tokenizer");
}

std::unique_ptr<Tokenizer> train_bpe(const BpeTrainOptions& options,
                                     const std::vector<std::filesystem::path>& files,
                                     ThreadPool& pool, const BpeTrainCallback& progress) {
  check_options(options);
  std::vector<MappedFile> maps;
  std::vector<std::string_view> texts;
  maps.reserve(files.size());
  texts.reserve(files.size());
  for (const auto& file : files) texts.push_back(maps.emplace_back(file).text());
  return train_bpe_on_texts(options, texts, pool, progress);
}

}  // namespace trireme::data
