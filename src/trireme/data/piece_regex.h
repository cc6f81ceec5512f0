// Regular expressions of tokenizer.json files, run by PCRE2.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "trireme/data/aligned_text.h"

namespace trireme::data {

/// A regular expression in the syntax that tokenizer.json files use, run by PCRE2 (compiled to
/// machine code). Properties and \s mean what they mean to the `tokenizers` library. Thread-safety:
/// const access from any thread.
class PieceRegex {
 public:
  /// Error{kData} naming `origin` for an expression that PCRE2 cannot read or reads differently.
  PieceRegex(const std::string& pattern, const std::string& origin);
  ~PieceRegex();
  PieceRegex(const PieceRegex&) = delete;
  PieceRegex& operator=(const PieceRegex&) = delete;

  /// Appends the matches in text[range] as the library's engine finds them one after the other: an
  /// empty one counts unless it touches the match before. `text` is valid UTF-8. The range is matched
  /// as a text of its own.
  void find(std::string_view text, TextPiece range, std::vector<TextPiece>& matches) const;

  /// True if the expression can match nothing at all.
  bool matches_empty() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace trireme::data
