#include "trireme/base/json.h"

#include <algorithm>

namespace trireme {

namespace {

/// Line and column (from 1, in bytes) of the byte that stopped the parser.
std::pair<size_t, size_t> place_of(std::string_view text, size_t byte) {
  const size_t end = std::min(text.size(), byte > 0 ? byte - 1 : 0);
  const std::string_view before = text.substr(0, end);
  const auto line = static_cast<size_t>(std::count(before.begin(), before.end(), '\n')) + 1;
  const size_t newline = before.rfind('\n');
  return {line, newline == std::string_view::npos ? end + 1 : end - newline};
}

/// The library's message without its own prefix and position ("[json.exception...] ... column 5:
/// ").
std::string bare_reason(const std::string& reason) {
  const size_t column = reason.find(" column ");
  const size_t colon = column == std::string::npos ? std::string::npos : reason.find(": ", column);
  if (colon != std::string::npos) return reason.substr(colon + 2);
  const size_t bracket = reason.find("] ");
  return bracket == std::string::npos ? reason : reason.substr(bracket + 2);
}

/// Deeper nesting than any real document has would exhaust the stack when it is walked.
constexpr int kMaxDepth = 512;

template <typename Document>
Document parse(std::string_view text, const std::string& origin, ErrorCode code) {
  try {
    bool too_deep = false;
    const auto limit_depth = [&](int depth, typename Document::parse_event_t, Document&) {
      if (depth > kMaxDepth) too_deep = true;
      return !too_deep;
    };
    Document document = Document::parse(text.begin(), text.end(), limit_depth);
    if (too_deep) {
      throw Error(code, fmt::format("'{}' is nested deeper than {} levels", origin, kMaxDepth),
                  "give a plain JSON file");
    }
    return document;
  } catch (const nlohmann::json::parse_error& error) {
    const auto [line, column] = place_of(text, error.byte);
    throw Error(code,
                fmt::format("{}:{}:{}: not valid JSON: {}", origin, line, column,
                            bare_reason(error.what())),
                "correct the file at this place");
  } catch (const nlohmann::json::exception& error) {
    throw Error(code, fmt::format("{}: not valid JSON: {}", origin, bare_reason(error.what())),
                "correct the file");
  }
}

}  // namespace

Json parse_json(std::string_view text, const std::string& origin, ErrorCode code) {
  return parse<Json>(text, origin, code);
}

OrderedJson parse_ordered_json(std::string_view text, const std::string& origin, ErrorCode code) {
  return parse<OrderedJson>(text, origin, code);
}

}  // namespace trireme
