#include "trireme/data/wordpiece.h"

#include "trireme/base/error.h"
#include "trireme/data/tokenizer_unicode.h"

namespace trireme::data {
namespace {

size_t total_bytes(const std::vector<std::pair<std::string, int32_t>>& vocabulary) {
  size_t total = 0;
  for (const auto& [token, id] : vocabulary) total += token.size();
  return total;
}

}  // namespace

WordPiece::WordPiece(const std::vector<std::pair<std::string, int32_t>>& vocabulary,
                     WordPieceOptions options)
    : trie_(total_bytes(vocabulary)), options_(std::move(options)) {
  for (const auto& [token, id] : vocabulary) {
    trie_.add(token, id);
    if (token == options_.unknown_token) unknown_id_ = id;
  }
  continuing_root_ = trie_.walk(ByteTrie::kRoot, options_.continuing_prefix);
}

void WordPiece::encode(std::string_view piece, std::vector<int32_t>& ids,
                       std::vector<TokenSpan>* spans) const {
  const size_t first = ids.size();
  const size_t first_span = spans != nullptr ? spans->size() : 0;
  const auto size = static_cast<uint32_t>(piece.size());
  bool known = count_characters(piece) <= options_.max_word_characters;
  for (uint32_t start = 0; known && start < size;) {
    uint32_t node = start == 0 ? ByteTrie::kRoot : continuing_root_;
    uint32_t end = start;
    int32_t id = -1;
    for (uint32_t at = start; node != ByteTrie::kNone && at < size; ++at) {
      node = trie_.next(node, static_cast<unsigned char>(piece[at]));
      if (node == ByteTrie::kNone || trie_.value(node) < 0) continue;
      id = trie_.value(node);
      end = at + 1;
    }
    known = id >= 0;
    if (!known) break;
    ids.push_back(id);
    if (spans != nullptr) spans->push_back({start, end});
    start = end;
  }
  if (known) return;
  TRIREME_USER_CHECK(unknown_id_ >= 0, kData, "the file is damaged",
                     "the text has '{}', which is not in the vocabulary, and neither is unk_token "
                     "'{}'",
                     piece, options_.unknown_token);
  ids.resize(first);
  ids.push_back(unknown_id_);
  if (spans == nullptr) return;
  spans->resize(first_span);
  spans->push_back({0, size});
}

}  // namespace trireme::data
