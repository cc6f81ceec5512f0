#include "trireme/data/bpe.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <queue>

#include "trireme/base/error.h"
#include "trireme/data/tokenizer_unicode.h"

namespace trireme::data {
namespace {

struct ByteAlphabet {
  std::array<uint32_t, 256> code_point{};
  std::array<std::string, 256> text;
  std::array<int16_t, 512> byte{};  ///< by code point; -1 for none

  ByteAlphabet() {
    byte.fill(-1);
    uint32_t next = 256;
    for (uint32_t b = 0; b < 256; ++b) {
      const bool printable = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      code_point[b] = printable ? b : next++;
      append_utf8(code_point[b], text[b]);
      byte[code_point[b]] = static_cast<int16_t>(b);
    }
  }
};

const ByteAlphabet& alphabet() {
  static const ByteAlphabet instance;
  return instance;
}

/// Symbols of a piece in a linked list; a merged symbol's right half has length 0.
struct Symbol {
  int32_t id;
  int32_t previous;
  int32_t next;
  uint32_t length;
};

/// Pieces up to this length are merged by scanning, which is faster than a heap there.
constexpr size_t kScanLimit = 96;

}  // namespace

uint32_t byte_stand_in(uint8_t byte) {
  return alphabet().code_point[byte];
}

std::string bytes_to_token(std::string_view bytes) {
  std::string token;
  for (const char c : bytes) token += alphabet().text[static_cast<unsigned char>(c)];
  return token;
}

std::optional<std::string> token_to_bytes(std::string_view token) {
  std::string bytes;
  for (size_t at = 0; at < token.size();) {
    const uint32_t c = next_code_point(token, at);
    if (c >= 512 || alphabet().byte[c] < 0) return std::nullopt;
    bytes += static_cast<char>(alphabet().byte[c]);
  }
  return bytes;
}

BpeMerges::BpeMerges(const std::vector<BpeMerge>& merges) {
  const int bits = std::max(4, static_cast<int>(std::bit_width(merges.size() * 2)));
  table_.resize(size_t{1} << bits);
  mask_ = table_.size() - 1;
  shift_ = 64 - bits;
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const uint64_t pair = key(merges[rank].left, merges[rank].right);
    uint64_t slot = (pair * 0x9E3779B97F4A7C15ULL) >> shift_;
    while (table_[slot].pair != kNoPair && table_[slot].pair != pair) slot = (slot + 1) & mask_;
    table_[slot] = {pair, static_cast<uint32_t>(rank), merges[rank].merged};
  }
}

size_t BpeMerges::apply_reference(int32_t* symbols, uint32_t* sizes, size_t count) const {
  for (;;) {
    const Entry* best = nullptr;
    size_t best_at = 0;
    for (size_t i = 0; i + 1 < count; ++i) {
      const Entry* entry = find(symbols[i], symbols[i + 1]);
      if (entry != nullptr && (best == nullptr || entry->rank < best->rank)) {
        best = entry;
        best_at = i;
      }
    }
    if (best == nullptr) return count;
    symbols[best_at] = best->merged;
    sizes[best_at] += sizes[best_at + 1];
    std::copy(symbols + best_at + 2, symbols + count, symbols + best_at + 1);
    std::copy(sizes + best_at + 2, sizes + count, sizes + best_at + 1);
    --count;
  }
}

size_t BpeMerges::apply(int32_t* symbols, uint32_t* sizes, size_t count) const {
  if (count < 2) return count;
  return count > kScanLimit ? apply_long(symbols, sizes, count)
                            : apply_short(symbols, sizes, count);
}

