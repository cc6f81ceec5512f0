// One end of an authenticated connection, without the connection: bytes in, messages out, and back.
//
//   server -> client   hello: "TRIREMER", version (4), nonce (32)
//   client -> server   hello: the same of its own, proof (32) = HMAC(token, "client", both hellos)
//   server -> client   proof (32) = HMAC(token, "server", both hellos); zeros if the client's proof is wrong
//   both               frames: size (4), message, tag (16) = HMAC(key of the direction, number of the frame, message), cut
//
// The token itself never travels; nonces make every connection's proofs and keys its own, so that nothing of an earlier one can be
// sent again. Whoever lacks the token, on either side, gets no message through, and who changes bytes on the way ends the
// connection. Nothing is encrypted.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "trireme/comm/rendezvous/message.h"

namespace trireme::comm {

inline constexpr uint32_t kRendezvousVersion = 1;

/// One thread at a time. Does not block.
class Channel {
 public:
  enum class End { kServer, kClient };

  /// `token` is what both ends share; `nonce` 32 bytes that were never used before.
  Channel(End end, std::string token, std::string nonce);

  /// Takes bytes of the peer; returns the messages that are complete. Throws Error{kDevice} for a stranger (who does not begin as a
  /// Trireme does, is of another version, or lacks the token) and for a damaged frame, Error{kConfig} if the server says that this end lacks it;
  /// the connection has to be closed then, at the server after what is in outgoing().
  std::vector<Message> receive(std::string_view bytes);

  /// Adds a message to what goes out. Only when open().
  void send(const Message& message);

  /// Both ends have proved the token.
  bool open() const { return state_ == State::kOpen; }

  /// What has to be written to the peer; who writes it cuts it off.
  std::string& outgoing() { return outgoing_; }
  const std::string& outgoing() const { return outgoing_; }

 private:
  enum class State { kServerWaits, kClientWaits, kClientProved, kOpen };

  /// Takes one step of the handshake from the front of `incoming_`, if it is there; false otherwise.
  bool shake_hands();
  void make_keys();
  std::string proof(std::string_view end) const;

  State state_;
  std::string token_;
  std::string own_hello_;
  std::string server_hello_;
  std::string client_hello_;
  std::string send_key_;
  std::string receive_key_;
  uint64_t num_sent_ = 0;
  uint64_t num_received_ = 0;
  std::string incoming_;
  std::string outgoing_;
};

}  // namespace trireme::comm
