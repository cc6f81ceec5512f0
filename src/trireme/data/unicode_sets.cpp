#include "trireme/data/unicode_sets.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>

namespace trireme::data {
namespace {

/// Every step-th code point from first to last has its lower case `delta` away.
struct LowerCaseRun {
  uint32_t first;
  uint32_t last;
  uint32_t step;
  int32_t delta;
};

/// Members of a Unicode property: all of them, or those that Unicode 14 lacks.
struct Property {
  std::string_view name;
  bool whole;
  std::span<const CodePointRange> members;
};

#include "trireme/data/unicode_sets.inc"

constexpr uint32_t kLastCodePoint = 0x10FFFF;

/// Properties that are the same in PCRE2's Unicode 14 and in the library's.
constexpr std::string_view kSettledProperties[] = {"Lt", "Me", "Nl", "Pc", "Ps", "Pe", "Pi", "Pf",
                                                   "Sc", "Sk", "Z",  "Zs", "Zl", "Zp", "Cc"};

}  // namespace

CharSet::CharSet(std::span<const CodePointRange> ranges) {
  std::vector<uint64_t> flat((kLastCodePoint >> 6) + 1);
  for (const auto& range : ranges) {
    for (uint32_t c = range.first; c <= range.last; ++c) flat[c >> 6] |= uint64_t{1} << (c & 63);
  }
  std::map<std::array<uint64_t, 4>, uint16_t> known;
  for (size_t at = 0; at < flat.size(); at += 4) {
    const std::array<uint64_t, 4> block{flat[at], flat[at + 1], flat[at + 2], flat[at + 3]};
    const auto [it, added] = known.emplace(block, static_cast<uint16_t>(known.size()));
    if (added) blocks_.insert(blocks_.end(), block.begin(), block.end());
    index_.push_back(it->second);
  }
}

const CharSet& word_characters() {
  static const CharSet set(kWordRanges);
  return set;
}
const CharSet& numeric_characters() {
  static const CharSet set(kNumericRanges);
  return set;
}
const CharSet& punctuation_characters() {
  static const CharSet set(kPunctuationRanges);
  return set;
}
const CharSet& control_characters() {
  static const CharSet set(kControlRanges);
  return set;
}
const CharSet& nonspacing_marks() {
  static const CharSet set(kNonspacingRanges);
  return set;
}
const CharSet& combining_marks() {
  static const CharSet set(kCombiningRanges);
  return set;
}

bool is_white_space(uint32_t c) {
  return CharClassTable::instance()[c] == kSpaceChar;
}

bool is_cjk_ideograph(uint32_t c) {
  return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) ||
         (c >= 0x20000 && c <= 0x2A6DF) || (c >= 0x2A700 && c <= 0x2B81F) ||
         (c >= 0x2B920 && c <= 0x2CEAF) || (c >= 0xF900 && c <= 0xFAFF) ||
         (c >= 0x2F800 && c <= 0x2FA1F);
}

bool is_never_decomposed(uint32_t c) {
  static const CharSet set(kNotDecomposedRanges);
  return set.contains(c);
}

uint32_t lower_case(uint32_t c) {
  if (c < 0x80) return c >= 'A' && c <= 'Z' ? c | 0x20 : c;
  const auto* const end = std::end(kLowerCaseRuns);
  const auto* it =
      std::upper_bound(std::begin(kLowerCaseRuns), end, c,
                       [](uint32_t value, const LowerCaseRun& run) { return value < run.first; });
  // Runs with a step of two may enclose others.
  for (int back = 0; back < 3 && it != std::begin(kLowerCaseRuns); ++back) {
    --it;
    if (c <= it->last && (c - it->first) % it->step == 0)
      return static_cast<uint32_t>(static_cast<int32_t>(c) + it->delta);
  }
  return c;
}

std::optional<std::string> property_members(std::string_view name) {
  if (name == "L" || name == "N")
    return fmt::format("\\p{{{}}}", name) + late_class_members(name[0]);
  for (const std::string_view settled : kSettledProperties) {
    if (name == settled) return fmt::format("\\p{{{}}}", name);
  }
  for (const Property& property : kProperties) {
    if (property.name != name) continue;
    std::string members = property.whole ? "" : fmt::format("\\p{{{}}}", name);
    for (const auto& range : property.members)
      members += fmt::format("\\x{{{:x}}}-\\x{{{:x}}}", range.first, range.last);
    return members;
  }
  return std::nullopt;
}

}  // namespace trireme::data
