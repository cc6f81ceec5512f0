// What the rendezvous' server does with what ranks say: who is there, who is missing, who is gone, and the key-value store. No sockets,
// no clock, no threads: messages in, messages out.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "trireme/comm/rendezvous/message.h"

namespace trireme::comm {

struct RendezvousHubOptions {
  int size = 1;           ///< ranks that are to come
  std::string address;    ///< for messages: where they come to
  double timeout_s = 60;  ///< for messages: how long they may take
  std::vector<std::string>
      expected_hosts;  ///< for messages: where each rank should run, by rank; may be short
  size_t max_stored_bytes = size_t{256} << 20;  ///< of all keys and values
};

/// One thread at a time.
class RendezvousHub {
 public:
  using Connection = int64_t;

  explicit RendezvousHub(RendezvousHubOptions options);

  struct Outgoing {
    Connection to = 0;
    Message message;
  };

  /// A message of an authenticated connection. Error{kDevice} if it breaks the protocol; the connection has to be closed then, and
  /// closed() called.
  void receive(Connection from, const Message& message);
  /// The connection is no more; without a goodbye before, its rank is lost. Unknown ones are fine.
  void closed(Connection connection);
  /// A connection was turned away before it was anybody's: `reason` goes into the message of who is missing.
  void turned_away(const std::string& reason);
  /// The time for all to come is over: if somebody is missing, all are told who.
  void time_is_over();

  /// What is to be sent, in order; empties the list.
  std::vector<Outgoing> take_outgoing();

  bool met() const { return met_; }
  bool failed() const { return failed_; }
  /// Ranks that are connected and did not say goodbye.
  int num_present() const;

 private:
  struct Member {
    int rank = -1;  ///< -1: as it comes
    std::string host;
    bool left = false;  ///< said goodbye
  };
  struct Waiting {
    Connection from = 0;
    uint64_t id = 0;
    std::vector<std::string> keys;
    bool with_values = false;
  };

  void join(Connection from, const Message& message);
  void welcome_if_complete();
  void fail_meeting(const std::string& reason);
  void answer_store(Connection from, const Message& message);
  void wait(Connection from, const Message& message);
  bool have_all(const std::vector<std::string>& keys) const;
  void answer_wait(const Waiting& waiting);
  void store(Connection from, uint64_t id, const std::string& key, std::string value,
             int64_t number, std::vector<std::string> texts);
  void wake(const std::string& key);
  void announce_loss(const Member& member, const std::string& reason);
  void reply(Connection to, uint64_t id, int64_t number = 0, std::vector<std::string> texts = {});
  void refuse(Connection to, uint64_t id, const std::string& reason);

  RendezvousHubOptions options_;
  std::map<Connection, Member> members_;
  std::vector<Connection> arrivals_;
  std::map<std::string, std::string> values_;
  size_t stored_bytes_ = 0;
  std::vector<Waiting> waiting_;
  std::vector<Outgoing> outgoing_;
  std::vector<std::string> turned_away_;
  std::string lost_;  ///< who is gone; from then on nobody waits for a key
  bool met_ = false;
  bool failed_ = false;
};

}  // namespace trireme::comm
