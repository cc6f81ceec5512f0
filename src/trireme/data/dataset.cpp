#include "trireme/data/dataset.h"

#include <algorithm>
#include <utility>

#include "trireme/base/error.h"
#include "trireme/base/hash.h"
#include "trireme/base/suggest.h"

namespace trireme::data {

namespace {

constexpr int kDatasetShift = 48;
constexpr uint64_t kDocumentMask = (uint64_t{1} << kDatasetShift) - 1;

std::vector<double> weights_of(const std::vector<Dataset::Part>& parts) {
  TRIREME_CHECK(!parts.empty(), "a data set of no parts");
  std::vector<double> weights;
  weights.reserve(parts.size());
  for (const auto& part : parts) weights.push_back(part.weight);
  return weights;
}

}  // namespace

Packing parse_packing(const std::string& name) {
  if (name == "documents") return Packing::kDocuments;
  if (name == "stream") return Packing::kStream;
  throw Error(ErrorCode::kConfig, fmt::format("unknown packing \"{}\"", name),
              suggestion(name, {"documents", "stream"}));
}

void TokenStream::add(const std::shared_ptr<const IndexedDataset>& dataset, int64_t document) {
  const int64_t length = dataset->document_length(document);
  if (length == 0) return;
  if (datasets_.empty() || datasets_.back() != dataset) datasets_.push_back(dataset);
  TRIREME_USER_CHECK(datasets_.size() < (size_t{1} << (64 - kDatasetShift)), kData,
                     "merge some of them", "more than {} data sets in one stream",
                     datasets_.size() - 1);
  places_.push_back((static_cast<uint64_t>(datasets_.size() - 1) << kDatasetShift) |
                    static_cast<uint64_t>(document));
  starts_.push_back(starts_.back() + length);
  masked_ = masked_ || dataset->masked();
}

void TokenStream::add_all(const std::shared_ptr<const IndexedDataset>& dataset) {
  for (int64_t d = 0; d < dataset->num_documents(); ++d) add(dataset, d);
}

int64_t TokenStream::document_at(int64_t position) const {
  return std::upper_bound(starts_.begin(), starts_.end(), position) - starts_.begin() - 1;
}

void TokenStream::read(int64_t document, int64_t first, std::span<int32_t> out) const {
  const uint64_t place = places_[static_cast<size_t>(document)];
  datasets_[place >> kDatasetShift]->read(static_cast<int64_t>(place & kDocumentMask), first, out);
}

void TokenStream::read_mask(int64_t document, int64_t first, std::span<uint8_t> out) const {
  const uint64_t place = places_[static_cast<size_t>(document)];
  datasets_[place >> kDatasetShift]->read_mask(static_cast<int64_t>(place & kDocumentMask), first,
                                               out);
}

int64_t TokenStream::num_windows(int64_t seq_len) const {
  return num_tokens() < 2 ? 0 : (num_tokens() - 1 + seq_len - 1) / seq_len;
}

int32_t TokenStream::max_id() const {
  int32_t largest = -1;
  for (const auto& dataset : datasets_) largest = std::max(largest, dataset->max_id());
  return largest;
}

uint64_t TokenStream::fingerprint() const {
  constexpr int64_t kAll = int64_t{1} << 20;
  constexpr int64_t kPieces = 1024;
  constexpr int64_t kPiece = 64;
  uint64_t hash =
      mix(xxh3(std::as_bytes(std::span(starts_))), xxh3(std::as_bytes(std::span(places_))));
  std::vector<int32_t> tokens;
  std::vector<uint8_t> mask;
  const auto add = [&](int64_t document, int64_t first, int64_t count) {
    tokens.resize(static_cast<size_t>(count));
    read(document, first, tokens);
    hash = mix(hash, xxh3(std::as_bytes(std::span(tokens))));
    if (!masked_) return;
    mask.resize(static_cast<size_t>(count));
    read_mask(document, first, mask);
    hash = mix(hash, xxh3(std::as_bytes(std::span(mask))));
  };
  if (num_tokens() <= kAll) {
    for (int64_t d = 0; d < num_documents(); ++d)
      add(d, 0, document_start(d + 1) - document_start(d));
    return hash;
  }
  for (int64_t piece = 0; piece < kPieces; ++piece) {
    const int64_t position = num_tokens() / kPieces * piece;
    const int64_t document = document_at(position);
    const int64_t left = document_start(document + 1) - position;
    add(document, position - document_start(document), std::min(kPiece, left));
  }
  return hash;
}

Dataset::Dataset(std::vector<Part> parts, int64_t seq_len, Packing packing, uint64_t seed,
                 std::shared_ptr<const ByteLengths> byte_lengths)
    : parts_(std::move(parts)),
      seq_len_(seq_len),
      packing_(packing),
      seed_(seed),
      byte_lengths_(std::move(byte_lengths)),
      blend_(weights_of(parts_)) {
  TRIREME_USER_CHECK(seq_len >= 1, kConfig, "set data.seq_len to 1 or more", "data.seq_len = {}",
                     seq_len);
  for (const Part& part : parts_) {
    part_windows_.push_back(part.stream->num_windows(seq_len));
    TRIREME_USER_CHECK(part_windows_.back() > 0, kData, "give it more text",
                       "{}: {} tokens in {} documents hold nothing to predict", part.name,
                       part.stream->num_tokens(), part.stream->num_documents());
    num_windows_ += part_windows_.back();
    num_tokens_ += part.stream->num_tokens();
  }
}

int64_t Dataset::num_documents() const {
  int64_t count = 0;
  for (const Part& part : parts_) count += part.stream->num_documents();
  return count;
}

int32_t Dataset::max_id() const {
  int32_t largest = -1;
  for (const Part& part : parts_) largest = std::max(largest, part.stream->max_id());
  return largest;
}

uint64_t Dataset::fingerprint() const {
  uint64_t hash = mix(static_cast<uint64_t>(seq_len_), static_cast<uint64_t>(packing_), seed_);
  for (size_t p = 0; p < parts_.size(); ++p) {
    const double weight = blend_.weights()[p];
    hash = mix(hash, parts_[p].stream->fingerprint(), xxh3(std::as_bytes(std::span(&weight, 1))));
  }
  return hash;
}

Dataset::Place Dataset::place(int64_t sample) const {
  const Blend::Pick pick = blend_(sample);
  const auto part = static_cast<size_t>(pick.dataset);
  const int64_t windows = part_windows_[part];
  const Permutation order(static_cast<uint64_t>(windows), mix(seed_, part),
                          static_cast<uint64_t>(pick.index / windows));
  return {pick.dataset, static_cast<int64_t>(order(static_cast<uint64_t>(pick.index % windows)))};
}

Batch Dataset::samples(int64_t first, int64_t rows) const {
  Batch batch;
  batch.seq_len = seq_len_;
  for (int64_t r = 0; r < rows; ++r) {
    const Place where = place(first + r);
    append(where.part, where.window, batch);
  }
  return batch;
}

Batch Dataset::windows(int64_t first, int64_t rows) const {
  Batch batch;
  batch.seq_len = seq_len_;
  int64_t skipped = 0;
  for (size_t p = 0; p < parts_.size(); ++p) {
    const int64_t begin = std::max<int64_t>(0, first - skipped);
    const int64_t end = std::min(part_windows_[p], first + rows - skipped);
    for (int64_t w = begin; w < end; ++w) append(static_cast<int32_t>(p), w, batch);
    skipped += part_windows_[p];
  }
  return batch;
}

void Dataset::append(int32_t part, int64_t window, Batch& batch) const {
  const TokenStream& stream = *parts_[static_cast<size_t>(part)].stream;
  const int64_t begin = window * seq_len_;
  const int64_t end = std::min(begin + seq_len_ + 1, stream.num_tokens());
  const auto row = static_cast<size_t>(batch.rows * seq_len_);
  const auto length = static_cast<size_t>(seq_len_);
  batch.tokens.resize(row + length, 0);
  batch.targets.resize(row + length, kIgnoredTarget);
  batch.positions.resize(row + length, 0);
  ++batch.rows;

  std::vector<int32_t> ids(static_cast<size_t>(end - begin));
  std::vector<uint8_t> mask(stream.masked() ? ids.size() : 0);
  std::vector<int32_t>
      segments;  // where a document begins inside the window, the window's own start first
  int64_t document = stream.document_at(begin);
  for (int64_t position = begin; position < end; ++document) {
    const int64_t stop = std::min(end, stream.document_start(document + 1));
    stream.read(document, position - stream.document_start(document),
                std::span(ids).subspan(static_cast<size_t>(position - begin),
                                       static_cast<size_t>(stop - position)));
    if (stream.masked()) {
      stream.read_mask(document, position - stream.document_start(document),
                       std::span(mask).subspan(static_cast<size_t>(position - begin),
                                               static_cast<size_t>(stop - position)));
    }
    segments.push_back(static_cast<int32_t>(position - begin));
    position = stop;
  }
  if (packing_ == Packing::kStream) segments.resize(1);

  const size_t predicted = ids.size() - 1;
  std::copy_n(ids.begin(), predicted, batch.tokens.begin() + static_cast<ptrdiff_t>(row));
  std::copy_n(ids.begin() + 1, predicted, batch.targets.begin() + static_cast<ptrdiff_t>(row));
  for (size_t i = 1; i < mask.size(); ++i) {
    if (mask[i] == 0) batch.targets[row + i - 1] = kIgnoredTarget;
  }
  // The first token of a document is not predicted from the last of another.
  for (size_t s = 1; s < segments.size(); ++s) {
    batch.targets[row + static_cast<size_t>(segments[s]) - 1] = kIgnoredTarget;
  }
  // A document that begins with the last id read is only a target here, not a segment.
  if (segments.size() > 1 && segments.back() == static_cast<int32_t>(predicted))
    segments.pop_back();
  // Padding is a segment of its own: no token of text sees it.
  if (packing_ == Packing::kDocuments && predicted < length) {
    segments.push_back(static_cast<int32_t>(predicted));
  }
  for (size_t s = 0; s < segments.size(); ++s) {
    const auto stop = s + 1 < segments.size() ? static_cast<size_t>(segments[s + 1]) : length;
    int32_t position = 0;
    for (auto i = static_cast<size_t>(segments[s]); i < stop; ++i) {
      batch.positions[row + i] = position++;
    }
  }
  batch.segments.push_back(std::move(segments));

  for (size_t i = 0; i < predicted; ++i) {
    const int32_t target = batch.targets[row + i];
    if (target == kIgnoredTarget) continue;
    ++batch.num_targets;
    if (byte_lengths_ != nullptr && static_cast<size_t>(target) < byte_lengths_->size()) {
      batch.num_bytes += (*byte_lengths_)[static_cast<size_t>(target)];
    }
  }
}

}  // namespace trireme::data
