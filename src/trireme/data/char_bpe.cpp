#include "trireme/data/char_bpe.h"

#include <algorithm>
#include <bit>

#include "trireme/base/error.h"
#include "trireme/data/tokenizer_unicode.h"

namespace trireme::data {
namespace {

/// Parts shorter than this are cut before a metaspace only: a part costs a look-up.
constexpr size_t kShortPart = 16;

uint32_t last_code_point(std::string_view text) {
  size_t at = text.size() - 1;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  return next_code_point(text, at);
}

uint32_t first_code_point(std::string_view text) {
  size_t at = 0;
  return next_code_point(text, at);
}

}  // namespace

CharBpe::CharBpe(const Vocabulary& vocabulary, const std::vector<BpeMerge>& merges,
                 CharBpeOptions options)
    : small_ids_(size_t{1} << 16, -1), options_(std::move(options)), merges_(merges) {
  byte_ids_.fill(-1);
  for (const auto& [token, id] : vocabulary) {
    if (!token.empty() && count_characters(token) == 1) {
      const uint32_t c = first_code_point(token);
      if (c < small_ids_.size()) {
        small_ids_[c] = id;
      } else {
        large_ids_[c] = id;
      }
    }
    if (options_.byte_fallback && token.size() == 6 && token.starts_with("<0x") &&
        token.back() == '>') {
      constexpr std::string_view kDigits = "0123456789ABCDEF";
      const size_t high = kDigits.find(token[3]), low = kDigits.find(token[4]);
      if (high != std::string_view::npos && low != std::string_view::npos)
        byte_ids_[high * 16 + low] = id;
    }
    if (options_.unknown_token == token) unknown_id_ = id;
    if (options_.ignore_merges) whole_.emplace(token, id);
  }
  knows_all_ = std::find(byte_ids_.begin(), byte_ids_.end(), -1) == byte_ids_.end();
  find_cuts(vocabulary, merges);
}

int32_t CharBpe::id_of(uint32_t c) const {
  if (c < small_ids_.size()) return small_ids_[c];
  const auto it = large_ids_.find(c);
  return it == large_ids_.end() ? -1 : it->second;
}

/// Two neighbouring symbols can merge only if some merge has their touching characters at its seam.
/// Where no merge has, the sides do not know of each other, and text may be cut.
void CharBpe::find_cuts(const Vocabulary& vocabulary, const std::vector<BpeMerge>& merges) {
  if (options_.ignore_merges) return;
  std::unordered_map<int32_t, std::string_view> texts;
  texts.reserve(vocabulary.size());
  for (const auto& [token, id] : vocabulary) texts.emplace(id, token);
  const int bits = std::max(10, static_cast<int>(std::bit_width(merges.size() * 16)));
  joined_pairs_.resize(size_t{1} << (bits - 6));
  pair_shift_ = 64 - bits;
  std::vector<uint8_t> joined(kNumSmall * kNumSmall);
  for (const BpeMerge& merge : merges) {
    for (const int32_t id : {merge.left, merge.right}) {
      // Such symbols stand for other characters than those they are spelled with.
      const bool is_byte = std::find(byte_ids_.begin(), byte_ids_.end(), id) != byte_ids_.end();
      if (id == unknown_id_ || is_byte) return;
    }
    const std::string_view left = texts[merge.left], right = texts[merge.right];
    if (left.empty() || right.empty()) return;
    const uint32_t a = last_code_point(left), b = first_code_point(right);
    const size_t bit = pair_bit(a, b);
    joined_pairs_[bit >> 6] |= uint64_t{1} << (bit & 63);
    if (small_index(a) < kNumSmall && small_index(b) < kNumSmall)
      joined[small_index(a) * kNumSmall + small_index(b)] = 1;
  }
  small_cuts_.resize(joined.size());
  for (uint32_t a = 0; a < kNumSmall; ++a) {
    for (uint32_t b = 0; b < kNumSmall; ++b) {
      // Unknown characters join with each other, or vanish and let their neighbours meet.
      const bool known = knows_all_ || (id_of(a < 128 ? a : kMetaspace) >= 0 &&
                                        id_of(b < 128 ? b : kMetaspace) >= 0);
      small_cuts_[a * kNumSmall + b] = known && joined[a * kNumSmall + b] == 0;
    }
  }
  has_parts_ = true;
}

bool CharBpe::may_cut(uint32_t left, uint32_t right) const {
  const uint32_t a = small_index(left), b = small_index(right);
  if (a < kNumSmall && b < kNumSmall) return small_cuts_[a * kNumSmall + b] != 0;
  if (!knows_all_) return false;
  const size_t bit = pair_bit(left, right);
  return (joined_pairs_[bit >> 6] >> (bit & 63) & 1) == 0;
}

size_t CharBpe::part_end(std::string_view piece, size_t at) const {
  const size_t begin = at;
  uint32_t left = next_code_point(piece, at);
  while (at < piece.size()) {
    const size_t here = at;
    const uint32_t right = next_code_point(piece, at);
    if ((right == kMetaspace || here - begin >= kShortPart) && may_cut(left, right)) return here;
    left = right;
  }
  return piece.size();
}

bool CharBpe::parts_before(uint32_t next) const {
  if (!has_parts_) return false;
  for (uint32_t c = 0x21; c < 0x7F; ++c) {
    if (!may_cut(c, next)) return false;
  }
  return true;
}

void CharBpe::encode(std::string_view piece, std::vector<int32_t>& ids,
                     std::vector<TokenSpan>* spans) const {
  if (options_.ignore_merges) {
    if (const auto it = whole_.find(piece); it != whole_.end()) {
      ids.push_back(it->second);
      if (spans != nullptr) spans->push_back({0, static_cast<uint32_t>(piece.size())});
      return;
    }
  }
  const size_t first = ids.size();
  static thread_local std::vector<uint32_t> sizes;
  sizes.clear();
  uint32_t unknown_bytes = 0;  // of unknown text that is not yet a symbol
  const auto add = [&](int32_t id, uint32_t length) {
    ids.push_back(id);
    sizes.push_back(length);
  };
  const auto add_unknown = [&] {
    if (unknown_bytes > 0) add(unknown_id_, unknown_bytes);
    unknown_bytes = 0;
  };
  for (size_t at = 0; at < piece.size();) {
    const size_t begin = at;
    const uint32_t c = next_code_point(piece, at);
    const auto length = static_cast<uint32_t>(at - begin);
    if (const int32_t id = id_of(c); id >= 0) {
      add_unknown();
      add(id, length);
      continue;
    }
    const auto bytes = piece.substr(begin, length);
    const auto byte_id = [&](char b) { return byte_ids_[static_cast<unsigned char>(b)]; };
    if (options_.byte_fallback &&
        std::all_of(bytes.begin(), bytes.end(), [&](char b) { return byte_id(b) >= 0; })) {
      // Unknown text before them stays behind: so it does in the `tokenizers` library.
      for (const char b : bytes) add(byte_id(b), 1);
      continue;
    }
    if (!options_.unknown_token) continue;
    TRIREME_USER_CHECK(
        unknown_id_ >= 0, kData, "the file is damaged",
        "the text has '{}', which is not in the vocabulary, and neither is unk_token "
        "'{}'",
        bytes, *options_.unknown_token);
    if (!options_.fuse_unknown) add_unknown();
    unknown_bytes += length;
  }
  add_unknown();
  const size_t count = merges_.apply(ids.data() + first, sizes.data(), ids.size() - first);
  ids.resize(first + count);
  if (spans == nullptr) return;
  uint32_t done = 0;
  for (size_t i = 0; i < count; ++i) {
    spans->push_back({done, done + sizes[i]});
    done += sizes[i];
  }
}

}  // namespace trireme::data
