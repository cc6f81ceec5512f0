#include "trireme/resilience/line_prefixer.h"

#include <utility>

namespace trireme::resilience {

LinePrefixer::LinePrefixer(std::string prefix, size_t max_line_bytes)
    : prefix_(std::move(prefix)), max_line_bytes_(max_line_bytes) {}

std::string LinePrefixer::take(std::string_view bytes) {
  std::string lines;
  while (!bytes.empty()) {
    const size_t newline = bytes.find('\n');
    const bool whole = newline != std::string_view::npos;
    std::string_view piece = whole ? bytes.substr(0, newline) : bytes;
    const size_t room = max_line_bytes_ - line_.size();
    if (piece.size() > room) {
      line_ += piece.substr(0, room);
      bytes.remove_prefix(room);
      lines += finish();
      continue;
    }
    line_ += piece;
    bytes.remove_prefix(piece.size() + whole);
    if (whole) {
      lines += prefix_ + line_ + '\n';
      line_.clear();
    }
  }
  return lines;
}

std::string LinePrefixer::finish() {
  if (line_.empty()) return "";
  return prefix_ + std::exchange(line_, {}) + '\n';
}

}  // namespace trireme::resilience
