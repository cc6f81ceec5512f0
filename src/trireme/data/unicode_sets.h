// Sets of characters that normalizers and pre-tokenizers ask for, and the lower case, as the
// `tokenizers` library has them: its parts rest on different versions of Unicode, so each set is the
// library's own answer for every code point (tests/goldens/make_unicode_ranges.py).
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "trireme/data/tokenizer_unicode.h"

namespace trireme::data {

/// A set of code points. Constant time; thread-safe after construction.
class CharSet {
 public:
  explicit CharSet(std::span<const CodePointRange> ranges);
  bool contains(uint32_t c) const {
    return (blocks_[static_cast<size_t>(index_[c >> 8]) * 4 + ((c >> 6) & 3)] >> (c & 63) & 1) != 0;
  }

 private:
  std::vector<uint16_t> index_;
  std::vector<uint64_t> blocks_;
};

const CharSet& word_characters();         ///< \w of the pre-tokenizer Whitespace
const CharSet& numeric_characters();      ///< what Digits splits
const CharSet& punctuation_characters();  ///< of Punctuation and BertPreTokenizer
const CharSet& control_characters();      ///< dropped by BertNormalizer's clean_text
const CharSet& nonspacing_marks();        ///< dropped by BertNormalizer's strip_accents
const CharSet& combining_marks();         ///< dropped by StripAccents
bool is_white_space(uint32_t c);
bool is_cjk_ideograph(uint32_t c);  ///< BertNormalizer's blocks of Chinese characters

/// True if NFKD leaves `c` as it is although newer versions of Unicode decompose it.
bool is_never_decomposed(uint32_t c);

/// Lower case of one character: one code point, except that U+0130 becomes "i" and U+0307.
uint32_t lower_case(uint32_t c);

/// The inside of a PCRE2 character class that means \p{name} to the library; nothing for a property
/// whose meaning is not known here.
std::optional<std::string> property_members(std::string_view name);

}  // namespace trireme::data
