#include "trireme/data/aligned_text.h"

#include "trireme/base/error.h"

namespace trireme::data {

AlignedText AlignedText::without_map(std::string text, bool starts_source) {
  AlignedText result;
  result.text_ = std::move(text);
  result.first_ = starts_source ? 0 : 1;
  return result;
}

AlignedText AlignedText::with_map(std::string text, int64_t first) {
  TRIREME_USER_CHECK(first + static_cast<int64_t>(text.size()) < int64_t{UINT32_MAX}, kData,
                     "split the text", "a text of more than 4 GB");
  AlignedText result;
  result.text_ = std::move(text);
  result.has_map_ = true;
  result.first_ = static_cast<uint32_t>(first);
  result.source_.reserve(result.text_.size());
  uint32_t index = result.first_;
  for (size_t at = 0; at < result.text_.size(); ++index) {
    size_t next = at;
    next_code_point(result.text_, next);
    result.source_.insert(result.source_.end(), next - at, {index, index + 1});
    at = next;
  }
  return result;
}

void AlignedText::transform(std::span<const CharChange> changes, size_t skipped) {
  std::string text;
  text.reserve(text_.size());
  if (!has_map_) {
    for (const CharChange& change : changes) append_utf8(change.code_point, text);
    text_ = std::move(text);
    return;
  }
  std::vector<SourceRange> source;
  source.reserve(source_.size());
  size_t at = 0;
  const auto pass = [&](size_t count) {
    for (; count > 0 && at < text_.size(); --count) next_code_point(text_, at);
  };
  pass(skipped);
  for (const CharChange& change : changes) {
    SourceRange range{first_, first_};
    if (change.change > 0) {
      if (at > 0) range = source_[at - 1];
    } else {
      range = at < source_.size() ? source_[at] : source_.back();
      pass(1 + static_cast<size_t>(-change.change));
    }
    const size_t before = text.size();
    append_utf8(change.code_point, text);
    source.insert(source.end(), text.size() - before, range);
  }
  text_ = std::move(text);
  source_ = std::move(source);
}

void AlignedText::replace(std::span<const TextPiece> matches, std::string_view content) {
  if (matches.empty()) return;
  AlignedText result = like(*this);
  result.reserve(text_.size() + matches.size() * content.size());
  size_t done = 0;
  for (const TextPiece& match : matches) {
    result.append(*this, {done, match.begin});
    result.append(content, *this, match.end - 1);
    done = match.end;
  }
  result.append(*this, {done, text_.size()});
  *this = std::move(result);
}

void AlignedText::prepend(std::string_view content) {
  if (text_.empty()) return;
  text_.insert(0, content);
  if (has_map_) source_.insert(source_.begin(), content.size(), SourceRange(source_[0]));
}

AlignedText AlignedText::part(TextPiece piece) const {
  AlignedText result = like(*this);
  result.append(*this, piece);
  result.first_ = has_map_ ? source_[piece.begin].begin : first_ == 0 && piece.begin == 0 ? 0 : 1;
  return result;
}

AlignedText AlignedText::like(const AlignedText& other) {
  AlignedText result;
  result.has_map_ = other.has_map_;
  result.first_ = other.first_;
  return result;
}

void AlignedText::append(const AlignedText& other, TextPiece piece) {
  text_.append(other.text_, piece.begin, piece.end - piece.begin);
  if (has_map_) {
    source_.insert(source_.end(), other.source_.begin() + static_cast<std::ptrdiff_t>(piece.begin),
                   other.source_.begin() + static_cast<std::ptrdiff_t>(piece.end));
  }
}

void AlignedText::append(std::string_view content, const AlignedText& other, size_t at) {
  text_ += content;
  if (has_map_) source_.insert(source_.end(), content.size(), other.source_[at]);
}

void AlignedText::reserve(size_t bytes) {
  text_.reserve(bytes);
  if (has_map_) source_.reserve(bytes);
}

}  // namespace trireme::data
