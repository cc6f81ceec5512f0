// A rank's end of the rendezvous: one connection, a thread that reads it.
#pragma once

#include <memory>
#include <string>

#include "trireme/comm/rendezvous.h"
#include "trireme/comm/rendezvous/channel.h"
#include "trireme/comm/rendezvous/server.h"
#include "trireme/comm/rendezvous/socket.h"

namespace trireme::comm {

/// Both ends have proved the token.
struct ProvedConnection {
  Descriptor socket;  ///< empty: none
  std::unique_ptr<Channel> channel;
  Endpoint endpoint;
};

/// One try. Empty, with the reason in `why`, if nobody answers yet; Error if who answers is a stranger, or turned this one away (kConfig).
ProvedConnection prove(const Endpoint& endpoint, const std::string& token, double timeout_s,
                       std::string& why);

/// Joins as `options.rank` and blocks until all are there. `server` is the rank's own, or null; it lives as long as the rendezvous.
std::shared_ptr<Rendezvous> join(ProvedConnection connection,
                                 std::unique_ptr<RendezvousServer> server,
                                 const MeetingOptions& options);

}  // namespace trireme::comm
