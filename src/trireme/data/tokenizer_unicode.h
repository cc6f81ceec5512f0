// What tokenizers need to know of Unicode: UTF-8 and character classes.
//
// Classes agree with the `tokenizers` library on every code point
// (tests/goldens/make_unicode_ranges.py).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace trireme::data {

struct CodePointRange {
  uint32_t first;
  uint32_t last;  ///< inclusive
};

/// The first byte at or after `at` that is not ASCII, or the end.
size_t skip_ascii(std::string_view text, size_t at);

bool is_valid_utf8(std::string_view text);

/// Every maximal ill-formed subpart (Unicode 15, section 3.9, table 3-8) becomes U+FFFD.
std::string replace_invalid_utf8(std::string_view text);

/// Bytes of the character, or of the maximal ill-formed subpart, that `text` (not empty) starts with.
size_t first_character_length(std::string_view text);

/// Length of the longest prefix that does not end inside a UTF-8 sequence that more bytes could
/// complete.
size_t complete_utf8_prefix(std::string_view text);

/// The code point that starts at `text[at]`; `text` is valid UTF-8. Moves `at` behind it.
inline uint32_t next_code_point(std::string_view text, size_t& at) {
  const auto byte = [&](size_t i) {
    return static_cast<uint32_t>(static_cast<unsigned char>(text[i]));
  };
  const uint32_t lead = byte(at);
  if (lead < 0x80) return text[at++];
  if (lead < 0xE0) {
    at += 2;
    return (lead & 0x1F) << 6 | (byte(at - 1) & 0x3F);
  }
  if (lead < 0xF0) {
    at += 3;
    return (lead & 0x0F) << 12 | (byte(at - 2) & 0x3F) << 6 | (byte(at - 1) & 0x3F);
  }
  at += 4;
  return (lead & 0x07) << 18 | (byte(at - 3) & 0x3F) << 12 | (byte(at - 2) & 0x3F) << 6 |
         (byte(at - 1) & 0x3F);
}

void append_utf8(uint32_t code_point, std::string& text);

/// Bytes of `text` that start a character: its length in characters if it is valid UTF-8.
int64_t count_characters(std::string_view text);

enum CharClass : uint8_t { kOtherChar = 0, kLetterChar = 1, kNumberChar = 2, kSpaceChar = 4 };

/// One of CharClass; the classes are disjoint. Constant time.
class CharClassTable {
 public:
  static const CharClassTable& instance();
  uint8_t operator[](uint32_t code_point) const {
    return blocks_[static_cast<size_t>(index_[code_point >> 8]) * 256 + (code_point & 255)];
  }

 private:
  CharClassTable();
  std::vector<uint16_t> index_;
  std::vector<uint8_t> blocks_;
};

/// True for combining marks that the library's normalization forms, of Unicode 13, do not know.
bool is_late_mark(uint32_t code_point);

/// Code points with property L ('L') or N ('N') that are not in Unicode 14, as the inside of a
/// PCRE2 character class.
const std::string& late_class_members(char property);
/// White_Space as the inside of a PCRE2 character class.
const std::string& space_class_members();

}  // namespace trireme::data
