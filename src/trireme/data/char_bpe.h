// BPE on characters, with bytes or an unknown token for characters that are not in the vocabulary
// (Llama-2, Mistral, Gemma).
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "trireme/data/bpe.h"
#include "trireme/data/token_model.h"

namespace trireme::data {

struct CharBpeOptions {
  std::optional<std::string> unknown_token{};
  bool fuse_unknown = false;  ///< neighbouring unknown characters make one token
  bool byte_fallback = false;
  bool ignore_merges = false;  ///< a piece that is a token is taken as it is
};

class CharBpe final : public TokenModel {
 public:
  using Vocabulary = std::vector<std::pair<std::string, int32_t>>;
  /// Every token of `merges` is in the vocabulary.
  CharBpe(const Vocabulary& vocabulary, const std::vector<BpeMerge>& merges,
          CharBpeOptions options);

  void encode(std::string_view piece, std::vector<int32_t>& ids,
              std::vector<TokenSpan>* spans) const override;
  bool has_parts() const override { return has_parts_; }
  size_t part_end(std::string_view piece, size_t at) const override;
  bool parts_before(uint32_t next) const override;

 private:
  // ASCII and U+2581 have a table of their own for the pairs that text is cut between.
  static constexpr uint32_t kMetaspace = 0x2581;
  static constexpr uint32_t kNumSmall = 129;
  static uint32_t small_index(uint32_t c) {
    return c < 128 ? c : c == kMetaspace ? 128 : kNumSmall;
  }

  int32_t id_of(uint32_t c) const;
  bool may_cut(uint32_t left, uint32_t right) const;
  void find_cuts(const Vocabulary& vocabulary, const std::vector<BpeMerge>& merges);
  size_t pair_bit(uint32_t left, uint32_t right) const {
    return ((static_cast<uint64_t>(left) << 32 | right) * 0x9E3779B97F4A7C15ULL) >> pair_shift_;
  }

  std::vector<int32_t> small_ids_;  ///< by code point below 2^16
  std::unordered_map<uint32_t, int32_t> large_ids_;
  std::array<int32_t, 256> byte_ids_;
  int32_t unknown_id_ = -1;
  bool knows_all_ = false;  ///< every character has bytes
  CharBpeOptions options_;
  BpeMerges merges_;
  StringToId whole_;
  bool has_parts_ = false;
  std::vector<uint8_t> small_cuts_;
  std::vector<uint64_t> joined_pairs_;  ///< a set by hash: characters on both sides of some merge
  int pair_shift_ = 0;
};

}  // namespace trireme::data
