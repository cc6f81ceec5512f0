// The steps that a pre-tokenizer is made of.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "trireme/data/known_patterns.h"
#include "trireme/data/piece_regex.h"
#include "trireme/data/pretokenizer.h"
#include "trireme/data/text_split.h"
#include "trireme/data/unicode_sets.h"

namespace trireme::data {

/// Split by a regular expression; also what ByteLevel does with use_regex.
class RegexSplit final : public PretokenizerStep {
 public:
  RegexSplit(const std::string& pattern, SplitBehavior behavior, bool invert,
             const std::string& origin);
  void apply(AlignedText& text, std::vector<TextPiece>& pieces) const override;
  Cut cut() const override;
  KnownPattern known() const { return known_; }

 private:
  std::string pattern_;
  std::unique_ptr<const PieceRegex> regex_;
  SplitBehavior behavior_;
  bool invert_;
  KnownPattern known_ = KnownPattern::kNone;  ///< if it keeps every piece
};

/// Split by a text that is not empty.
class StringSplit final : public PretokenizerStep {
 public:
  StringSplit(std::string pattern, SplitBehavior behavior, bool invert)
      : pattern_(std::move(pattern)), behavior_(behavior), invert_(invert) {}
  void apply(AlignedText& text, std::vector<TextPiece>& pieces) const override;
  Cut cut() const override { return Cut::kChanges; }
  const std::string& pattern() const { return pattern_; }

 private:
  std::string pattern_;
  SplitBehavior behavior_;
  bool invert_;
};

/// Splits at every character of a set: Digits, Punctuation, WhitespaceSplit, CharDelimiterSplit.
class CharacterSplit final : public PretokenizerStep {
 public:
  using Predicate = bool (*)(uint32_t c, uint32_t delimiter);
  CharacterSplit(Predicate matches, SplitBehavior behavior, Cut cut, uint32_t delimiter = 0)
      : matches_(matches), behavior_(behavior), cut_(cut), delimiter_(delimiter) {}
  void apply(AlignedText& text, std::vector<TextPiece>& pieces) const override;
  Cut cut() const override { return cut_; }

 private:
  Predicate matches_;
  SplitBehavior behavior_;
  Cut cut_;
  uint32_t delimiter_;
};

/// Runs of word characters, and runs of others, without the white space between.
class WhitespaceStep final : public PretokenizerStep {
 public:
  void apply(AlignedText& text, std::vector<TextPiece>& pieces) const override;
  Cut cut() const override { return Cut::kIsPiece; }
};

/// A space before every piece that does not start with one.
class PrefixSpace final : public PretokenizerStep {
 public:
  void apply(AlignedText& text, std::vector<TextPiece>& pieces) const override;
  Cut cut() const override { return Cut::kKeeps; }
};

/// Puts a character for every space, one more before pieces that lack it, and cuts before each.
class MetaspaceStep final : public PretokenizerStep {
 public:
  enum class Prepend { kFirst, kNever, kAlways };
  MetaspaceStep(std::string replacement, Prepend prepend, bool split)
      : replacement_(std::move(replacement)), prepend_(prepend), split_(split) {}
  void apply(AlignedText& text, std::vector<TextPiece>& pieces) const override;
  Cut cut() const override { return split_ ? Cut::kIsPiece : Cut::kChanges; }
  bool minds_start() const override { return prepend_ == Prepend::kFirst; }

 private:
  std::string replacement_;
  Prepend prepend_;
  bool split_;
};

}  // namespace trireme::data
