// The patterns that have a hand-written matcher beside PCRE2's.
#pragma once

#include <cstddef>
#include <string_view>

namespace trireme::data {

enum class KnownPattern { kNone, kGpt2, kLlama3, kQwen2 };

/// The regular expression as tokenizer.json files spell it.
std::string_view pattern_text(KnownPattern pattern);
/// By the names "gpt2", "llama3", "qwen2" (kNone for others), and by the expression's text.
KnownPattern pattern_by_name(std::string_view name);
KnownPattern pattern_by_text(std::string_view text);

/// End of the piece of `text` that starts at `at` (not the end): the hand-written matcher of a
/// known pattern.
size_t known_piece_end(KnownPattern pattern, std::string_view text, size_t at);

}  // namespace trireme::data
