// WordPiece: the longest token first, and so on in the rest of the word (BERT).
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "trireme/data/byte_trie.h"
#include "trireme/data/token_model.h"

namespace trireme::data {

struct WordPieceOptions {
  std::string unknown_token = "[UNK]";
  std::string continuing_prefix = "##";
  int64_t max_word_characters = 100;  ///< longer words are unknown
};

class WordPiece final : public TokenModel {
 public:
  WordPiece(const std::vector<std::pair<std::string, int32_t>>& vocabulary,
            WordPieceOptions options);
  void encode(std::string_view piece, std::vector<int32_t>& ids,
              std::vector<TokenSpan>* spans) const override;

 private:
  ByteTrie trie_;
  WordPieceOptions options_;
  uint32_t continuing_root_;
  int32_t unknown_id_ = -1;
};

}  // namespace trireme::data
