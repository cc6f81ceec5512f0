#include "trireme/comm/rendezvous/message.h"

#include "trireme/base/error.h"

namespace trireme::comm {

namespace {

constexpr size_t kHeadBytes = 1 + 8 + 8 + 4;

[[noreturn]] void refuse(const char* what) {
  throw Error(ErrorCode::kDevice, fmt::format("a message of the rendezvous is damaged: {}", what),
              "start all ranks with the same version of trireme");
}

}  // namespace

void append_u32(std::string& bytes, uint32_t value) {
  for (int shift = 0; shift < 32; shift += 8)
    bytes += static_cast<char>(static_cast<unsigned char>(value >> shift));
}

void append_u64(std::string& bytes, uint64_t value) {
  append_u32(bytes, static_cast<uint32_t>(value));
  append_u32(bytes, static_cast<uint32_t>(value >> 32));
}

uint32_t read_u32(std::string_view bytes, size_t at) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i)
    value |= static_cast<uint32_t>(static_cast<unsigned char>(bytes[at + i])) << (8 * i);
  return value;
}

uint64_t read_u64(std::string_view bytes, size_t at) {
  return read_u32(bytes, at) | static_cast<uint64_t>(read_u32(bytes, at + 4)) << 32;
}

std::string encode(const Message& message) {
  size_t size = kHeadBytes;
  for (const std::string& text : message.texts) size += 4 + text.size();
  TRIREME_CHECK(size <= kMaxMessageBytes && message.texts.size() <= kMaxTexts,
                "a message of {} bytes is too long for the rendezvous", size);
  std::string bytes;
  bytes.reserve(size);
  bytes += static_cast<char>(message.kind);
  append_u64(bytes, message.id);
  append_u64(bytes, static_cast<uint64_t>(message.number));
  append_u32(bytes, static_cast<uint32_t>(message.texts.size()));
  for (const std::string& text : message.texts) {
    append_u32(bytes, static_cast<uint32_t>(text.size()));
    bytes += text;
  }
  return bytes;
}

Message decode(std::string_view bytes) {
  if (bytes.size() < kHeadBytes || bytes.size() > kMaxMessageBytes) refuse("its size is wrong");
  Message message;
  const auto kind = static_cast<uint8_t>(bytes[0]);
  if (kind < static_cast<uint8_t>(MessageKind::kJoin) ||
      kind > static_cast<uint8_t>(MessageKind::kLost))
    refuse("it is of an unknown kind");
  message.kind = static_cast<MessageKind>(kind);
  message.id = read_u64(bytes, 1);
  message.number = static_cast<int64_t>(read_u64(bytes, 9));
  const size_t count = read_u32(bytes, 17);
  // Every text has at least its size.
  if (count > kMaxTexts || count > (bytes.size() - kHeadBytes) / 4) refuse("too many texts");
  message.texts.reserve(count);
  size_t at = kHeadBytes;
  for (size_t i = 0; i < count; ++i) {
    if (bytes.size() - at < 4) refuse("it ends inside a size");
    const size_t size = read_u32(bytes, at);
    at += 4;
    if (bytes.size() - at < size) refuse("it ends inside a text");
    message.texts.emplace_back(bytes.substr(at, size));
    at += size;
  }
  if (at != bytes.size()) refuse("bytes are left");
  return message;
}

}  // namespace trireme::comm
