// Text on its way through normalizer and pre-tokenizer, with the way back to the source: for every
// byte the characters of the encoded text that it stems from. Rewriting keeps that map as the
// `tokenizers` library does, whose offsets are reproduced.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "trireme/data/tokenizer_unicode.h"
#include "trireme/data/unicode_forms.h"

namespace trireme::data {

/// Half-open range of characters of the text that was encoded.
struct SourceRange {
  uint32_t begin;
  uint32_t end;
  bool operator==(const SourceRange&) const = default;
};

/// A half-open range of bytes.
struct TextPiece {
  size_t begin;
  size_t end;
};

/// Not thread-safe. The text is valid UTF-8 throughout.
class AlignedText {
 public:
  /// Without a map: for ids alone. `starts_source`: it is the start of the source, unchanged.
  static AlignedText without_map(std::string text, bool starts_source);
  /// With one; `first` is the index of the text's first character in the source. Error{kData} for
  /// texts of more than 2^32 characters.
  static AlignedText with_map(std::string text, int64_t first);

  std::string_view text() const { return text_; }
  bool has_map() const { return has_map_; }
  /// Of the bytes [begin, end), which are not empty and lie in the text. With a map only.
  SourceRange source(size_t begin, size_t end) const {
    return {source_[begin].begin, source_[end - 1].end};
  }
  /// True if byte `at` stems from the source's first character. Without a map, of a text that has
  /// not been rewritten.
  bool starts_source(size_t at) const {
    return has_map_ ? source_[at].begin == 0 : first_ == 0 && at == 0;
  }

  /// Replaces the whole text by `changes` of it, whose first acts on the character behind the first
  /// `skipped` ones.
  void transform(std::span<const CharChange> changes, size_t skipped = 0);

  /// Keeps the characters for which keep(code point) is true.
  template <typename Keep>
  void filter(const Keep& keep);

  /// Puts `content` for each match; matches are not empty, in order, and do not overlap. Inserted
  /// text stems from the last character of its match.
  void replace(std::span<const TextPiece> matches, std::string_view content);

  /// `content` before a text that is not empty; it stems from the first character.
  void prepend(std::string_view content);

  /// A piece of the text as a text of its own.
  AlignedText part(TextPiece piece) const;

  // To build a text from parts of another.
  /// An empty text that has a map if `other` has one.
  static AlignedText like(const AlignedText& other);
  void append(const AlignedText& other, TextPiece piece);
  /// `content` as if it stemmed from byte `at` of `other`.
  void append(std::string_view content, const AlignedText& other, size_t at);
  void reserve(size_t bytes);

 private:
  AlignedText() = default;
  std::string text_;
  std::vector<SourceRange> source_;  ///< by byte
  bool has_map_ = false;
  uint32_t first_ = 0;
};

template <typename Keep>
void AlignedText::filter(const Keep& keep) {
  std::vector<CharChange> changes;
  size_t skipped = 0;
  bool removed_any = false;
  for (size_t at = 0; at < text_.size();) {
    const uint32_t c = next_code_point(text_, at);
    if (keep(c)) {
      changes.push_back({c, 0});
    } else {
      removed_any = true;
      if (changes.empty()) {
        ++skipped;
      } else {
        --changes.back().change;
      }
    }
  }
  if (removed_any) transform(changes, skipped);
}

}  // namespace trireme::data
