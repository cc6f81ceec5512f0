// The nearest known name to one the user mistyped.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace trireme {

/// The candidate with the smallest edit distance, or "" if none is near (more than a third of the
/// length away).
std::string nearest_name(std::string_view name, const std::vector<std::string>& candidates);

/// "did you mean 'x'?" or, if nothing is near, "known: a, b, c".
std::string suggestion(std::string_view name, const std::vector<std::string>& candidates);

}  // namespace trireme
