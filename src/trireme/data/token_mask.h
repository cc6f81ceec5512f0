// Which tokens of a .bin/.idx pair are to be predicted: PREFIX.mask beside it, one bit an id.
// The byte layout is specified in docs/formats/dataset.md.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>

#include "trireme/base/file.h"

namespace trireme::data {

/// A read-only mask, memory-mapped. Thread-safety: const access from any thread.
class TokenMask {
 public:
  /// `bin_ids`: how many ids the .bin file holds. Error{kData}: missing, damaged, of another pair.
  TokenMask(const std::filesystem::path& path, int64_t bin_ids);
  /// True if id `i` of the .bin file is to be predicted.
  bool operator[](int64_t i) const {
    const auto byte = static_cast<uint8_t>(bits_[static_cast<size_t>(i >> 3)]);
    return (byte >> (i & 7) & 1) != 0;
  }

 private:
  std::unique_ptr<MappedFile> file_;
  std::span<const std::byte> bits_;
};

/// Checks the bytes of a mask file; returns its bits. Error{kData} that begins with `origin`. Pure.
std::span<const std::byte> parse_token_mask(std::span<const std::byte> bytes, int64_t bin_ids,
                                            const std::string& origin);

/// Writes a mask with bounded memory. Nothing appears under the final name before finish().
/// Thread-safety: none. Without finish() the temporary is removed.
class TokenMaskWriter {
 public:
  explicit TokenMaskWriter(const std::filesystem::path& path);
  ~TokenMaskWriter();
  TokenMaskWriter(const TokenMaskWriter&) = delete;
  TokenMaskWriter& operator=(const TokenMaskWriter&) = delete;

  void append(std::span<const uint8_t> predicted);  ///< 0 or 1 for each id
  int64_t num_predicted() const { return num_predicted_; }
  /// Makes the file durable and gives it its name. Blocks until the disk has it.
  void finish();

 private:
  void flush();

  std::filesystem::path path_;
  std::filesystem::path temporary_;
  int descriptor_ = -1;
  std::string buffer_;
  int64_t num_ids_ = 0;
  int64_t num_predicted_ = 0;
};

}  // namespace trireme::data
