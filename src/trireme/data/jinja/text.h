// Text that remembers where stretches of it come from.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace trireme::data::jinja {

/// UTF-8 with marked stretches. Cutting and joining carry the marks along, so that after a template
/// has trimmed, split and pasted the text of a message, what is left of it can still be found.
/// Thread-safety: that of a value.
class Text {
 public:
  /// Bytes begin .. end - 1 come from `source`.
  struct Run {
    size_t begin = 0;
    size_t end = 0;
    int32_t source = 0;
    bool operator==(const Run&) const = default;
  };

  Text() = default;
  explicit Text(std::string bytes) : bytes_(std::move(bytes)) {}
  Text(std::string bytes, int32_t source);  ///< all of it marked

  const std::string& bytes() const { return bytes_; }
  size_t size() const { return bytes_.size(); }
  bool empty() const { return bytes_.empty(); }
  const std::vector<Run>& runs() const { return runs_; }  ///< in order, apart, none empty

  void append(std::string_view bytes) { bytes_ += bytes; }
  void append(const Text& other);
  Text slice(size_t begin, size_t end) const;  ///< bytes begin .. end - 1
  /// Other bytes in place of these: marked as a whole like the first marked stretch here, if any.
  Text rewritten(std::string bytes) const;
  /// The same text, all of it from `source`.
  Text marked(int32_t source) const { return Text(bytes_, source); }

 private:
  std::string bytes_;
  std::vector<Run> runs_;
};

}  // namespace trireme::data::jinja
