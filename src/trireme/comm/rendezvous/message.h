// What ranks and the rendezvous' server say to each other, and how it looks in bytes.
//
// Torch-free, no I/O: the fuzz target rendezvous feeds it arbitrary bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace trireme::comm {

enum class MessageKind : uint8_t {
  // From a rank. All but kCancel, kAbort get one kReply or kRefused with their id.
  kJoin = 1,  ///< number: its rank, -1: any; texts: host, world size
  kWait,  ///< texts: keys; number 1: the reply has their values, 0: it has none. Answered when all are there
  kCancel,      ///< takes back the kWait with this id, if it was not answered
  kSet,         ///< texts: key, value
  kAdd,         ///< texts: key; number is added to its decimal value. Reply: the sum
  kRemove,      ///< texts: key. Reply: 1 if it was there
  kCheck,       ///< texts: keys. Reply: 1 if all are there
  kCount,       ///< Reply: how many keys there are
  kCompareSet,  ///< texts: key, expected, desired. Reply: the value after it
  kAppend,      ///< texts: key, suffix
  kAbort,       ///< texts: the reason; is told to all other ranks
  kGoodbye,     ///< the rank's end of connection is no loss from now on
  // From the server.
  kWelcome,  ///< all are there; number: the rank of who reads it; texts: host names by rank
  kReply,    ///< id: of the request; number, texts as said above
  kRefused,  ///< id: of the request, or 0: of the meeting as a whole; texts: why
  kLost,  ///< number: a rank that is gone; texts: its host, its reason (empty: its connection closed)
};

struct Message {
  MessageKind kind = MessageKind::kReply;
  uint64_t id = 0;
  int64_t number = 0;
  std::vector<std::string> texts;

  bool operator==(const Message&) const = default;
};

inline constexpr size_t kMaxKeyBytes = size_t{8} << 10;
inline constexpr size_t kMaxValueBytes = size_t{8} << 20;
inline constexpr size_t kMaxTexts = size_t{1} << 16;
/// Of one encoded message: two values and a key.
inline constexpr size_t kMaxMessageBytes = 2 * kMaxValueBytes + (size_t{1} << 16);

/// Little-endian: kind (1 byte), id (8), number (8), count of texts (4), and for each text its size (4) and bytes.
std::string encode(const Message& message);

/// The message that all of `bytes` is. Error{kDevice} for an unknown kind, a size past the end, or bytes that are left. Allocates no
/// more than a small multiple of `bytes`.
Message decode(std::string_view bytes);

/// Little-endian numbers of 4 and 8 bytes at the end of / in `bytes` (which has them).
void append_u32(std::string& bytes, uint32_t value);
void append_u64(std::string& bytes, uint64_t value);
uint32_t read_u32(std::string_view bytes, size_t at);
uint64_t read_u64(std::string_view bytes, size_t at);

}  // namespace trireme::comm
