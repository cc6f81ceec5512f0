// Unigram: the cut of a piece into tokens that has the best sum of scores (Kudo 2018,
// arXiv:1804.10959).
#pragma once

#include <array>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "trireme/data/byte_trie.h"
#include "trireme/data/token_model.h"

namespace trireme::data {

class Unigram final : public TokenModel {
 public:
  /// `scores` by id. Neighbouring unknown characters make one token, or their bytes with
  /// `byte_fallback`.
  Unigram(const std::vector<std::pair<std::string, int32_t>>& vocabulary,
          const std::vector<double>& scores, std::optional<int32_t> unknown_id, bool byte_fallback);

  void encode(std::string_view piece, std::vector<int32_t>& ids,
              std::vector<TokenSpan>* spans) const override;
  bool is_spelled_as(int32_t id, std::string_view text) const override {
    return id == unknown_id_ && (id_of(text) >= 0 || !has_bytes_for(text));
  }

 private:
  int32_t id_of(std::string_view token) const;
  /// Unknown text is written in bytes.
  bool has_bytes_for(std::string_view text) const;

  ByteTrie trie_;
  std::vector<double> scores_;
  double unknown_score_;
  int32_t unknown_id_;
  std::array<int32_t, 256> byte_ids_;
  bool byte_fallback_;
};

}  // namespace trireme::data
