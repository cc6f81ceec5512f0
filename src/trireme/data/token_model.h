// A tokenizer's model: turns one piece of text into tokens of its vocabulary.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace trireme::data {

/// Lets std::unordered_map<std::string, ...> be searched by string_view.
struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
};
using StringToId = std::unordered_map<std::string, int32_t, StringHash, std::equal_to<>>;

/// Bytes of the piece that a token stands for.
struct TokenSpan {
  uint32_t begin;
  uint32_t end;
};

/// Thread-safety: const access from any thread.
class TokenModel {
 public:
  virtual ~TokenModel() = default;

  /// Appends the ids of `piece` (valid UTF-8, not empty), and for each what it stands for if `spans`
  /// is not null. Error{kData} for text that the vocabulary has no token for, if the model has none
  /// for the unknown.
  virtual void encode(std::string_view piece, std::vector<int32_t>& ids,
                      std::vector<TokenSpan>* spans) const = 0;

  /// True if pieces are better encoded in the parts that part_end() tells.
  virtual bool has_parts() const { return false; }
  /// The end of the part of `piece` that starts at `at`: what precedes and what follows has no
  /// influence on its ids.
  virtual size_t part_end(std::string_view piece, size_t at) const {
    static_cast<void>(at);
    return piece.size();
  }

  /// True if no token reaches over a place between a printable ASCII character and `next`, and the
  /// ids on both sides are those of the sides alone.
  virtual bool parts_before(uint32_t next) const {
    static_cast<void>(next);
    return false;
  }

  /// True if the token `id` of `text` is spelled as the text, not as the vocabulary spells it.
  virtual bool is_spelled_as(int32_t id, std::string_view text) const {
    static_cast<void>(id);
    static_cast<void>(text);
    return false;
  }
};

}  // namespace trireme::data
