// What strangers and ranks can send to the rendezvous' server, and what launchers can leave in the environment.
//
// The first byte chooses: 0 bytes from a stranger, 1 one message, 2 messages of several ranks ([connection][size, 2 bytes][message]),
// 3 variables (NAME=value, a line each).
#include <cstdint>
#include <cstdlib>
#include <sstream>
#include <string>
#include <string_view>

#include "trireme/base/error.h"
#include "trireme/comm/rendezvous/channel.h"
#include "trireme/comm/rendezvous/hub.h"
#include "trireme/comm/rendezvous/message.h"
#include "trireme/comm/rendezvous/placement.h"

namespace {

using namespace trireme;
using namespace trireme::comm;

void try_stranger(std::string_view bytes) {
  Channel channel(Channel::End::kServer, "a token that the fuzzer lacks", std::string(32, 'n'));
  const size_t piece = bytes.empty() ? 1 : 1 + static_cast<unsigned char>(bytes[0]) % 64;
  for (size_t at = 0; at < bytes.size(); at += piece) {
    if (!channel.receive(bytes.substr(at, piece)).empty()) std::abort();
  }
  if (channel.open()) std::abort();
}

void try_message(std::string_view bytes) {
  if (encode(decode(bytes)) != bytes) std::abort();
}

void try_hub(std::string_view bytes) {
  constexpr int kRanks = 3;
  constexpr size_t kStored = 4096;
  RendezvousHubOptions options;
  options.size = kRanks;
  options.address = "here";
  options.max_stored_bytes = kStored;
  RendezvousHub hub(options);
  const std::string hosts[] = {"a", "b", "c"};
  // Half of the inputs begin with all ranks there.
  if (!bytes.empty() && bytes[0] % 2 == 0) {
    for (int rank = 0; rank < kRanks; ++rank)
      hub.receive(rank, {MessageKind::kJoin, 1, rank, {hosts[rank], "3"}});
  }
  while (bytes.size() >= 3) {
    const RendezvousHub::Connection from = bytes[0] & 7;
    const size_t size = static_cast<unsigned char>(bytes[1]) |
                        static_cast<size_t>(static_cast<unsigned char>(bytes[2])) << 8;
    const std::string_view message = bytes.substr(3, size);
    bytes.remove_prefix(3 + message.size());
    try {
      hub.receive(from, decode(message));
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kDevice) std::abort();
      hub.closed(from);
    }
    // All that is answered can be sent.
    for (const RendezvousHub::Outgoing& outgoing : hub.take_outgoing()) encode(outgoing.message);
    if (hub.num_present() < 0 || hub.num_present() > kRanks) std::abort();
  }
  hub.time_is_over();
}

void try_variables(std::string_view bytes) {
  Environment environment;
  std::istringstream lines{std::string(bytes)};
  for (std::string line; std::getline(lines, line);) {
    const size_t equals = line.find('=');
    if (equals != std::string::npos) environment[line.substr(0, equals)] = line.substr(equals + 1);
  }
  const Placement placement = read_placement({}, environment);
  if (placement.rank < 0 || placement.rank >= placement.size ||
      placement.local_rank > placement.rank || placement.local_size > placement.size ||
      placement.port < 0 || placement.port > 65535)
    std::abort();
  if (placement.size > 1 && placement.local_size != placement.size &&
      (placement.address.empty() || placement.port == 0))
    std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  try {
    switch (data[0] % 4) {
      case 0:
        try_stranger(bytes);
        break;
      case 1:
        try_message(bytes);
        break;
      case 2:
        try_hub(bytes);
        break;
      default:
        try_variables(bytes);
    }
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kDevice && error.code() != ErrorCode::kConfig) std::abort();
  }
  return 0;
}
