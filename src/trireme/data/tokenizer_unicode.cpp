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

/// Skips ASCII eight bytes at a time.
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

bool in_ranges(std::span<const CodePointRange> ranges, uint32_t code_point) {
  const auto it =
      std::upper_bound(ranges.begin(), ranges.end(), code_point,
                       [](uint32_t c, const CodePointRange& range) { return c < range.first; });
  return it != ranges.begin() && code_point <= (it - 1)->last;
}

}  // namespace

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

bool is_word_character(uint32_t c) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      break;
  }
  // Join_Control, and the symbols that have Other_Alphabetic.
  return c == 0x200C || c == 0x200D || (c >= 0x24B6 && c <= 0x24E9) ||
         (c >= 0x1F130 && c <= 0x1F149) || (c >= 0x1F150 && c <= 0x1F169) ||
         (c >= 0x1F170 && c <= 0x1F189) || CharClassTable::instance()[c] == kLetterChar;
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

const std::string& late_class_members(char property) {
  static const std::string letters = class_members(kLateLetterRanges);
  static const std::string numbers = class_members(kLateNumberRanges);
  return property == 'L' ? letters : numbers;
}

const std::string& space_class_members() {
  static const std::string spaces = class_members(kSpaceRanges);
  return spaces;
}

// ---- NFC
// ------------------------------------------------------------------------------------------------------------

namespace {

/// A character on its way through decomposition, ordering and composition. `change` counts as the
/// `tokenizers` library does, whose offsets we reproduce: 0 replaces one source character, 1 is an
/// additional one, -n swallows n more.
struct Piece {
  uint32_t code_point;
  int change;
};

constexpr uint32_t kDivesAkuruO =
    0x11938;  // the one composition of ours that the library's older tables lack

int combining_class(uint32_t c) {
  if (in_ranges(kLateMarkRanges, c)) return 0;
  return static_cast<int>(utf8proc_get_property(static_cast<utf8proc_int32_t>(c))->combining_class);
}

bool is_hangul_syllable(uint32_t c) {
  return c >= 0xAC00 && c <= 0xD7A3;
}
bool is_hangul_medial_or_final(uint32_t c) {
  return (c >= 0x1161 && c <= 0x1175) || (c >= 0x11A7 && c <= 0x11C2);
}

/// True if `c` stays as it is and never joins with what precedes it: text may be cut before it.
/// Errs to false.
bool starts_segment(uint32_t c) {
  if (c < 0x300 || is_hangul_syllable(c)) return true;
  const auto* property = utf8proc_get_property(static_cast<utf8proc_int32_t>(c));
  return property->combining_class == 0 && property->decomp_seqindex == UINT16_MAX &&
         property->comb_index == UINT16_MAX && !is_hangul_medial_or_final(c);
}

void decompose(uint32_t c, std::vector<Piece>& pieces) {
  utf8proc_int32_t buffer[32];
  int last_class = 0;
  auto length = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c), buffer, 32,
                                        UTF8PROC_DECOMPOSE, &last_class);
  TRIREME_CHECK(length >= 1 && length <= 32, "U+{:04X} decomposes into {} characters", c, length);
  if (c == kDivesAkuruO) {
    buffer[0] = static_cast<utf8proc_int32_t>(c);
    length = 1;
  }
  for (int i = 0; i < length; ++i)
    pieces.push_back({static_cast<uint32_t>(buffer[i]), i == 0 ? 0 : 1});
}

/// The primary composite of two characters, or 0.
uint32_t compose(uint32_t first, uint32_t second) {
  if (second == 0x11A7) return 0;
  utf8proc_int32_t pair[3] = {static_cast<utf8proc_int32_t>(first),
                              static_cast<utf8proc_int32_t>(second), 0};
  const auto length = utf8proc_normalize_utf32(
      pair, 2, static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  return length == 1 && pair[0] != static_cast<utf8proc_int32_t>(kDivesAkuruO)
             ? static_cast<uint32_t>(pair[0])
             : 0;
}

void order_marks(std::vector<Piece>& pieces) {
  for (size_t i = 0; i < pieces.size();) {
    if (combining_class(pieces[i].code_point) == 0) {
      ++i;
      continue;
    }
    size_t end = i;
    while (end < pieces.size() && combining_class(pieces[end].code_point) != 0) ++end;
    std::stable_sort(pieces.begin() + i, pieces.begin() + end, [](const Piece& a, const Piece& b) {
      return combining_class(a.code_point) < combining_class(b.code_point);
    });
    i = end;
  }
}

/// Canonical composition in place (D117).
void compose_all(std::vector<Piece>& pieces) {
  std::vector<Piece> result;
  size_t starter = SIZE_MAX;
  int last_class = 0;  // of the last character kept behind the starter
  for (const Piece& piece : pieces) {
    const int mark_class = combining_class(piece.code_point);
    if (starter != SIZE_MAX) {
      const bool adjacent = starter + 1 == result.size();
      if (adjacent || last_class < mark_class) {
        if (const uint32_t composite = compose(result[starter].code_point, piece.code_point)) {
          result[starter] = {composite, result[starter].change + piece.change - 1};
          continue;
        }
      }
    }
    if (mark_class == 0) starter = result.size();
    last_class = mark_class;
    result.push_back(piece);
  }
  pieces = std::move(result);
}

}  // namespace

NormalizedText normalize_nfc(std::string_view text) {
  NormalizedText result;
  const auto is_settled = [&] {  // true for most text
    for (size_t at = skip_ascii(text, 0); at < text.size(); at = skip_ascii(text, at)) {
      if (!starts_segment(next_code_point(text, at))) return false;
    }
    return true;
  };
  if (is_settled()) {
    result.text = std::string(text);
    return result;
  }

  bool changed = false;
  int64_t source = 0;  // index of the next source character
  result.text.reserve(text.size());
  result.source.reserve(text.size());
  std::vector<uint32_t> segment;
  std::vector<Piece> pieces;
  const auto flush = [&] {
    pieces.clear();
    for (const uint32_t c : segment) decompose(c, pieces);
    order_marks(pieces);
    compose_all(pieces);
    if (pieces.size() == segment.size() && std::equal(pieces.begin(), pieces.end(), segment.begin(),
                                                      [](const Piece& piece, uint32_t c) {
                                                        return piece.code_point == c &&
                                                               piece.change == 0;
                                                      })) {
      for (const uint32_t c : segment) {
        append_utf8(c, result.text);
        result.source.push_back(source++);
      }
      return;
    }
    changed = true;
    int64_t next = source;
    for (const Piece& piece : pieces) {
      append_utf8(piece.code_point, result.text);
      if (piece.change > 0) {
        result.source.push_back(next > 0 ? next - 1 : 0);
      } else {
        result.source.push_back(next);
        next += 1 - piece.change;
      }
    }
    source += static_cast<int64_t>(segment.size());
  };
  for (size_t at = 0; at < text.size();) {
    const uint32_t c = next_code_point(text, at);
    if (!segment.empty() && starts_segment(c)) {
      if (segment.size() == 1 &&
          starts_segment(segment[0])) {  // the common case: a character that nothing joins
        append_utf8(segment[0], result.text);
        result.source.push_back(source++);
      } else {
        flush();
      }
      segment.clear();
    }
    segment.push_back(c);
  }
  flush();
  if (!changed) result.source.clear();
  return result;
}

}  // namespace trireme::data
