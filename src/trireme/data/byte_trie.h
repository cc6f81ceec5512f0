// A trie over bytes: which tokens of a vocabulary start here, and how long they are.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace trireme::data {

/// Thread-safety: const access from any thread.
class ByteTrie {
 public:
  static constexpr uint32_t kRoot = 0;
  static constexpr uint32_t kNone = UINT32_MAX;

  /// `total_bytes` of all tokens that will be added: the trie has no more nodes.
  explicit ByteTrie(size_t total_bytes);

  /// Adds a token or gives one that is there another value (>= 0).
  void add(std::string_view token, int32_t value);

  /// The node behind `byte`, or kNone.
  uint32_t next(uint32_t node, unsigned char byte) const {
    const uint64_t wanted = key(node, byte);
    for (uint64_t slot = (wanted * kMix) >> shift_;; slot = (slot + 1) & mask_) {
      if (table_[slot].key == wanted) return table_[slot].child;
      if (table_[slot].key == 0) return kNone;
    }
  }
  /// The value of the token that ends at the node, or -1.
  int32_t value(uint32_t node) const { return values_[node]; }
  /// The node behind all of `text`, or kNone.
  uint32_t walk(uint32_t node, std::string_view text) const;

 private:
  struct Edge {
    uint64_t key = 0;
    uint32_t child = 0;
  };
  static constexpr uint64_t kMix = 0x9E3779B97F4A7C15ULL;
  static uint64_t key(uint32_t node, unsigned char byte) {
    return (static_cast<uint64_t>(node) << 8 | byte) + 1;
  }
  std::vector<Edge> table_;  ///< open addressing, at most half full
  std::vector<int32_t> values_{-1};
  uint64_t mask_;
  int shift_;
};

}  // namespace trireme::data
