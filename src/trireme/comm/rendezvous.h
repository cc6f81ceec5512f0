// Where the ranks of a run meet before they can talk to each other: all come, or everybody is told who is missing; a small key-value
// store for setting transports up; and the news when a rank is gone.
//
// Rank 0 runs the server, in a thread of its own, on one interface. Every rank, rank 0 too, has one TCP connection to it, which
// both ends authenticate with the token of the run (rendezvous/channel.h). docs/parallelism.md says what that protects against.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "trireme/comm/rendezvous/placement.h"

namespace trireme::comm {

/// A rank that is gone.
struct PeerLoss {
  int rank = 0;
  std::string host;
  std::string reason;  ///< what it said; empty: its connection closed
};

/// "rank 2 (node7) is gone: its connection closed", "rank 2 (node7) stopped the run: ..."
std::string describe(const PeerLoss& loss);

/// Thread-safety: any thread, at any time. Requests block until the server answers; they throw Error{kDevice} at once when the server is
/// gone. Destroying it without leave() before is a loss to the others.
class Rendezvous {
 public:
  virtual ~Rendezvous() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  /// What a rank's machine calls itself.
  virtual const std::string& host(int rank) const = 0;
  /// This machine's address on the way to rank 0: of an interface that the others can reach, whatever names resolve to.
  virtual const std::string& address() const = 0;

  /// Keys have at most 8 KiB, values 8 MiB, all of them together 256 MiB; beyond that Error{kDevice}.
  virtual void set(const std::string& key, const std::string& value) = 0;
  /// Blocks until the key is there. Throws Error{kDevice} after `timeout_s`, and when a rank is lost: from the first loss on
  /// no request waits for a key, but what is there can still be had.
  virtual std::string get(const std::string& key, double timeout_s) = 0;
  /// The same for several keys, without their values.
  virtual void wait(const std::vector<std::string>& keys, double timeout_s) = 0;
  virtual bool check(const std::vector<std::string>& keys) = 0;
  /// Adds to the decimal number that the key holds, 0 if it is not there; returns the sum.
  virtual int64_t add(const std::string& key, int64_t amount) = 0;
  /// Whether the key was there.
  virtual bool remove(const std::string& key) = 0;
  virtual void append(const std::string& key, const std::string& suffix) = 0;
  /// Sets the key to `desired` if it holds `expected`, or is not there and `expected` is empty; returns what it holds then.
  virtual std::string compare_set(const std::string& key, const std::string& expected,
                                  const std::string& desired) = 0;
  virtual int64_t num_keys() = 0;

  /// `callback` is called once for each rank that is lost or stops the run, from now on and at once for those that are lost already: from
  /// the thread of the connection, or from this one. It may call abort(), and
  /// nothing else of the rendezvous, and must not wait. Empty: no more calls; none is running when this returns,
  /// unless it is called from the callback.
  virtual void on_peer_lost(std::function<void(const PeerLoss&)> callback) = 0;

  /// Tells all other ranks that this one stops the run, and why. Does not block for an answer. Never throws.
  virtual void abort(const std::string& reason) = 0;

  /// Goodbye: the end of this rank is no loss. At rank 0 blocks until all others are gone, at most `timeout_s`.
  virtual void leave(double timeout_s) = 0;
};

struct MeetingOptions {
  int rank = 0;  ///< -1: as it comes
  int size = 1;
  /// Of rank 0's server. At rank 0 also what it listens on, unless `bind` or `listener` says otherwise; port 0 with an announcement.
  std::string address = "127.0.0.1";
  int port = 0;
  std::string bind;
  int listener =
      -1;  ///< at rank 0: a listening socket that this process was started with; taken over
  /// A file, for ranks on one machine: rank 0 writes its address and a token of its own there, and all others read it.
  std::string announcement;
  /// address:port is a c10d::TCPStore of a launcher, where rank 0 says its address.
  bool agent_store = false;
  std::string job;    ///< with agent_store: what tells this run from others that use the store
  std::string token;  ///< not needed with an announcement
  std::vector<std::string> expected_hosts;  ///< by rank, for the message that names who is missing
  double timeout_s = 60;
  std::string host;  ///< what this machine calls itself; empty: its host name
};

/// How the ranks of `placement` meet, with what `environment` adds: TRIREME_TOKEN (of at least 16 characters; needed where not all ranks are on one
/// machine), TRIREME_BIND (the address that rank 0 listens on, if it is not MASTER_ADDR), TRIREME_LISTEN_FD, TRIREME_HOSTS (host names of
/// the machines, by comma). Error{kConfig}.
MeetingOptions meeting_options(const Placement& placement, const Environment& environment);

/// Meets. Blocks until all ranks are there. Error{kDevice} that names the ranks that did not come within the time-out, Error{kConfig} for
/// addresses that cannot be and tokens that differ.
std::shared_ptr<Rendezvous> meet(const MeetingOptions& options);

}  // namespace trireme::comm
