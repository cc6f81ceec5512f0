#include "trireme/data/byte_trie.h"

#include <algorithm>
#include <bit>

namespace trireme::data {

ByteTrie::ByteTrie(size_t total_bytes) {
  const int bits = std::max(4, static_cast<int>(std::bit_width(total_bytes * 2)));
  table_.resize(size_t{1} << bits);
  mask_ = table_.size() - 1;
  shift_ = 64 - bits;
}

void ByteTrie::add(std::string_view token, int32_t value) {
  uint32_t node = kRoot;
  for (const char c : token) {
    const uint64_t wanted = key(node, static_cast<unsigned char>(c));
    uint64_t slot = (wanted * kMix) >> shift_;
    while (table_[slot].key != 0 && table_[slot].key != wanted) slot = (slot + 1) & mask_;
    if (table_[slot].key == 0) {
      table_[slot] = {wanted, static_cast<uint32_t>(values_.size())};
      values_.push_back(-1);
    }
    node = table_[slot].child;
  }
  values_[node] = value;
}

uint32_t ByteTrie::walk(uint32_t node, std::string_view text) const {
  for (const char c : text) {
    if (node == kNone) break;
    node = next(node, static_cast<unsigned char>(c));
  }
  return node;
}

}  // namespace trireme::data
