#include "trireme/comm/rendezvous/channel.h"

#include <algorithm>
#include <utility>

#include "trireme/base/error.h"
#include "trireme/base/secret.h"

namespace trireme::comm {

namespace {

constexpr std::string_view kMagic = "TRIREMER";
constexpr size_t kNonceBytes = 32;
constexpr size_t kHelloBytes = 8 + 4 + kNonceBytes;
constexpr size_t kProofBytes = 32;
constexpr size_t kTagBytes = 16;
/// In place of the server's proof.
const std::string kRefusal(kProofBytes, '\0');
constexpr const char* kTokenHint = "start all ranks with the same TRIREME_TOKEN";

[[noreturn]] void refuse_token() {
  throw Error(ErrorCode::kDevice, "its token differs", kTokenHint);
}

std::string make_hello(const std::string& nonce) {
  TRIREME_CHECK(nonce.size() == kNonceBytes, "a nonce of {} bytes", nonce.size());
  std::string hello(kMagic);
  append_u32(hello, kRendezvousVersion);
  return hello + nonce;
}

/// As early as the bytes that are there allow.
void check_hello(std::string_view bytes) {
  const size_t known = std::min(bytes.size(), kMagic.size());
  TRIREME_USER_CHECK(bytes.substr(0, known) == kMagic.substr(0, known), kDevice,
                     "choose another port: another program uses this one",
                     "what answers is no rendezvous of Trireme");
  if (bytes.size() < kMagic.size() + 4) return;
  const uint32_t version = read_u32(bytes, kMagic.size());
  TRIREME_USER_CHECK(version == kRendezvousVersion, kDevice,
                     "start all ranks with the same version of trireme",
                     "the other end speaks version {} of the rendezvous, this one version {}",
                     version, kRendezvousVersion);
}

std::string frame_tag(const std::string& key, uint64_t number, std::string_view message) {
  std::string input;
  input.reserve(8 + message.size());
  append_u64(input, number);
  input += message;
  return hmac_sha256(key, input).substr(0, kTagBytes);
}

}  // namespace

Channel::Channel(End end, std::string token, std::string nonce)
    : state_(end == End::kServer ? State::kServerWaits : State::kClientWaits),
      token_(std::move(token)),
      own_hello_(make_hello(nonce)) {
  if (end == End::kServer) {
    server_hello_ = own_hello_;
    outgoing_ = own_hello_;
  }
}

std::string Channel::proof(std::string_view end) const {
  return hmac_sha256(token_, std::string(end) + server_hello_ + client_hello_);
}

void Channel::make_keys() {
  const std::string up = proof("key to the server");
  const std::string down = proof("key to the client");
  const bool server = state_ == State::kServerWaits;
  send_key_ = server ? down : up;
  receive_key_ = server ? up : down;
  state_ = State::kOpen;
}

bool Channel::shake_hands() {
  switch (state_) {
    case State::kServerWaits: {
      check_hello(incoming_);
      if (incoming_.size() < kHelloBytes + kProofBytes) return false;
      client_hello_ = incoming_.substr(0, kHelloBytes);
      if (!equal_in_constant_time(proof("client"), incoming_.substr(kHelloBytes, kProofBytes))) {
        outgoing_ += kRefusal;
        refuse_token();
      }
      incoming_.erase(0, kHelloBytes + kProofBytes);
      outgoing_ += proof("server");
      make_keys();
      return true;
    }
    case State::kClientWaits:
      check_hello(incoming_);
      if (incoming_.size() < kHelloBytes) return false;
      server_hello_ = incoming_.substr(0, kHelloBytes);
      client_hello_ = own_hello_;
      incoming_.erase(0, kHelloBytes);
      outgoing_ += client_hello_ + proof("client");
      state_ = State::kClientProved;
      return true;
    case State::kClientProved:
      if (incoming_.size() < kProofBytes) return false;
      TRIREME_USER_CHECK(incoming_.substr(0, kProofBytes) != kRefusal, kConfig, kTokenHint,
                         "the rendezvous turned this rank away: its TRIREME_TOKEN differs");
      if (!equal_in_constant_time(proof("server"), incoming_.substr(0, kProofBytes)))
        refuse_token();
      incoming_.erase(0, kProofBytes);
      make_keys();
      return true;
    case State::kOpen:
      break;
  }
  return false;
}

std::vector<Message> Channel::receive(std::string_view bytes) {
  incoming_ += bytes;
  while (!open()) {
    if (!shake_hands()) return {};
  }
  std::vector<Message> messages;
  size_t at = 0;
  while (incoming_.size() - at >= 4) {
    const size_t size = read_u32(incoming_, at);
    TRIREME_USER_CHECK(size <= kMaxMessageBytes, kDevice, "check the network",
                       "a message of the rendezvous is damaged: {} bytes", size);
    if (incoming_.size() - at - 4 < size + kTagBytes) break;
    const std::string_view message = std::string_view(incoming_).substr(at + 4, size);
    const std::string_view tag = std::string_view(incoming_).substr(at + 4 + size, kTagBytes);
    TRIREME_USER_CHECK(equal_in_constant_time(frame_tag(receive_key_, num_received_, message), tag),
                       kDevice, "check the network",
                       "a message of the rendezvous was changed on its way");
    ++num_received_;
    messages.push_back(decode(message));
    at += 4 + size + kTagBytes;
  }
  incoming_.erase(0, at);
  return messages;
}

void Channel::send(const Message& message) {
  TRIREME_CHECK(open(), "a message before the handshake");
  const std::string bytes = encode(message);
  append_u32(outgoing_, static_cast<uint32_t>(bytes.size()));
  outgoing_ += bytes;
  outgoing_ += frame_tag(send_key_, num_sent_++, bytes);
}

}  // namespace trireme::comm
