// Lines of several ranks in one stream, each whole and with its rank in front.
#pragma once

#include <string>
#include <string_view>

namespace trireme::resilience {

/// Not thread-safe.
class LinePrefixer {
 public:
  /// Each line gets `prefix` in front. A line longer than `max_line_bytes` is broken there.
  explicit LinePrefixer(std::string prefix, size_t max_line_bytes = size_t{1} << 20);

  /// Takes what was written; returns the lines that are complete with it, each with prefix and newline. Keeps the rest.
  std::string take(std::string_view bytes);
  /// The rest, as a line; "" if there is none.
  std::string finish();

 private:
  std::string prefix_;
  size_t max_line_bytes_;
  std::string line_;
};

}  // namespace trireme::resilience
