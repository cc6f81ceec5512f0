// What becomes of the matches of a pattern when text is split at them.
#pragma once

#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "trireme/data/aligned_text.h"

namespace trireme::data {

enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

/// By the names of tokenizer.json ("Removed", "MergedWithNext", ...).
std::optional<SplitBehavior> split_behavior_by_name(std::string_view name);

/// Appends the pieces that `range` falls into. `matches` lie in it, in order, and may be empty; with
/// `invert` the text between them counts as matching. Empty pieces are left out.
void split_at_matches(std::span<const TextPiece> matches, TextPiece range, SplitBehavior behavior,
                      bool invert, std::vector<TextPiece>& pieces);

}  // namespace trireme::data
