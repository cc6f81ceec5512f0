// What processes of one run prove to each other that they belong together with: a random token and a keyed hash.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace trireme {

/// SHA-256 (FIPS 180-4): 32 bytes.
std::string sha256(std::string_view bytes);

/// HMAC-SHA-256 (RFC 2104): 32 bytes that only who knows `key` can make of `message`.
std::string hmac_sha256(std::string_view key, std::string_view message);

/// Whether two texts are equal, in a time that depends on their lengths alone.
bool equal_in_constant_time(std::string_view a, std::string_view b);

/// `count` bytes of the system's random source, for secrets; never for training. Error{kInternal} if there is none.
std::string random_bytes(size_t count);

/// Two lower-case hexadecimal digits for each byte.
std::string hexadecimal(std::string_view bytes);

}  // namespace trireme