size_t BpeMerges::apply_short(int32_t* symbols, uint32_t* sizes, size_t count) const {
  // The ranks of all neighbouring pairs are kept; a merge renews two of them.
  constexpr uint32_t kNone = UINT32_MAX;
  uint32_t ranks[kScanLimit];
  int32_t merged[kScanLimit];
  const auto look_up = [&](size_t i) {
    const Entry* entry = i + 1 < count ? find(symbols[i], symbols[i + 1]) : nullptr;
    ranks[i] = entry != nullptr ? entry->rank : kNone;
    merged[i] = entry != nullptr ? entry->merged : 0;
  };
  for (size_t i = 0; i < count; ++i) look_up(i);
  for (;;) {
    size_t best = 0;
    uint32_t best_rank = kNone;
    for (size_t i = 0; i < count; ++i) {
      if (ranks[i] < best_rank) {
        best_rank = ranks[i];
        best = i;
      }
    }
    if (best_rank == kNone) return count;
    symbols[best] = merged[best];
    sizes[best] += sizes[best + 1];
    --count;
    for (size_t i = best + 1; i < count; ++i) {
      symbols[i] = symbols[i + 1];
      sizes[i] = sizes[i + 1];
      ranks[i] = ranks[i + 1];
      merged[i] = merged[i + 1];
    }
    look_up(best);
    if (best > 0) look_up(best - 1);
  }
}

size_t BpeMerges::apply_long(int32_t* ids, uint32_t* sizes, size_t count) const {
  TRIREME_USER_CHECK(count < size_t{1} << 31, kData, "split the text",
                     "a piece of text without a break has {} symbols", count);
  std::vector<Symbol> symbols(count);
  for (size_t i = 0; i < count; ++i) {
    const auto at = static_cast<int32_t>(i);
    symbols[i] = {ids[i], at - 1, at + 1, sizes[i]};
  }
  symbols.back().next = -1;

  struct Candidate {
    uint32_t rank;
    int32_t at;
    int32_t merged;
  };
  // Lowest rank first, then leftmost.
  const auto later = [](const Candidate& a, const Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.at > b.at;
  };
  std::vector<Candidate> candidates;
  candidates.reserve(symbols.size());
  const auto candidate = [&](int32_t at, Candidate& result) {
    const Symbol& left = symbols[static_cast<size_t>(at)];
    if (left.next < 0) return false;
    const Entry* entry = find(left.id, symbols[static_cast<size_t>(left.next)].id);
    if (entry == nullptr) return false;
    result = {entry->rank, at, entry->merged};
    return true;
  };
  Candidate found;
  for (int32_t i = 0; i < static_cast<int32_t>(symbols.size()); ++i) {
    if (candidate(i, found)) candidates.push_back(found);
  }
  std::priority_queue<Candidate, std::vector<Candidate>, decltype(later)> queue(
      later, std::move(candidates));
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol& left = symbols[static_cast<size_t>(best.at)];
    if (left.length == 0 || left.next < 0) continue;
    // Out of date once one of the halves has grown.
    Candidate now;
    if (!candidate(best.at, now) || now.merged != best.merged) continue;
    Symbol& right = symbols[static_cast<size_t>(left.next)];
    left.id = best.merged;
    left.length += right.length;
    left.next = right.next;
    right.length = 0;
    if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = best.at;
    if (candidate(best.at, found)) queue.push(found);
    if (left.previous >= 0 && candidate(left.previous, found)) queue.push(found);
  }
  size_t left = 0;
  for (int32_t i = 0; i >= 0; i = symbols[static_cast<size_t>(i)].next) {
    ids[left] = symbols[static_cast<size_t>(i)].id;
    sizes[left++] = symbols[static_cast<size_t>(i)].length;
  }
  return left;
}

ByteBpe::ByteBpe(const std::vector<int32_t>& byte_ids, const std::vector<BpeMerge>& merges,
                 StringToId whole)
    : byte_ids_(byte_ids),
      has_all_bytes_(std::find(byte_ids.begin(), byte_ids.end(), -1) == byte_ids.end()),
      merges_(merges),
      whole_(std::move(whole)) {
  TRIREME_CHECK(byte_ids_.size() == 256, "{} byte ids", byte_ids_.size());
}

