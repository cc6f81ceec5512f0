// The thread at rank 0 that ranks meet at: sockets around a hub.
#pragma once

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "trireme/comm/rendezvous/channel.h"
#include "trireme/comm/rendezvous/hub.h"
#include "trireme/comm/rendezvous/socket.h"

namespace trireme::comm {

/// Serves from construction to destruction, which closes every connection: the ranks see rank 0 as lost, unless finish() came before.
class RendezvousServer {
 public:
  /// `listener` is a listening socket that does not block; `options.address` is what messages call it.
  RendezvousServer(Descriptor listener, std::string token, RendezvousHubOptions options);
  ~RendezvousServer();
  RendezvousServer(const RendezvousServer&) = delete;
  RendezvousServer& operator=(const RendezvousServer&) = delete;

  /// Blocks until every rank said goodbye or is lost, at most `timeout_s`; returns whether they did.
  bool finish(double timeout_s);

 private:
  struct Connection {
    Descriptor socket;
    std::unique_ptr<Channel> channel;
    double since_s = 0;  ///< when it came
    bool broken = false;
  };

  void serve();
  void accept_all();
  void read_from(RendezvousHub::Connection id, Connection& connection);
  void write_to(Connection& connection);
  void deliver();
  void close_broken();
  int poll_timeout_ms() const;

  const std::string token_;
  const double timeout_s_;
  const double start_s_;
  Descriptor listener_;
  WakePipe wake_;
  // The thread's own.
  std::map<RendezvousHub::Connection, Connection> connections_;
  RendezvousHub::Connection next_ = 0;

  std::mutex mutex_;
  std::condition_variable changed_;
  RendezvousHub hub_;  // under mutex_
  bool stop_ = false;  // under mutex_
  std::thread thread_;
};

}  // namespace trireme::comm
