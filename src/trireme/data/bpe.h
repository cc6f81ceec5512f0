// Byte-level byte-pair encoding of one piece of text (Sennrich et al. 2016, arXiv:1508.07909; bytes
// as in GPT-2).
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace trireme::data {

/// The printable stand-ins for the 256 bytes that tokenizer.json spells tokens with: 0x20 is "Ġ"
/// (U+0120).
std::string bytes_to_token(std::string_view bytes);
/// Back; nothing if the token has a character that stands for no byte.
std::optional<std::string> token_to_bytes(std::string_view token);
/// The stand-in of one byte, as a code point.
uint32_t byte_stand_in(uint8_t byte);

struct BpeMerge {
  int32_t left;
  int32_t right;
  int32_t merged;
};

/// Lets std::unordered_map<std::string, ...> be searched by string_view.
struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
};
using StringToId = std::unordered_map<std::string, int32_t, StringHash, std::equal_to<>>;

/// The merges as a table, and the two ways to apply them. Thread-safety: const access from any
/// thread.
class BpeModel {
 public:
  /// `byte_ids[b]` is the id of byte b, -1 if the vocabulary lacks it (such bytes are dropped, as
  /// the `tokenizers` library does). A pair that appears twice among the merges has its last rank.
  BpeModel(const std::vector<int32_t>& byte_ids, const std::vector<BpeMerge>& merges);

  /// Appends the ids of `piece`, and the number of bytes of each if `lengths` is not null.
  void encode(std::string_view piece, std::vector<int32_t>& ids,
              std::vector<uint32_t>* lengths) const;

  /// The plain reference: looks for the best pair again after every merge; quadratic.
  void encode_reference(std::string_view piece, std::vector<int32_t>& ids,
                        std::vector<uint32_t>* lengths) const;

 private:
  struct Entry {
    uint64_t pair = kNoPair;
    uint32_t rank = 0;
    int32_t merged = 0;
  };
  static constexpr uint64_t kNoPair = ~uint64_t{0};
  static uint64_t key(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
  const Entry* find(int32_t left, int32_t right) const {
    const uint64_t pair = key(left, right);
    for (uint64_t slot = (pair * 0x9E3779B97F4A7C15ULL) >> shift_;; slot = (slot + 1) & mask_) {
      if (table_[slot].pair == pair) return &table_[slot];
      if (table_[slot].pair == kNoPair) return nullptr;
    }
  }
  void encode_long(std::string_view piece, std::vector<int32_t>& ids,
                   std::vector<uint32_t>* lengths) const;

  std::vector<int32_t> byte_ids_;
  std::vector<Entry> table_;  ///< open addressing, at most half full
  uint64_t mask_ = 0;
  int shift_ = 0;
};

/// Remembers the ids of short pieces; bounded: a new piece replaces whatever has its slot.
/// Thread-safety: one thread at a time.
class PieceCache {
 public:
  PieceCache();
  static constexpr size_t kMaxPieceBytes = 38;
  static constexpr size_t kMaxIds = 20;

  struct Slot {
    uint8_t piece_bytes = 0;
    uint8_t num_ids = 0;
    char piece[kMaxPieceBytes];
    int32_t ids[kMaxIds];
  };
  /// The slot of `piece` (1 .. kMaxPieceBytes bytes); it holds the piece if matches() says so.
  Slot& slot(std::string_view piece);
  static bool matches(const Slot& slot, std::string_view piece);

 private:
  std::vector<Slot> slots_;
};

/// Caches handed to one caller at a time. Thread-safe.
class PieceCachePool {
 public:
  std::unique_ptr<PieceCache> take();
  void give_back(std::unique_ptr<PieceCache> cache);

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<PieceCache>> free_;
};

}  // namespace trireme::data