void ByteBpe::encode(std::string_view piece, std::vector<int32_t>& ids,
                     std::vector<TokenSpan>* spans) const {
  const auto size = static_cast<uint32_t>(piece.size());
  if (!whole_.empty()) {
    if (const auto it = whole_.find(piece); it != whole_.end()) {
      ids.push_back(it->second);
      if (spans != nullptr) spans->push_back({0, size});
      return;
    }
  }
  const size_t first = ids.size();
  // Where bytes are missing from the vocabulary, sizes count in the spelling without the dropped
  // bytes: so does the `tokenizers` library.
  std::vector<uint32_t> sizes;
  uint32_t short_sizes[kScanLimit];
  uint32_t* lengths = short_sizes;
  if (piece.size() > kScanLimit) {
    sizes.resize(piece.size());
    lengths = sizes.data();
  }
  size_t count = 0;
  for (const char c : piece) {
    const int32_t id = byte_ids_[static_cast<unsigned char>(c)];
    if (id < 0) continue;
    ids.push_back(id);
    lengths[count++] =
        has_all_bytes_
            ? 1
            : static_cast<uint32_t>(alphabet().text[static_cast<unsigned char>(c)].size());
  }
  count = merges_.apply(ids.data() + first, lengths, count);
  ids.resize(first + count);
  if (spans == nullptr) return;
  std::vector<uint32_t> owner;  // by byte of the spelling
  if (!has_all_bytes_) {
    for (uint32_t i = 0; i < size; ++i)
      owner.insert(owner.end(), alphabet().text[static_cast<unsigned char>(piece[i])].size(), i);
  }
  uint32_t done = 0;
  for (size_t i = 0; i < count; ++i) {
    const uint32_t end = done + lengths[i];
    spans->push_back(has_all_bytes_ ? TokenSpan{done, end}
                                    : TokenSpan{owner[done], owner[end - 1] + 1});
    done = end;
  }
}

void ByteBpe::encode_reference(std::string_view piece, std::vector<int32_t>& ids) const {
  std::vector<int32_t> symbols;
  for (const char c : piece) {
    const int32_t id = byte_ids_[static_cast<unsigned char>(c)];
    if (id >= 0) symbols.push_back(id);
  }
  std::vector<uint32_t> sizes(symbols.size(), 1);
  symbols.resize(merges_.apply_reference(symbols.data(), sizes.data(), symbols.size()));
  ids.insert(ids.end(), symbols.begin(), symbols.end());
}

PieceCache::PieceCache() : slots_(size_t{1} << 15) {}

PieceCache::Slot& PieceCache::slot(std::string_view piece) {
  uint64_t hash = piece.size() * 0x9E3779B97F4A7C15ULL;
  const char* data = piece.data();
  size_t left = piece.size();
  const auto mix_in = [&](uint64_t word) {
    hash = (hash ^ word) * 0xD6E8FEB86659FD93ULL;
    hash ^= hash >> 32;
  };
  for (; left >= 8; data += 8, left -= 8) {
    uint64_t word;
    std::memcpy(&word, data, 8);
    mix_in(word);
  }
  if (left > 0) {
    uint64_t word = 0;
    std::memcpy(&word, data, left);
    mix_in(word);
  }
  return slots_[(hash * 0xD6E8FEB86659FD93ULL) >> 49];
}

bool PieceCache::matches(const Slot& slot, std::string_view piece) {
  return slot.piece_bytes == piece.size() &&
         std::memcmp(slot.piece, piece.data(), piece.size()) == 0;
}

std::unique_ptr<PieceCache> PieceCachePool::take() {
  {
    const std::scoped_lock lock(mutex_);
    if (!free_.empty()) {
      auto cache = std::move(free_.back());
      free_.pop_back();
      return cache;
    }
  }
  return std::make_unique<PieceCache>();
}

void PieceCachePool::give_back(std::unique_ptr<PieceCache> cache) {
  const std::scoped_lock lock(mutex_);
  free_.push_back(std::move(cache));
}

}  // namespace trireme::data
