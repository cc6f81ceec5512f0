// xxh3-64 of bytes, and its fixed text form (16 lower-case hexadecimal digits).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace trireme {

uint64_t xxh3(std::span<const std::byte> bytes);
std::string hash_text(uint64_t hash);

/// SplitMix64 finaliser: a well-mixed 64-bit value of (a, b, c), for counter-based
/// pseudo-randomness.
uint64_t mix(uint64_t a, uint64_t b = 0, uint64_t c = 0);

/// Incremental xxh3-64 with the same result as xxh3() over the concatenation.
class Hasher {
 public:
  Hasher();
  ~Hasher();
  Hasher(const Hasher&) = delete;
  Hasher& operator=(const Hasher&) = delete;
  void update(std::span<const std::byte> bytes);
  uint64_t digest() const;

 private:
  void* state_;
};

}  // namespace trireme
