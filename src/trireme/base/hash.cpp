#include "trireme/base/hash.h"

#include <fmt/format.h>
#include <xxhash.h>

#include "trireme/base/error.h"

namespace trireme {

uint64_t xxh3(std::span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

std::string hash_text(uint64_t hash) {
  return fmt::format("{:016x}", hash);
}

namespace {

// Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014), with the
// constants of Stafford's 13th variant.
uint64_t finalise(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

}  // namespace

uint64_t mix(uint64_t a, uint64_t b, uint64_t c) {
  constexpr uint64_t kGolden = 0x9e3779b97f4a7c15ULL;
  // One round for each value, so that (a, b) and (b, a) differ.
  uint64_t z = finalise(a + kGolden);
  z = finalise(z + b + kGolden);
  return finalise(z + c + kGolden);
}

Hasher::Hasher() : state_(XXH3_createState()) {
  TRIREME_CHECK(state_ != nullptr, "no memory for a hash state");
  XXH3_64bits_reset(static_cast<XXH3_state_t*>(state_));
}

Hasher::~Hasher() {
  XXH3_freeState(static_cast<XXH3_state_t*>(state_));
}

void Hasher::update(std::span<const std::byte> bytes) {
  XXH3_64bits_update(static_cast<XXH3_state_t*>(state_), bytes.data(), bytes.size());
}

uint64_t Hasher::digest() const {
  return XXH3_64bits_digest(static_cast<const XXH3_state_t*>(state_));
}

}  // namespace trireme
