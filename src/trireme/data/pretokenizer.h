// Cuts text into the pieces inside which BPE merges: what a tokenizer.json calls pre_tokenizer.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "trireme/base/json.h"

namespace trireme::data {

/// The patterns that have a hand-written matcher beside PCRE2's.
enum class KnownPattern { kNone, kGpt2, kLlama3, kQwen2 };

/// The regular expression as tokenizer.json files spell it.
std::string_view pattern_text(KnownPattern pattern);
/// By the names "gpt2", "llama3", "qwen2" (kNone for others), and by the expression's text.
KnownPattern pattern_by_name(std::string_view name);
KnownPattern pattern_by_text(std::string_view text);

/// A half-open range of bytes.
struct TextPiece {
  size_t begin;
  size_t end;
};

/// A regular expression in the syntax that tokenizer.json files use, run by PCRE2 (compiled to
/// machine code).
/// \p{L}, \p{N} and \s mean what they mean to the `tokenizers` library. Thread-safety: const access
/// from any thread.
class PieceRegex {
 public:
  /// Error{kData} naming `origin` for an expression that PCRE2 cannot read or reads differently.
  PieceRegex(const std::string& pattern, const std::string& origin);
  ~PieceRegex();
  PieceRegex(const PieceRegex&) = delete;
  PieceRegex& operator=(const PieceRegex&) = delete;

  /// Appends the pieces of text[range]: matches, and the text between them unless `only_matches`
  /// (or only what lies between them if `only_gaps`). `text` is valid UTF-8. The range is matched
  /// as a text of its own.
  void split(std::string_view text, TextPiece range, bool keep_matches, bool keep_gaps,
             std::vector<TextPiece>& pieces) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// End of the piece of `text` that starts at `at` (not the end): the hand-written matcher of a
/// known pattern.
size_t known_piece_end(KnownPattern pattern, std::string_view text, size_t at);

/// The pre_tokenizer of a tokenizer.json: ByteLevel, Split, Digits and Sequences of them.
/// Thread-safety: const access from any thread.
class Pretokenizer {
 public:
  /// Error{kData} naming the part that is not supported.
  Pretokenizer(const Json& json, const std::string& origin);
  ~Pretokenizer();
  Pretokenizer(Pretokenizer&&) noexcept;

  /// A space goes before text that does not start with one.
  bool add_prefix_space() const { return add_prefix_space_; }
  /// Every step is a known pattern or cuts nothing: see Tokenizer::splittable().
  bool splittable() const { return splittable_; }
  KnownPattern known_pattern() const { return known_pattern_; }

  /// Calls visit(piece) for each piece of valid UTF-8 `text`, in order. Empty text has no piece.
  template <typename Visit>
  void for_each_piece(std::string_view text, const Visit& visit) const {
    if (known_pattern_ != KnownPattern::kNone) {
      for (size_t at = 0; at < text.size();) {
        const size_t end = known_piece_end(known_pattern_, text, at);
        visit(TextPiece{at, end});
        at = end;
      }
      return;
    }
    for (const TextPiece& piece : split(text)) visit(piece);
  }

  /// The pieces of all steps in turn, each by its plain reference (PCRE2 for every pattern).
  std::vector<TextPiece> split(std::string_view text) const;

 private:
  struct Step;
  void add_step(const Json& json, const std::string& origin);

  std::vector<Step> steps_;
  bool add_prefix_space_ = false;
  bool splittable_ = true;
  bool has_byte_level_ = false;
  KnownPattern known_pattern_ = KnownPattern::kNone;  ///< if it is the only step that cuts
};

}  // namespace trireme::data
