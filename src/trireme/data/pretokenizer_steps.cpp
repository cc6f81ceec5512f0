#include "trireme/data/pretokenizer_steps.h"

#include <algorithm>
#include <cstring>

#include "trireme/data/tokenizer_unicode.h"

namespace trireme::data {
namespace {

/// Replaces every piece by what `find(piece, matches)` splits it into.
template <typename Find>
void split_pieces(std::vector<TextPiece>& pieces, SplitBehavior behavior, bool invert,
                  const Find& find) {
  std::vector<TextPiece> result;
  std::vector<TextPiece> matches;
  result.reserve(pieces.size() * 2);
  for (const TextPiece& piece : pieces) {
    matches.clear();
    find(piece, matches);
    split_at_matches(matches, piece, behavior, invert, result);
  }
  pieces = std::move(result);
}

/// Patterns of the published families whose matches never reach over a space that follows a
/// printable ASCII character, and leave nothing between them.
constexpr std::string_view kCoveringPatterns[] = {
    // gpt-oss, Llama-4
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
    // Mistral's tekken
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
    // DeepSeek-V3
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"};
/// The same, whose matches have no space in them; what lies between may be cut.
constexpr std::string_view kSpacelessPatterns[] = {
    R"(\p{N}{1,3})", R"(\p{N})", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", "[0-9]", R"(\d)"};

bool contains(std::span<const std::string_view> patterns, std::string_view pattern) {
  return std::find(patterns.begin(), patterns.end(), pattern) != patterns.end();
}

}  // namespace

RegexSplit::RegexSplit(const std::string& pattern, SplitBehavior behavior, bool invert,
                       const std::string& origin)
    : pattern_(pattern),
      regex_(std::make_unique<PieceRegex>(pattern, origin)),
      behavior_(behavior),
      invert_(invert) {
  // "Removed" drops what matches; inverted, what lies between. A known pattern leaves nothing
  // between.
  const bool keeps_all =
      behavior == SplitBehavior::kIsolated || (behavior == SplitBehavior::kRemoved && invert);
  if (keeps_all) known_ = pattern_by_text(pattern);
}

void RegexSplit::apply(AlignedText& text, std::vector<TextPiece>& pieces) const {
  split_pieces(pieces, behavior_, invert_, [&](TextPiece piece, std::vector<TextPiece>& matches) {
    regex_->find(text.text(), piece, matches);
  });
}

PretokenizerStep::Cut RegexSplit::cut() const {
  if (known_ != KnownPattern::kNone) return Cut::kIsPiece;
  const bool keeps_all =
      behavior_ == SplitBehavior::kIsolated || (behavior_ == SplitBehavior::kRemoved && invert_);
  if (keeps_all && contains(kCoveringPatterns, pattern_)) return Cut::kIsPiece;
  if (behavior_ == SplitBehavior::kIsolated && contains(kSpacelessPatterns, pattern_))
    return Cut::kKeeps;
  return Cut::kChanges;
}

void StringSplit::apply(AlignedText& text, std::vector<TextPiece>& pieces) const {
  const std::string_view whole = text.text();
  if (whole.find(pattern_) == std::string_view::npos && behavior_ != SplitBehavior::kRemoved)
    return;
  split_pieces(pieces, behavior_, invert_, [&](TextPiece piece, std::vector<TextPiece>& matches) {
    const std::string_view part = whole.substr(0, piece.end);
    for (size_t at = piece.begin; (at = part.find(pattern_, at)) != std::string_view::npos;
         at += pattern_.size())
      matches.push_back({at, at + pattern_.size()});
  });
}

void CharacterSplit::apply(AlignedText& text, std::vector<TextPiece>& pieces) const {
  const std::string_view whole = text.text();
  split_pieces(pieces, behavior_, false, [&](TextPiece piece, std::vector<TextPiece>& matches) {
    for (size_t at = piece.begin; at < piece.end;) {
      const size_t begin = at;
      if (matches_(next_code_point(whole, at), delimiter_)) matches.push_back({begin, at});
    }
  });
}

void WhitespaceStep::apply(AlignedText& text, std::vector<TextPiece>& pieces) const {
  enum Kind { kSpace, kWord, kOther };
  const std::string_view whole = text.text();
  std::vector<TextPiece> result;
  result.reserve(pieces.size() * 2);
  for (const TextPiece& piece : pieces) {
    Kind last = kSpace;
    for (size_t at = piece.begin; at < piece.end;) {
      const size_t begin = at;
      const uint32_t c = next_code_point(whole, at);
      const Kind kind = word_characters().contains(c) ? kWord : is_white_space(c) ? kSpace : kOther;
      if (kind != kSpace) {
        if (kind == last) {
          result.back().end = at;
        } else {
          result.push_back({begin, at});
        }
      }
      last = kind;
    }
  }
  pieces = std::move(result);
}

void PrefixSpace::apply(AlignedText& text, std::vector<TextPiece>& pieces) const {
  AlignedText result = AlignedText::like(text);
  result.reserve(text.text().size() + pieces.size());
  for (TextPiece& piece : pieces) {
    const size_t begin = result.text().size();
    if (text.text()[piece.begin] != ' ') result.append(" ", text, piece.begin);
    result.append(text, piece);
    piece = {begin, result.text().size()};
  }
  text = std::move(result);
}

void MetaspaceStep::apply(AlignedText& text, std::vector<TextPiece>& pieces) const {
  AlignedText result = AlignedText::like(text);
  result.reserve(text.text().size() * 3 / 2 + 8);
  std::vector<TextPiece> found;
  const std::string_view whole = text.text();
  for (const TextPiece& piece : pieces) {
    size_t begin = result.text().size();
    const std::string_view part = whole.substr(0, piece.end);
    const bool has_one =
        part[piece.begin] == ' ' || part.substr(piece.begin).starts_with(replacement_);
    const bool prepends = prepend_ == Prepend::kAlways ||
                          (prepend_ == Prepend::kFirst && text.starts_source(piece.begin));
    if (prepends && !has_one) result.append(replacement_, text, piece.begin);
    size_t own = split_ ? part.find(replacement_, piece.begin) : std::string_view::npos;
    for (size_t at = piece.begin; at < piece.end;) {
      const size_t space = std::min(part.find(' ', at), piece.end);
      if (own < at) own = part.find(replacement_, at);
      const size_t end = std::min(space, own);
      if (end > at) result.append(text, {at, end});
      if (end == piece.end) break;
      // One stands here, or a space that becomes one: the next piece begins.
      const size_t here = result.text().size();
      if (split_ && here > begin) {
        found.push_back({begin, here});
        begin = here;
      }
      result.append(replacement_, text, end);
      at = end + (end == space ? 1 : replacement_.size());
    }
    found.push_back({begin, result.text().size()});
  }
  text = std::move(result);
  pieces = std::move(found);
}

}  // namespace trireme::data
