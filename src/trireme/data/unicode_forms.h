// The normalization forms of Unicode annex #15 with the way back to the source, as the `tokenizers`
// library has them (its tables are those of Unicode 13).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace trireme::data {

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };

/// A character of a text that was rewritten, and what it did to the characters before it: 0 replaces
/// one character, 1 is an additional one, -n replaces one and swallows n more.
struct CharChange {
  uint32_t code_point;
  int change;
};

/// True if `text`, valid UTF-8, is in the form for sure: most text is. Errs to false.
bool is_settled(std::string_view text, NormalForm form);

/// The characters of valid UTF-8 `text` in a form.
std::vector<CharChange> normal_form(std::string_view text, NormalForm form);

/// The same as text.
std::string to_normal_form(std::string_view text, NormalForm form);

}  // namespace trireme::data
