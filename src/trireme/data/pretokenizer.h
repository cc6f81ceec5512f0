// Cuts text into the pieces that a model turns into tokens one by one: what a tokenizer.json calls
// pre_tokenizer. Some of its steps rewrite the text on the way.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "trireme/base/json.h"
#include "trireme/data/aligned_text.h"
#include "trireme/data/known_patterns.h"

namespace trireme::data {

/// One step of a pre-tokenizer. Thread-safety: const access from any thread.
class PretokenizerStep {
 public:
  /// What a cut of the text before a space that follows a printable ASCII character does to the step.
  enum class Cut {
    kChanges,  ///< may change pieces
    kKeeps,    ///< pieces on both sides are those of the whole, or parts of a piece that spans it
    kIsPiece   ///< a piece ends there in any case
  };
  virtual ~PretokenizerStep() = default;
  /// Replaces the pieces of `text`, which it may rewrite, by smaller ones.
  virtual void apply(AlignedText& text, std::vector<TextPiece>& pieces) const = 0;
  virtual Cut cut() const = 0;
  virtual bool minds_start() const {
    return false;
  }  ///< does something at the start of a text alone
};

/// Any of BertPreTokenizer, ByteLevel, CharDelimiterSplit, Digits, Metaspace, Punctuation, Split,
/// Whitespace, WhitespaceSplit and Sequences of them; null keeps text whole. Thread-safety: const
/// access from any thread.
class Pretokenizer {
 public:
  /// Error{kData} naming the part that is not supported.
  Pretokenizer(const Json& json, const std::string& origin);
  ~Pretokenizer();
  Pretokenizer(Pretokenizer&&) noexcept;

  /// The last step makes bytes of text: the model's alphabet is that of bytes.
  bool is_byte_level() const { return is_byte_level_; }
  /// See Tokenizer::splittable(): cutting text changes no piece.
  bool splittable() const { return splittable_; }
  /// Text stays whole but for Metaspace's replacement (or that of a normalizer): whether it may be
  /// cut is for the model to say.
  bool keeps_whole() const { return keeps_whole_; }
  /// What stands for a space if Metaspace put it there, else "".
  const std::string& replacement() const { return replacement_; }
  /// True if the text needs a map because a step asks where in the source a piece begins.
  /// `rewritten`: it may not be the source's own.
  bool asks_for_source(bool rewritten) const {
    return asks_for_source_ && (rewritten || steps_.size() > 1);
  }
  KnownPattern known_pattern() const { return known_pattern_; }

  /// Calls visit(piece) for each piece of `text`, in order; the text may have been rewritten by then.
  /// Empty text has no piece.
  template <typename Visit>
  void for_each_piece(AlignedText& text, const Visit& visit) const {
    if (text.text().empty()) return;
    if (known_pattern_ != KnownPattern::kNone) {
      if (prefixes_ && text.text()[0] != ' ') text.prepend(" ");
      const std::string_view whole = text.text();
      for (size_t at = 0; at < whole.size();) {
        const size_t end = known_piece_end(known_pattern_, whole, at);
        visit(TextPiece{at, end});
        at = end;
      }
      return;
    }
    std::vector<TextPiece> pieces;
    split(text, pieces);
    for (const TextPiece& piece : pieces) visit(piece);
  }

  /// The pieces of all steps in turn, each by its plain reference (PCRE2 for every pattern).
  void split(AlignedText& text, std::vector<TextPiece>& pieces) const;

 private:
  void add_step(const Json& json, const std::string& origin);

  std::vector<std::unique_ptr<PretokenizerStep>> steps_;
  bool is_byte_level_ = false;
  bool splittable_ = false;
  bool keeps_whole_ = true;
  bool asks_for_source_ = false;
  std::string replacement_;
  bool prefixes_ = false;                             ///< the first step is a PrefixSpace
  KnownPattern known_pattern_ = KnownPattern::kNone;  ///< if nothing else cuts
};

}  // namespace trireme::data
