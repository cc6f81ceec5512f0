#include "trireme/data/unigram.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "trireme/base/error.h"
#include "trireme/data/tokenizer_unicode.h"

namespace trireme::data {
namespace {

constexpr double kUnknownPenalty = 10.0;

size_t total_bytes(const std::vector<std::pair<std::string, int32_t>>& vocabulary) {
  size_t total = 0;
  for (const auto& [token, id] : vocabulary) total += token.size();
  return total;
}

/// The score that the `tokenizers` library reads from the shortest text of `score`: its JSON reader
/// rounds twice, which decides between cuts that are worth the same.
double as_the_library_reads(double score) {
  char text[32];
  const auto end =
      std::to_chars(text, text + sizeof text, score, std::chars_format::scientific).ptr;
  uint64_t digits = 0;
  int exponent = 0;
  bool after_point = false;
  const char* at = text;
  const bool negative = *at == '-';
  if (negative) ++at;
  for (; at < end && *at != 'e'; ++at) {
    if (*at == '.') {
      after_point = true;
      continue;
    }
    digits = digits * 10 + static_cast<uint64_t>(*at - '0');
    if (after_point) --exponent;
  }
  int written = 0;
  if (at < end) std::from_chars(at[1] == '+' ? at + 2 : at + 1, end, written);
  exponent += written;
  if (exponent < -300 || exponent > 300) return score;
  auto value = static_cast<double>(digits);
  double power = 1;
  const std::string power_text = fmt::format("1e{}", std::abs(exponent));
  std::from_chars(power_text.data(), power_text.data() + power_text.size(), power);
  value = exponent < 0 ? value / power : value * power;
  return negative ? -value : value;
}

}  // namespace

Unigram::Unigram(const std::vector<std::pair<std::string, int32_t>>& vocabulary,
                 const std::vector<double>& scores, std::optional<int32_t> unknown_id,
                 bool byte_fallback)
    : trie_(total_bytes(vocabulary)),
      unknown_id_(unknown_id.value_or(-1)),
      byte_fallback_(byte_fallback) {
  double lowest = std::numeric_limits<double>::infinity();
  for (const double score : scores) {
    scores_.push_back(as_the_library_reads(score));
    lowest = std::min(lowest, scores_.back());
  }
  unknown_score_ = lowest - kUnknownPenalty;
  for (const auto& [token, id] : vocabulary) trie_.add(token, id);
  for (size_t b = 0; b < byte_ids_.size(); ++b) byte_ids_[b] = id_of(fmt::format("<0x{:02X}>", b));
}

int32_t Unigram::id_of(std::string_view token) const {
  const uint32_t node = trie_.walk(ByteTrie::kRoot, token);
  return node == ByteTrie::kNone ? -1 : trie_.value(node);
}

bool Unigram::has_bytes_for(std::string_view text) const {
  return byte_fallback_ && std::all_of(text.begin(), text.end(), [&](char b) {
           return byte_ids_[static_cast<unsigned char>(b)] >= 0;
         });
}

void Unigram::encode(std::string_view piece, std::vector<int32_t>& ids,
                     std::vector<TokenSpan>* spans) const {
  struct Best {
    double score;
    int32_t start;  // of the token that ends here; -1 for none
    int32_t id;
  };
  TRIREME_USER_CHECK(piece.size() < size_t{1} << 30, kData, "split the text",
                     "a piece of text without a break has {} bytes", piece.size());
  static thread_local std::vector<Best> best;
  best.assign(piece.size() + 1, {0.0, -1, 0});
  const auto offer = [&](size_t end, size_t start, double score, int32_t id) {
    Best& target = best[end];
    if (target.start < 0 || score > target.score) target = {score, static_cast<int32_t>(start), id};
  };
  for (size_t start = 0; start < piece.size();) {
    size_t next = start;
    next_code_point(piece, next);
    const double till_here = best[start].score;
    bool has_single = false;
    uint32_t node = ByteTrie::kRoot;
    for (size_t at = start; at < piece.size(); ++at) {
      node = trie_.next(node, static_cast<unsigned char>(piece[at]));
      if (node == ByteTrie::kNone) break;
      const int32_t id = trie_.value(node);
      if (id < 0) continue;
      offer(at + 1, start, scores_[static_cast<size_t>(id)] + till_here, id);
      has_single = has_single || at + 1 == next;
    }
    if (!has_single) {
      const bool wins = best[next].start < 0 || unknown_score_ + till_here > best[next].score;
      TRIREME_USER_CHECK(!wins || unknown_id_ >= 0, kData, "give the file an unk_id",
                         "the text has '{}', which is not in the vocabulary, and the model no "
                         "unk_id",
                         piece.substr(start, next - start));
      offer(next, start, unknown_score_ + till_here, unknown_id_);
    }
    start = next;
  }
  // From the end back; neighbouring unknown ones become one.
  static thread_local std::vector<TokenSpan> path;
  path.clear();
  bool unknown_follows = false;
  for (size_t end = piece.size(); end > 0;) {
    const Best& node = best[end];
    const auto start = static_cast<uint32_t>(node.start);
    const bool unknown = node.id == unknown_id_;
    if (unknown && unknown_follows) {
      path.back().begin = start;
    } else {
      path.push_back({start, static_cast<uint32_t>(end)});
    }
    unknown_follows = unknown;
    end = start;
  }
  for (size_t i = path.size(); i-- > 0;) {
    const std::string_view text = piece.substr(path[i].begin, path[i].end - path[i].begin);
    const auto add = [&](int32_t id) {
      ids.push_back(id);
      if (spans != nullptr) spans->push_back(path[i]);
    };
    if (const int32_t id = id_of(text); id >= 0) {
      add(id);
    } else if (has_bytes_for(text)) {
      for (const char b : text) add(byte_ids_[static_cast<unsigned char>(b)]);
    } else {
      add(unknown_id_);
    }
  }
}

}  // namespace trireme::data
