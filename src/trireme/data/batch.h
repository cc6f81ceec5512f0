// One micro-batch as the loader hands it out: plain integers, no tensors.
#pragma once

#include <cstdint>
#include <vector>

namespace trireme::data {

inline constexpr int32_t kIgnoredTarget = -100;

/// `rows` windows of `seq_len` predicted positions. All arrays are row-major [rows, seq_len].
/// Ownership: owns its arrays.
struct Batch {
  int64_t rows = 0;
  int64_t seq_len = 0;
  std::vector<int32_t> tokens;
  std::vector<int32_t> targets;    ///< kIgnoredTarget where nothing is to be predicted
  std::vector<int32_t> positions;  ///< within the document (packing "documents") or the window
  /// Start of every document segment, per row, as offsets in 0 .. seq_len; the first is 0. One segment
  /// per row with packing "stream".
  std::vector<std::vector<int32_t>> segments;
  int64_t num_targets = 0;  ///< targets that count
  int64_t num_bytes = 0;    ///< bytes of text behind the counted targets, for bits per byte
};

}  // namespace trireme::data
