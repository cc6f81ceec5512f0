#include "trireme/data/tokenizer_added_tokens.h"

#include <algorithm>

#include "trireme/data/tokenizer_unicode.h"
#include "trireme/data/unicode_sets.h"

namespace trireme::data {
namespace {

/// Start of the character that ends at `end` (> 0).
size_t previous_character(std::string_view text, size_t end) {
  do {
    --end;
  } while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80);
  return end;
}

uint32_t code_point_at(std::string_view text, size_t at) {
  return next_code_point(text, at);
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(std::vector<AddedToken> tokens)
    : tokens_(std::move(tokens)), nodes_(1) {
  std::erase_if(tokens_, [](const AddedToken& token) { return token.content.empty(); });
  for (size_t i = 0; i < tokens_.size(); ++i) {
    uint32_t node = 0;
    for (const char c : tokens_[i].content) {
      const auto byte = static_cast<unsigned char>(c);
      auto& children = nodes_[node].children;
      const auto it = std::find_if(children.begin(), children.end(),
                                   [&](const auto& child) { return child.first == byte; });
      if (it != children.end()) {
        node = it->second;
        continue;
      }
      const auto added = static_cast<uint32_t>(nodes_.size());
      children.emplace_back(byte, added);
      nodes_.emplace_back();
      node = added;
    }
    nodes_[node].token = static_cast<int32_t>(i);
    starts_[static_cast<unsigned char>(tokens_[i].content[0])] = true;
  }
}

bool AddedTokenMatcher::find(std::string_view text, size_t from, Match& match) const {
  if (tokens_.empty()) return false;
  for (size_t begin = from; begin < text.size(); ++begin) {
    if (!starts_[static_cast<unsigned char>(text[begin])]) continue;
    uint32_t node = 0;
    match.token = nullptr;
    for (size_t at = begin; at < text.size(); ++at) {
      const auto byte = static_cast<unsigned char>(text[at]);
      const auto& children = nodes_[node].children;
      const auto it = std::find_if(children.begin(), children.end(),
                                   [&](const auto& child) { return child.first == byte; });
      if (it == children.end()) break;
      node = it->second;
      if (nodes_[node].token >= 0)
        match = {&tokens_[static_cast<size_t>(nodes_[node].token)], begin, at + 1};
    }
    if (match.token != nullptr) return true;
  }
  return false;
}

bool AddedTokenMatcher::extend(std::string_view text, Match& match) {
  const AddedToken& token = *match.token;
  if (token.single_word) {
    if (match.begin > 0 &&
        word_characters().contains(code_point_at(text, previous_character(text, match.begin))))
      return false;
    if (match.end < text.size() && word_characters().contains(code_point_at(text, match.end)))
      return false;
  }
  const auto& classes = CharClassTable::instance();
  while (token.lstrip && match.begin > 0) {
    const size_t before = previous_character(text, match.begin);
    if (classes[code_point_at(text, before)] != kSpaceChar) break;
    match.begin = before;
  }
  while (token.rstrip && match.end < text.size()) {
    size_t after = match.end;
    if (classes[next_code_point(text, after)] != kSpaceChar) break;
    match.end = after;
  }
  return true;
}

}  // namespace trireme::data
