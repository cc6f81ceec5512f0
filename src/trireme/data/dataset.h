// Windows of tokens, and the endless shuffled sequence of them that training consumes.
//
//   documents -> TokenStream (end to end) -> windows of seq_len + 1 tokens -> Dataset (blend,
//   shuffled) -> Loader
//
// Window w of a stream of n tokens reads tokens w * seq_len .. (w + 1) * seq_len: neighbours share
// one token, so every token but the first is predicted exactly once and none is dropped; the last
// window is padded with ignored targets. Tokens that a mask leaves out are ignored targets, too.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "trireme/data/batch.h"
#include "trireme/data/indexed_dataset.h"
#include "trireme/data/sampler.h"

namespace trireme::data {

enum class Packing {
  kDocuments,  ///< attention and positions stay inside a document; a target across a boundary is
               ///< ignored
  kStream      ///< one segment a window, positions 0 .. seq_len - 1, every target counts
};

/// "documents" or "stream"; Error{kConfig} that names the nearest.
Packing parse_packing(const std::string& name);

/// Some documents of some indexed data sets, laid end to end.
/// Thread-safety: immutable once built. Ownership: shares the data sets. Memory: 16 bytes a
/// document.
class TokenStream {
 public:
  /// Appends a document; an empty one is left out.
  void add(const std::shared_ptr<const IndexedDataset>& dataset, int64_t document);
  void add_all(const std::shared_ptr<const IndexedDataset>& dataset);

  int64_t num_tokens() const { return starts_.back(); }
  int64_t num_documents() const { return static_cast<int64_t>(starts_.size()) - 1; }
  int64_t document_start(int64_t document) const { return starts_[static_cast<size_t>(document)]; }
  /// The document that holds token `position`; O(log documents).
  int64_t document_at(int64_t position) const;
  /// Copies tokens of one document.
  void read(int64_t document, int64_t first, std::span<int32_t> out) const;
  bool masked() const { return masked_; }  ///< a mask says which tokens are to be predicted
  void read_mask(int64_t document, int64_t first, std::span<uint8_t> out) const;
  /// Windows of `seq_len` predicted positions: ceil((num_tokens - 1) / seq_len), 0 for fewer than
  /// two tokens.
  int64_t num_windows(int64_t seq_len) const;
  int32_t max_id() const;  ///< of the whole data sets it takes documents from
  /// A hash of the documents' lengths and places and of their tokens and mask (all of up to a million, else evenly spaced pieces of
  /// them): a changed corpus is noticed on resume.
  uint64_t fingerprint() const;

 private:
  std::vector<std::shared_ptr<const IndexedDataset>> datasets_;
  std::vector<int64_t> starts_{0};
  std::vector<uint64_t> places_;  ///< data set in the upper 16 bits, document below
  bool masked_ = false;
};

/// Bytes of text behind each id, 0 for special tokens; empty if unknown.
using ByteLengths = std::vector<int32_t>;

/// What a run trains or evaluates on.
/// Thread-safety: const access from any thread; pages of the mapped files are read on demand.
class Dataset {
 public:
  struct Part {
    std::shared_ptr<const TokenStream> stream;
    double weight = 1.0;
    std::string name;  ///< for messages
  };
  /// Error{kData} naming the part if it holds not even one predicted position; Error{kConfig} for
  /// seq_len < 1.
  Dataset(std::vector<Part> parts, int64_t seq_len, Packing packing, uint64_t seed,
          std::shared_ptr<const ByteLengths> byte_lengths = nullptr);

  int64_t seq_len() const { return seq_len_; }
  Packing packing() const { return packing_; }
  int64_t num_windows() const { return num_windows_; }  ///< of all parts
  int64_t num_tokens() const { return num_tokens_; }
  int64_t num_documents() const;
  int32_t max_id() const;
  bool knows_bytes() const { return byte_lengths_ != nullptr; }
  uint64_t fingerprint() const;
  const Blend& blend() const { return blend_; }

  struct Place {
    int32_t part;
    int64_t window;
  };
  /// Where global sample `sample` (>= 0, endless) lies: a pure function of (seed, sample). Each
  /// part goes through all of its windows once an epoch, in an order of that epoch's own. O(1).
  Place place(int64_t sample) const;

  /// Rows `first` .. `first + rows - 1` of the shuffled training order.
  Batch samples(int64_t first, int64_t rows) const;
  /// Windows in file order, parts one after the other; at most `rows`, fewer at the end, none past
  /// it. For evaluation.
  Batch windows(int64_t first, int64_t rows) const;

 private:
  void append(int32_t part, int64_t window, Batch& batch) const;

  std::vector<Part> parts_;
  std::vector<int64_t> part_windows_;
  int64_t seq_len_;
  Packing packing_;
  uint64_t seed_;
  std::shared_ptr<const ByteLengths> byte_lengths_;
  Blend blend_;
  int64_t num_windows_ = 0;
  int64_t num_tokens_ = 0;
};

}  // namespace trireme::data
