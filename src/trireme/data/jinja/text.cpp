#include "trireme/data/jinja/text.h"

#include <algorithm>

namespace trireme::data::jinja {

Text::Text(std::string bytes, int32_t source) : bytes_(std::move(bytes)) {
  if (!bytes_.empty()) runs_.push_back({0, bytes_.size(), source});
}

void Text::append(const Text& other) {
  const size_t offset = bytes_.size();
  bytes_ += other.bytes_;
  for (const Run& run : other.runs_) {
    if (!runs_.empty() && runs_.back().end == offset + run.begin &&
        runs_.back().source == run.source) {
      runs_.back().end = offset + run.end;
    } else {
      runs_.push_back({offset + run.begin, offset + run.end, run.source});
    }
  }
}

Text Text::slice(size_t begin, size_t end) const {
  Text result(bytes_.substr(begin, end - begin));
  for (const Run& run : runs_) {
    const size_t first = std::max(run.begin, begin);
    const size_t last = std::min(run.end, end);
    if (first < last) result.runs_.push_back({first - begin, last - begin, run.source});
  }
  return result;
}

Text Text::rewritten(std::string bytes) const {
  return runs_.empty() ? Text(std::move(bytes)) : Text(std::move(bytes), runs_.front().source);
}

}  // namespace trireme::data::jinja
