#include "trireme/data/tokenizer_unicode.h"

#include <fmt/format.h>
#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <span>

#include "trireme/base/error.h"

namespace trireme::data {
namespace {

#include "trireme/data/tokenizer_unicode_ranges.inc"

constexpr uint32_t kLastCodePoint = 0x10FFFF;
constexpr char kReplacement[] = "\xEF\xBF\xBD";

/// Length of a well-formed sequence at `at` (> 0), or minus the length of the maximal ill-formed
/// subpart. `truncated` tells that the text ended where the sequence could have gone on.
int sequence_length(std::string_view text, size_t at, bool& truncated) {
  truncated = false;
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(at);
  if (lead < 0x80) return 1;
  if (lead < 0xC2 || lead > 0xF4) return -1;
  const int length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte's range depends on the first: no overlong forms, no surrogates, nothing past
  // U+10FFFF.
  unsigned char low = 0x80, high = 0xBF;
  if (lead == 0xE0) low = 0xA0;
  if (lead == 0xED) high = 0x9F;
  if (lead == 0xF0) low = 0x90;
  if (lead == 0xF4) high = 0x8F;
  for (int i = 1; i < length; ++i) {
    if (at + i >= text.size()) {
      truncated = true;
      return -i;
    }
    if (byte(at + i) < low || byte(at + i) > high) return -i;
    low = 0x80;
    high = 0xBF;
  }
  return length;
}

bool in_ranges(std::span<const CodePointRange> ranges, uint32_t code_point) {
  const auto it =
      std::upper_bound(ranges.begin(), ranges.end(), code_point,
                       [](uint32_t c, const CodePointRange& range) { return c < range.first; });
  return it != ranges.begin() && code_point <= (it - 1)->last;
}

}  // namespace

size_t skip_ascii(std::string_view text, size_t at) {
  while (at + 8 <= text.size()) {
    uint64_t word;
    std::memcpy(&word, text.data() + at, 8);
    if (word & 0x8080808080808080ULL) break;
    at += 8;
  }
  while (at < text.size() && static_cast<unsigned char>(text[at]) < 0x80) ++at;
  return at;
}

bool is_valid_utf8(std::string_view text) {
  bool truncated;
  for (size_t at = skip_ascii(text, 0); at < text.size(); at = skip_ascii(text, at)) {
    const int length = sequence_length(text, at, truncated);
    if (length < 0) return false;
    at += length;
  }
  return true;
}

std::string replace_invalid_utf8(std::string_view text) {
  std::string result;
  result.reserve(text.size() + 16);
  bool truncated;
  for (size_t at = 0; at < text.size();) {
    const size_t ascii_end = skip_ascii(text, at);
    result.append(text, at, ascii_end - at);
    at = ascii_end;
    if (at == text.size()) break;
    const int length = sequence_length(text, at, truncated);
    if (length > 0) {
      result.append(text, at, length);
      at += length;
    } else {
      result += kReplacement;
      at -= length;
    }
  }
  return result;
}

size_t first_character_length(std::string_view text) {
  bool truncated;
  return static_cast<size_t>(std::abs(sequence_length(text, 0, truncated)));
}

size_t complete_utf8_prefix(std::string_view text) {
  // Only a sequence that starts in the last three bytes can be cut off.
  for (size_t back = std::min<size_t>(3, text.size()); back > 0; --back) {
    bool truncated;
    if (sequence_length(text, text.size() - back, truncated) < 0 && truncated)
      return text.size() - back;
  }
  return text.size();
}

void append_utf8(uint32_t code_point, std::string& text) {
  utf8proc_uint8_t bytes[4];
  const auto length = utf8proc_encode_char(static_cast<utf8proc_int32_t>(code_point), bytes);
  text.append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(length));
}

int64_t count_characters(std::string_view text) {
  int64_t count = 0;
  for (const char c : text) count += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  return count;
}

const CharClassTable& CharClassTable::instance() {
  static const CharClassTable table;
  return table;
}

CharClassTable::CharClassTable() {
  std::string flat(kLastCodePoint + 1, static_cast<char>(kOtherChar));
  const auto mark = [&](std::span<const CodePointRange> ranges, uint8_t value) {
    for (const auto& range : ranges)
      std::fill(flat.begin() + range.first, flat.begin() + range.last + 1,
                static_cast<char>(value));
  };
  mark(kLetterRanges, kLetterChar);
  mark(kNumberRanges, kNumberChar);
  mark(kSpaceRanges, kSpaceChar);
  std::map<std::string, uint16_t> known;
  for (uint32_t block = 0; block <= kLastCodePoint >> 8; ++block) {
    const auto [it, added] =
        known.emplace(flat.substr(block * 256, 256), static_cast<uint16_t>(known.size()));
    if (added) blocks_.insert(blocks_.end(), it->first.begin(), it->first.end());
    index_.push_back(it->second);
  }
}

namespace {

std::string class_members(std::span<const CodePointRange> ranges) {
  std::string text;
  for (const auto& range : ranges) {
    text += range.first == range.last
                ? fmt::format("\\x{{{:x}}}", range.first)
                : fmt::format("\\x{{{:x}}}-\\x{{{:x}}}", range.first, range.last);
  }
  return text;
}

}  // namespace

bool is_late_mark(uint32_t code_point) {
  return in_ranges(kLateMarkRanges, code_point);
}

const std::string& late_class_members(char property) {
  static const std::string letters = class_members(kLateLetterRanges);
  static const std::string numbers = class_members(kLateNumberRanges);
  return property == 'L' ? letters : numbers;
}

const std::string& space_class_members() {
  static const std::string spaces = class_members(kSpaceRanges);
  return spaces;
}

}  // namespace trireme::data
