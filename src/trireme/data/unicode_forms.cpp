#include "trireme/data/unicode_forms.h"

#include <utf8proc.h>

#include <algorithm>

#include "trireme/base/error.h"
#include "trireme/data/tokenizer_unicode.h"
#include "trireme/data/unicode_sets.h"

namespace trireme::data {
namespace {

constexpr uint32_t kDivesAkuruO =
    0x11938;  // the one composition of ours that the library's older tables lack

int combining_class(uint32_t c) {
  if (is_late_mark(c)) return 0;
  return static_cast<int>(utf8proc_get_property(static_cast<utf8proc_int32_t>(c))->combining_class);
}

bool is_hangul_syllable(uint32_t c) {
  return c >= 0xAC00 && c <= 0xD7A3;
}
bool is_hangul_medial_or_final(uint32_t c) {
  return (c >= 0x1161 && c <= 0x1175) || (c >= 0x11A7 && c <= 0x11C2);
}

bool composes(NormalForm form) {
  return form == NormalForm::kNfc || form == NormalForm::kNfkc;
}
bool is_compatible(NormalForm form) {
  return form == NormalForm::kNfkc || form == NormalForm::kNfkd;
}

/// True if `c` stays as it is and never joins with what precedes it: text may be cut before it.
/// Errs to false.
bool starts_segment(uint32_t c, NormalForm form) {
  if (c < 0x80 || (c < 0x300 && form == NormalForm::kNfc)) return true;
  if (is_hangul_syllable(c)) return composes(form);
  const auto* property = utf8proc_get_property(static_cast<utf8proc_int32_t>(c));
  return property->combining_class == 0 && property->decomp_seqindex == UINT16_MAX &&
         (!composes(form) || property->comb_index == UINT16_MAX) && !is_hangul_medial_or_final(c);
}

void decompose(uint32_t c, NormalForm form, std::vector<CharChange>& changes) {
  if (is_never_decomposed(c)) {
    changes.push_back({c, 0});
    return;
  }
  utf8proc_int32_t buffer[32];
  int last_class = 0;
  const auto options = static_cast<utf8proc_option_t>(
      is_compatible(form) ? UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT : UTF8PROC_DECOMPOSE);
  const auto length =
      utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c), buffer, 32, options, &last_class);
  TRIREME_CHECK(length >= 1 && length <= 32, "U+{:04X} decomposes into {} characters", c, length);
  for (int i = 0; i < length; ++i)
    changes.push_back({static_cast<uint32_t>(buffer[i]), i == 0 ? 0 : 1});
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

void order_marks(std::vector<CharChange>& changes) {
  for (size_t i = 0; i < changes.size();) {
    if (combining_class(changes[i].code_point) == 0) {
      ++i;
      continue;
    }
    size_t end = i;
    while (end < changes.size() && combining_class(changes[end].code_point) != 0) ++end;
    std::stable_sort(changes.begin() + static_cast<std::ptrdiff_t>(i),
                     changes.begin() + static_cast<std::ptrdiff_t>(end),
                     [](const CharChange& a, const CharChange& b) {
                       return combining_class(a.code_point) < combining_class(b.code_point);
                     });
    i = end;
  }
}

/// Canonical composition in place (D117).
void compose_all(std::vector<CharChange>& changes) {
  std::vector<CharChange> result;
  size_t starter = SIZE_MAX;
  int last_class = 0;  // of the last character kept behind the starter
  for (const CharChange& change : changes) {
    const int mark_class = combining_class(change.code_point);
    if (starter != SIZE_MAX) {
      const bool adjacent = starter + 1 == result.size();
      if (adjacent || last_class < mark_class) {
        if (const uint32_t composite = compose(result[starter].code_point, change.code_point)) {
          result[starter] = {composite, result[starter].change + change.change - 1};
          continue;
        }
      }
    }
    if (mark_class == 0) starter = result.size();
    last_class = mark_class;
    result.push_back(change);
  }
  changes = std::move(result);
}

}  // namespace

bool is_settled(std::string_view text, NormalForm form) {
  for (size_t at = skip_ascii(text, 0); at < text.size(); at = skip_ascii(text, at)) {
    if (!starts_segment(next_code_point(text, at), form)) return false;
  }
  return true;
}

std::vector<CharChange> normal_form(std::string_view text, NormalForm form) {
  std::vector<CharChange> result;
  result.reserve(text.size());
  std::vector<uint32_t> segment;
  std::vector<CharChange> changes;
  const auto flush = [&] {
    if (segment.size() == 1 && starts_segment(segment[0], form)) {  // the common case
      result.push_back({segment[0], 0});
    } else {
      changes.clear();
      for (const uint32_t c : segment) decompose(c, form, changes);
      order_marks(changes);
      if (composes(form)) compose_all(changes);
      result.insert(result.end(), changes.begin(), changes.end());
    }
    segment.clear();
  };
  for (size_t at = 0; at < text.size();) {
    const uint32_t c = next_code_point(text, at);
    if (!segment.empty() && starts_segment(c, form)) flush();
    segment.push_back(c);
  }
  flush();
  return result;
}

std::string to_normal_form(std::string_view text, NormalForm form) {
  if (is_settled(text, form)) return std::string(text);
  std::string result;
  result.reserve(text.size());
  for (const CharChange& change : normal_form(text, form)) append_utf8(change.code_point, result);
  return result;
}

}  // namespace trireme::data
