#include "trireme/data/text_split.h"

#include <algorithm>

namespace trireme::data {
namespace {

struct Part {
  TextPiece piece;
  bool is_match;
};

template <typename Visit>
void for_each_part(std::span<const TextPiece> matches, TextPiece range, bool invert,
                   const Visit& visit) {
  size_t done = range.begin;
  for (const TextPiece& match : matches) {
    if (done != match.begin) visit(Part{{done, match.begin}, invert});
    visit(Part{match, !invert});
    done = match.end;
  }
  if (done != range.end) visit(Part{{done, range.end}, invert});
}

}  // namespace

std::optional<SplitBehavior> split_behavior_by_name(std::string_view name) {
  constexpr std::pair<std::string_view, SplitBehavior> kNames[] = {
      {"Removed", SplitBehavior::kRemoved},
      {"Isolated", SplitBehavior::kIsolated},
      {"MergedWithPrevious", SplitBehavior::kMergedWithPrevious},
      {"MergedWithNext", SplitBehavior::kMergedWithNext},
      {"Contiguous", SplitBehavior::kContiguous}};
  for (const auto& [known, behavior] : kNames) {
    if (known == name) return behavior;
  }
  return std::nullopt;
}

void split_at_matches(std::span<const TextPiece> matches, TextPiece range, SplitBehavior behavior,
                      bool invert, std::vector<TextPiece>& pieces) {
  const size_t first = pieces.size();
  switch (behavior) {
    case SplitBehavior::kRemoved:
      for_each_part(matches, range, invert, [&](const Part& part) {
        if (!part.is_match && part.piece.begin < part.piece.end) pieces.push_back(part.piece);
      });
      return;
    case SplitBehavior::kIsolated:
      for_each_part(matches, range, invert, [&](const Part& part) {
        if (part.piece.begin < part.piece.end) pieces.push_back(part.piece);
      });
      return;
    case SplitBehavior::kContiguous:
    case SplitBehavior::kMergedWithPrevious: {
      // An empty match counts here: it parts what stands on its sides.
      bool previous = false;
      for_each_part(matches, range, invert, [&](const Part& part) {
        const bool joins = behavior == SplitBehavior::kContiguous ? part.is_match == previous
                                                                  : part.is_match && !previous;
        if (joins && pieces.size() > first) {
          pieces.back().end = part.piece.end;
        } else {
          pieces.push_back(part.piece);
        }
        previous = part.is_match;
      });
      break;
    }
    case SplitBehavior::kMergedWithNext: {
      std::vector<Part> parts;
      for_each_part(matches, range, invert, [&](const Part& part) { parts.push_back(part); });
      bool previous = false;
      for (size_t i = parts.size(); i-- > 0;) {
        if (parts[i].is_match && !previous && pieces.size() > first) {
          pieces.back().begin = parts[i].piece.begin;
        } else {
          pieces.push_back(parts[i].piece);
        }
        previous = parts[i].is_match;
      }
      std::reverse(pieces.begin() + static_cast<std::ptrdiff_t>(first), pieces.end());
      break;
    }
  }
  pieces.erase(std::remove_if(pieces.begin() + static_cast<std::ptrdiff_t>(first), pieces.end(),
                              [](const TextPiece& piece) { return piece.begin == piece.end; }),
               pieces.end());
}

}  // namespace trireme::data
