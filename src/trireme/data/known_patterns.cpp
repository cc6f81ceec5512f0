#include "trireme/data/known_patterns.h"

#include "trireme/data/tokenizer_unicode.h"

namespace trireme::data {
namespace {

constexpr std::string_view kGpt2Text =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr std::string_view kLlama3Text =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2Text =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

}  // namespace

std::string_view pattern_text(KnownPattern pattern) {
  switch (pattern) {
    case KnownPattern::kGpt2:
      return kGpt2Text;
    case KnownPattern::kLlama3:
      return kLlama3Text;
    case KnownPattern::kQwen2:
      return kQwen2Text;
    case KnownPattern::kNone:
      break;
  }
  return "";
}

KnownPattern pattern_by_name(std::string_view name) {
  if (name == "gpt2") return KnownPattern::kGpt2;
  if (name == "llama3") return KnownPattern::kLlama3;
  if (name == "qwen2") return KnownPattern::kQwen2;
  return KnownPattern::kNone;
}

KnownPattern pattern_by_text(std::string_view text) {
  for (const auto pattern : {KnownPattern::kGpt2, KnownPattern::kLlama3, KnownPattern::kQwen2}) {
    if (text == pattern_text(pattern)) return pattern;
  }
  return KnownPattern::kNone;
}

namespace {

/// Length of a contraction after the apostrophe at `at`, or 0.
size_t contraction_length(std::string_view text, size_t at, bool ignore_case) {
  const auto letter = [&](size_t i) -> char {
    if (i >= text.size()) return 0;
    const char c = text[i];
    return ignore_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c | 0x20) : c;
  };
  const char first = letter(at + 1), second = letter(at + 2);
  if (first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
  if ((first == 'r' && second == 'e') || (first == 'v' && second == 'e') ||
      (first == 'l' && second == 'l'))
    return 3;
  // The long s folds to s.
  if (ignore_case && text.substr(at + 1).starts_with("\xC5\xBF")) return 3;
  return 0;
}

class PieceScanner {
 public:
  explicit PieceScanner(std::string_view text) : text_(text) {}

  /// Class of the character at `at`, with kOtherChar for the end; `next` is behind it.
  uint8_t class_at(size_t at, size_t& next) const {
    next = at;
    if (at >= text_.size()) return kOtherChar;
    return classes_[next_code_point(text_, next)];
  }

  size_t run(size_t at, uint8_t wanted) const {
    size_t next;
    while (at < text_.size() && class_at(at, next) == wanted) at = next;
    return at;
  }

  size_t newline_run(size_t at) const {
    while (at < text_.size() && is_newline(text_[at])) ++at;
    return at;
  }

  /// `\s+(?!\S)|\s+` on the run of spaces at `at`.
  size_t space_end(size_t at) const {
    size_t last = at, end = at, next;
    while (end < text_.size() && class_at(end, next) == kSpaceChar) {
      last = end;
      end = next;
    }
    return end == text_.size() || last == at ? end : last;
  }

  static bool is_newline(char c) { return c == '\r' || c == '\n'; }

 private:
  std::string_view text_;
  const CharClassTable& classes_ = CharClassTable::instance();
};

size_t gpt2_piece_end(std::string_view text, size_t at) {
  if (text[at] == '\'') {
    if (const size_t length = contraction_length(text, at, false)) return at + length;
  }
  const PieceScanner scanner(text);
  const size_t start = text[at] == ' ' ? at + 1 : at;
  size_t next;
  const uint8_t kind = scanner.class_at(start, next);
  if (start < text.size() && kind != kSpaceChar) return scanner.run(next, kind);
  return scanner.space_end(at);
}

size_t llama3_piece_end(std::string_view text, size_t at, int max_digits) {
  if (text[at] == '\'') {
    if (const size_t length = contraction_length(text, at, true)) return at + length;
  }
  const PieceScanner scanner(text);
  size_t next, after;
  const uint8_t kind = scanner.class_at(at, next);
  if (kind == kLetterChar) return scanner.run(next, kLetterChar);
  if (kind == kNumberChar) {
    for (int i = 1;
         i < max_digits && next < text.size() && scanner.class_at(next, after) == kNumberChar; ++i)
      next = after;
    return next;
  }
  const uint8_t following =
      next < text.size() ? scanner.class_at(next, after) : static_cast<uint8_t>(kSpaceChar);
  if (!PieceScanner::is_newline(text[at]) && following == kLetterChar)
    return scanner.run(after, kLetterChar);
  if (kind == kOtherChar) return scanner.newline_run(scanner.run(next, kOtherChar));
  if (text[at] == ' ' && following == kOtherChar)
    return scanner.newline_run(scanner.run(after, kOtherChar));
  // Spaces: up to the last newline of the run if there is one.
  size_t newline_end = 0;
  for (size_t end = at; end < text.size() && scanner.class_at(end, after) == kSpaceChar;
       end = after) {
    if (PieceScanner::is_newline(text[end])) newline_end = after;
  }
  return newline_end > 0 ? newline_end : scanner.space_end(at);
}

}  // namespace

size_t known_piece_end(KnownPattern pattern, std::string_view text, size_t at) {
  switch (pattern) {
    case KnownPattern::kGpt2:
      return gpt2_piece_end(text, at);
    case KnownPattern::kLlama3:
      return llama3_piece_end(text, at, 3);
    case KnownPattern::kQwen2:
      return llama3_piece_end(text, at, 1);
    case KnownPattern::kNone:
      break;
  }
  return text.size();
}

}  // namespace trireme::data
