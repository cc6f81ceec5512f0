// Byte-pair encoding of one piece of text (Sennrich et al. 2016, arXiv:1508.07909), and its form on
// bytes (as in GPT-2).
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "trireme/data/token_model.h"

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

/// The merges as a table, and the two ways to apply them. Thread-safety: const access from any
/// thread.
class BpeMerges {
 public:
  /// A pair that appears twice among the merges has its last rank.
  explicit BpeMerges(const std::vector<BpeMerge>& merges);

  /// Merges in place the `count` symbols, whose lengths are `sizes`, and returns how many are left.
  size_t apply(int32_t* symbols, uint32_t* sizes, size_t count) const;

  /// The plain reference: looks for the best pair again after every merge; quadratic.
  size_t apply_reference(int32_t* symbols, uint32_t* sizes, size_t count) const;

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
  size_t apply_short(int32_t* symbols, uint32_t* sizes, size_t count) const;
  size_t apply_long(int32_t* symbols, uint32_t* sizes, size_t count) const;

  std::vector<Entry> table_;  ///< open addressing, at most half full
  uint64_t mask_ = 0;
  int shift_ = 0;
};

/// Byte-level BPE. Thread-safety: const access from any thread.
class ByteBpe final : public TokenModel {
 public:
  /// `byte_ids[b]` is the id of byte b, -1 if the vocabulary lacks it (such bytes are dropped, as
  /// the `tokenizers` library does). `whole` has the bytes of tokens that are taken whole where a
  /// piece is just them.
  ByteBpe(const std::vector<int32_t>& byte_ids, const std::vector<BpeMerge>& merges,
          StringToId whole = {});

  void encode(std::string_view piece, std::vector<int32_t>& ids,
              std::vector<TokenSpan>* spans) const override;

  /// By the plain reference.
  void encode_reference(std::string_view piece, std::vector<int32_t>& ids) const;

 private:
  std::vector<int32_t> byte_ids_;
  bool has_all_bytes_;
  BpeMerges merges_;
  StringToId whole_;
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
