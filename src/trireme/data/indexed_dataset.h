// Tokenized documents on disk: Megatron's .bin (the ids) and .idx (where each sequence lies).
//
// Read: index format MMIDIDX version 1 and the older TNTIDX version 1, every integer dtype code.
// Write: MMIDIDX version 1. The byte layout is specified in docs/formats/dataset.md.
// Source of the format: Megatron-LM, megatron/core/datasets/indexed_dataset.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "trireme/base/file.h"
#include "trireme/data/token_mask.h"

namespace trireme::data {

/// dtype codes of the index; 6 and 7 (floating point) are never token ids and are refused.
enum class TokenType : uint8_t {
  kUint8 = 1,
  kInt8 = 2,
  kInt16 = 3,
  kInt32 = 4,
  kInt64 = 5,
  kUint16 = 8
};

/// Bytes of one id; 0 for a code that is not a token type.
size_t token_size(TokenType type);

/// The narrowest of uint16 and int32 that holds every id below `vocab_size`.
TokenType narrowest_token_type(int64_t vocab_size);

/// What an .idx file says. Sequence s is `lengths[s]` ids from byte `offsets[s]` of the .bin file;
/// document d is the sequences documents[d] .. documents[d + 1] - 1.
struct TokenIndex {
  TokenType type = TokenType::kUint16;
  std::vector<int64_t> lengths;
  std::vector<int64_t> offsets;
  std::vector<int64_t> documents;  ///< one more than there are documents; the first is 0
};

/// Parses and checks the whole of an .idx file against the size of its .bin file in bytes.
/// Error{kData} that begins with `origin` and says what is wrong. Pure: reads nothing else.
TokenIndex parse_token_index(std::span<const std::byte> bytes, int64_t bin_bytes,
                             const std::string& origin);

/// The bytes of an MMIDIDX version 1 index of documents of one sequence each, laid end to end.
std::string format_token_index(TokenType type, std::span<const int32_t> lengths);

/// Tells one pair of files from another at little cost: of the .idx file the hash of all its bytes, of the
/// .bin file its size and its bytes, all of up to 1 MiB, else 256 pieces of 4 KiB spread evenly from the
/// first byte to the last.
uint64_t token_fingerprint(uint64_t index_hash, std::span<const std::byte> bin);

/// "x" of "x", "x.bin" or "x.idx".
std::filesystem::path token_prefix(const std::filesystem::path& path);

/// A read-only pair of files, the ids memory-mapped.
/// Thread-safety: const access from any thread. Ownership: owns the map; spans live as long as it
/// does.
class IndexedDataset {
 public:
  /// `prefix`: the path without .bin / .idx (given with either it is cut off). `masked`: PREFIX.mask
  /// says which ids are to be predicted; else all are. Error{kData}.
  explicit IndexedDataset(const std::filesystem::path& prefix, bool masked = false);

  const std::filesystem::path& prefix() const { return prefix_; }
  TokenType type() const { return index_.type; }
  int64_t num_documents() const { return static_cast<int64_t>(document_starts_.size()) - 1; }
  int64_t num_tokens() const { return document_starts_.back(); }
  /// Ids before document d, for 0 <= d <= num_documents().
  int64_t document_start(int64_t document) const {
    return document_starts_[static_cast<size_t>(document)];
  }
  int64_t document_length(int64_t document) const {
    return document_start(document + 1) - document_start(document);
  }
  /// Copies ids `first` .. `first + out.size() - 1` of a document. Error{kData} on an id outside 0
  /// .. 2^31 - 1.
  void read(int64_t document, int64_t first, std::span<int32_t> out) const;
  bool masked() const { return mask_ != nullptr; }
  /// Whether the same ids as of read() are to be predicted: 0 or 1; 1 without a mask.
  void read_mask(int64_t document, int64_t first, std::span<uint8_t> out) const;
  /// The largest id, -1 when empty: from the description beside the files if it is of these very
  /// files (their fingerprint), else every id is read once (memory bandwidth).
  int32_t max_id() const;
  /// token_fingerprint() of the two files.
  uint64_t fingerprint() const;

 private:
  /// Calls `visit(byte offset, done, count)` for the stretches of a document's ids.
  template <typename Visit>
  void visit(int64_t document, int64_t first, size_t size, Visit visit) const;

  std::filesystem::path prefix_;
  TokenIndex index_;
  uint64_t index_hash_ = 0;
  std::vector<int64_t> document_starts_;
  std::unique_ptr<MappedFile> ids_;
  std::unique_ptr<TokenMask> mask_;
};

/// Writes documents one after the other, with bounded memory (4 bytes a document). Nothing appears
/// under the final names before finish(): .bin is renamed first and .idx, which makes the pair
/// valid, last. Thread-safety: none. Without finish() the temporaries are removed; those that killed
/// writers of the same pair left are removed at the start.
class IndexedDatasetWriter {
 public:
  IndexedDatasetWriter(const std::filesystem::path& prefix, TokenType type);
  ~IndexedDatasetWriter();
  IndexedDatasetWriter(const IndexedDatasetWriter&) = delete;
  IndexedDatasetWriter& operator=(const IndexedDatasetWriter&) = delete;

  /// Appends ids to the document that is open. Error{kData} on an id that the type cannot hold, or
  /// a full disk.
  void append(std::span<const int32_t> ids);
  /// Closes the open document, which may be empty; the next append() begins another.
  void end_document();
  /// append() and end_document().
  void add(std::span<const int32_t> document);
  int64_t num_documents() const { return static_cast<int64_t>(lengths_.size()); }
  int64_t num_tokens() const { return num_tokens_; }
  int32_t max_id() const { return max_id_; }
  /// What IndexedDataset::fingerprint() will be of the finished pair. No document may be open.
  uint64_t fingerprint();
  /// Makes the files durable and gives them their names. Blocks until the disk has them.
  void finish();

 private:
  void flush();

  std::filesystem::path prefix_;
  std::filesystem::path temporary_;
  TokenType type_;
  int descriptor_ = -1;
  std::vector<int32_t> lengths_;
  int64_t open_length_ = 0;
  std::string buffer_;
  int64_t num_tokens_ = 0;
  int32_t max_id_ = -1;
};

}  // namespace trireme::data
