#include "trireme/comm/rendezvous/client.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>

#include "trireme/base/clock.h"
#include "trireme/base/error.h"
#include "trireme/base/secret.h"
#include "trireme/comm/rank_names.h"
#include "trireme/comm/transfer.h"

namespace trireme::comm {

namespace {

constexpr const char* kLossHint = "see what the rank that is named says; the run can be resumed";

/// Writes what goes without waiting; false if the connection is broken.
bool write_some(const Descriptor& socket, std::string& outgoing) {
  size_t written = 0;
  bool good = true;
  while (written < outgoing.size()) {
    const ssize_t count =
        ::send(socket.get(), outgoing.data() + written, outgoing.size() - written, MSG_NOSIGNAL);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) {
      good = count < 0 && errno == EAGAIN;
      break;
    }
    written += static_cast<size_t>(count);
  }
  outgoing.erase(0, written);
  return good;
}

class TcpRendezvous final : public Rendezvous {
 public:
  TcpRendezvous(ProvedConnection connection, std::unique_ptr<RendezvousServer> server,
                const MeetingOptions& options)
      : timeout_s_(options.timeout_s),
        endpoint_(connection.endpoint.text()),
        server_(std::move(server)),
        socket_(std::move(connection.socket)),
        address_(local_endpoint(socket_).address),
        channel_(std::move(connection.channel)),
        rank_(options.rank) {
    reader_ = start_thread([this] { read_all(); });
  }

  ~TcpRendezvous() override { stop_reader(); }

  void join(const MeetingOptions& options) {
    std::unique_lock lock(mutex_);
    const std::string host = options.host.empty() ? this_host() : options.host;
    send({MessageKind::kJoin, kJoinId, rank_, {host, std::to_string(options.size)}});
    // The server's own deadline comes first, and says who is missing.
    const bool answered =
        changed_.wait_for(lock, std::chrono::duration<double>(options.timeout_s + 10),
                          [&] { return !hosts_.empty() || !ended_.empty(); });
    if (!answered) ended_ = fmt::format("the rendezvous at {} does not answer", endpoint_);
    if (!ended_.empty())
      throw Error(ErrorCode::kDevice, ended_, "see what the other ranks say, on their machines");
  }

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(hosts_.size()); }
  const std::string& host(int rank) const override { return hosts_.at(static_cast<size_t>(rank)); }
  const std::string& address() const override { return address_; }

  void set(const std::string& key, const std::string& value) override {
    check_size(key, value);
    ask(MessageKind::kSet, 0, {key, value});
  }

  std::string get(const std::string& key, double timeout_s) override {
    return std::move(wait_for({key}, true, timeout_s).texts.at(0));
  }

  void wait(const std::vector<std::string>& keys, double timeout_s) override {
    wait_for(keys, false, timeout_s);
  }

  bool check(const std::vector<std::string>& keys) override {
    return ask(MessageKind::kCheck, 0, keys).number != 0;
  }

  int64_t add(const std::string& key, int64_t amount) override {
    return ask(MessageKind::kAdd, amount, {key}).number;
  }

  bool remove(const std::string& key) override {
    return ask(MessageKind::kRemove, 0, {key}).number != 0;
  }

  void append(const std::string& key, const std::string& suffix) override {
    check_size(key, suffix);
    ask(MessageKind::kAppend, 0, {key, suffix});
  }

  std::string compare_set(const std::string& key, const std::string& expected,
                          const std::string& desired) override {
    check_size(key, expected);
    check_size(key, desired);
    return std::move(ask(MessageKind::kCompareSet, 0, {key, expected, desired}).texts.at(0));
  }

  int64_t num_keys() override { return ask(MessageKind::kCount, 0, {}).number; }

  void on_peer_lost(std::function<void(const PeerLoss&)> callback) override {
    const std::lock_guard lock(callback_mutex_);
    callback_ = std::move(callback);
    num_told_ = 0;
    tell_losses();
  }

  void abort(const std::string& reason) override {
    try {
      const std::lock_guard lock(mutex_);
      if (ended_.empty()) send({MessageKind::kAbort, 0, 0, {reason.substr(0, kMaxReasonBytes)}});
    } catch (...) {  // the others will see the connection close
    }
  }

  void leave(double timeout_s) override {
    try {
      ask(MessageKind::kGoodbye, 0, {}, timeout_s);
    } catch (const Error&) {  // nobody is there to hear it
    }
    {
      const std::lock_guard lock(mutex_);
      if (ended_.empty()) ended_ = "this rank has left the rendezvous";
    }
    stop_reader();
    if (server_) server_->finish(timeout_s);
    server_.reset();
  }

 private:
  static constexpr uint64_t kJoinId = 1;
  static constexpr size_t kMaxReasonBytes = 4096;

  struct Pending {
    bool done = false;
    bool refused = false;
    Message answer;
  };

  static void check_size(const std::string& key, const std::string& value) {
    TRIREME_USER_CHECK(key.size() <= kMaxKeyBytes && value.size() <= kMaxValueBytes, kDevice, "",
                       "a key of {} bytes with a value of {} is too long for the store", key.size(),
                       value.size());
  }

  /// Under mutex_. What cannot be written at once goes with the reading thread.
  void send(const Message& message) {
    channel_->send(message);
    if (!write_some(socket_, channel_->outgoing()) || !channel_->outgoing().empty()) wake_.wake();
  }

  /// Blocks; Error{kDevice} if the server refuses, is gone, or does not answer in time.
  Message ask(MessageKind kind, int64_t number, std::vector<std::string> texts,
              std::optional<double> timeout_s = std::nullopt) {
    std::unique_lock lock(mutex_);
    throw_if_ended();
    const double limit_s = timeout_s.value_or(timeout_s_);
    const uint64_t id = next_id_++;
    Pending& pending = pending_[id];
    try {
      send({kind, id, number, texts});
    } catch (...) {
      pending_.erase(id);
      throw;
    }
    changed_.wait_for(lock, std::chrono::duration<double>(limit_s),
                      [&] { return pending.done || !ended_.empty(); });
    const Pending result = std::move(pending);
    pending_.erase(id);
    if (!result.done) {
      throw_if_ended();
      if (kind == MessageKind::kWait) {
        send({MessageKind::kCancel, id, 0, {}});
        throw Error(ErrorCode::kDevice,
                    fmt::format("rank {} waited {:g} s for '{}', which no rank has set", rank_,
                                limit_s, texts.at(0)),
                    "a rank is behind, or stuck");
      }
      throw Error(ErrorCode::kDevice,
                  fmt::format("the rendezvous at {} did not answer rank {} within {:g} s",
                              endpoint_, rank_, limit_s),
                  kLossHint);
    }
    if (result.refused) throw Error(ErrorCode::kDevice, result.answer.texts.at(0), kLossHint);
    return result.answer;
  }

  Message wait_for(const std::vector<std::string>& keys, bool with_values, double timeout_s) {
    if (keys.empty()) return {};
    return ask(MessageKind::kWait, with_values, keys, timeout_s);
  }

  void throw_if_ended() const {
    if (!ended_.empty()) throw Error(ErrorCode::kDevice, ended_, kLossHint);
  }

  void stop_reader() {
    if (!reader_.joinable()) return;
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.wake();
    reader_.join();
    socket_.reset();
  }

  void read_all() {
    std::unique_lock lock(mutex_);
    while (!stop_) {
      const bool writes = !channel_->outgoing().empty();
      std::array<pollfd, 2> entries = {
          {{wake_.read_end.get(), POLLIN, 0},
           {socket_.get(), static_cast<short>(POLLIN | (writes ? POLLOUT : 0)), 0}}};
      lock.unlock();
      ::poll(entries.data(), entries.size(), -1);
      wake_.drain();
      lock.lock();
      if (stop_) return;
      const std::string broken = read_some(entries[1].revents);
      changed_.notify_all();
      if (!broken.empty()) {
        end(broken);
        lock.unlock();
        tell_losses();
        return;
      }
      if (losses_.size() > num_seen_) {
        num_seen_ = losses_.size();
        lock.unlock();
        tell_losses();
        lock.lock();
      }
    }
  }

  /// Under mutex_; returns why the connection is no more, or "".
  std::string read_some(short events) {
    if ((events & (POLLIN | POLLHUP | POLLERR)) != 0) {
      std::array<char, 1 << 16> bytes{};
      const ssize_t got = ::recv(socket_.get(), bytes.data(), bytes.size(), 0);
      if (got == 0) return "its connection closed";
      if (got < 0 && errno != EAGAIN && errno != EINTR) return std::strerror(errno);
      if (got > 0) {
        try {
          for (Message& message :
               channel_->receive(std::string_view(bytes.data(), static_cast<size_t>(got))))
            handle(std::move(message));
        } catch (const std::exception& error) {
          return error.what();
        }
      }
    }
    return write_some(socket_, channel_->outgoing()) ? "" : "its connection closed";
  }

  /// Under mutex_.
  void handle(Message message) {
    switch (message.kind) {
      case MessageKind::kWelcome:
        rank_ = static_cast<int>(message.number);
        hosts_ = std::move(message.texts);
        break;
      case MessageKind::kReply:
      case MessageKind::kRefused: {
        const bool refused = message.kind == MessageKind::kRefused;
        if (refused && message.texts.empty()) message.texts.emplace_back("refused");
        if (refused && hosts_.empty()) ended_ = message.texts[0];
        const auto found = pending_.find(message.id);
        if (found != pending_.end()) found->second = {true, refused, std::move(message)};
        break;
      }
      case MessageKind::kLost:
        if (message.texts.size() == 2)
          add_loss({static_cast<int>(message.number), message.texts[0], message.texts[1]});
        break;
      default:
        throw Error(ErrorCode::kDevice, "the rendezvous says what only ranks say");
    }
  }

  /// Under mutex_. Once for each rank.
  void add_loss(PeerLoss loss) {
    const bool known = std::any_of(losses_.begin(), losses_.end(),
                                   [&](const PeerLoss& other) { return other.rank == loss.rank; });
    if (!known) losses_.push_back(std::move(loss));
  }

  /// Under mutex_: the server is gone, and rank 0 with it.
  void end(const std::string& reason) {
    if (ended_.empty()) {
      if (hosts_.empty()) {
        ended_ =
            fmt::format("rank 0 at {} is gone before all ranks were there: {}", endpoint_, reason);
      } else if (!losses_.empty()) {
        // Rank 0 ends when it hears of a loss: that one is the cause.
        ended_ = describe(losses_.front());
      } else {
        ended_ =
            fmt::format("{}, where the ranks meet, is gone: {}", name_rank(0, hosts_[0]), reason);
      }
      if (!hosts_.empty() && rank_ != 0) add_loss({0, hosts_[0], ""});
    }
    changed_.notify_all();
  }

  /// Without mutex_.
  void tell_losses() {
    const std::lock_guard callback_lock(callback_mutex_);
    while (callback_) {
      PeerLoss loss;
      {
        const std::lock_guard lock(mutex_);
        if (num_told_ >= losses_.size()) return;
        loss = losses_[num_told_++];
      }
      const std::function<void(const PeerLoss&)> callback =
          callback_;  // it may be replaced meanwhile
      callback(loss);
    }
  }

  const double timeout_s_;
  const std::string endpoint_;
  std::unique_ptr<RendezvousServer> server_;
  Descriptor socket_;
  const std::string address_;
  WakePipe wake_;

  std::mutex mutex_;
  std::condition_variable changed_;
  // Under mutex_; rank_ and hosts_ do not change after join().
  std::unique_ptr<Channel> channel_;
  int rank_;
  std::vector<std::string> hosts_;  // empty until all are there
  std::string ended_;               // why nothing can be asked any more
  std::map<uint64_t, Pending> pending_;
  uint64_t next_id_ = kJoinId + 1;
  std::vector<PeerLoss> losses_;
  size_t num_seen_ = 0;
  bool stop_ = false;

  std::recursive_mutex callback_mutex_;  // before mutex_
  std::function<void(const PeerLoss&)> callback_;
  size_t num_told_ = 0;

  std::thread reader_;
};

}  // namespace

std::string describe(const PeerLoss& loss) {
  const std::string who = name_rank(loss.rank, loss.host);
  return loss.reason.empty() ? who + " is gone: its connection closed"
                             : who + " stopped the run: " + loss.reason;
}

ProvedConnection prove(const Endpoint& endpoint, const std::string& token, double timeout_s,
                       std::string& why) {
  const double deadline_s = steady_clock().now_s() + timeout_s;
  ProvedConnection connection;
  connection.endpoint = endpoint;
  Descriptor socket = connect_to(endpoint, timeout_s, why);
  if (!socket) return connection;
  auto channel = std::make_unique<Channel>(Channel::End::kClient, token, random_bytes(32));
  while (!channel->open()) {
    const double left_s = deadline_s - steady_clock().now_s();
    why = "it does not answer";
    if (left_s <= 0) return connection;
    bool good = write_some(socket, channel->outgoing());
    pollfd entry = {socket.get(), POLLIN, 0};
    if (good && ::poll(&entry, 1, static_cast<int>(left_s * 1e3) + 1) <= 0) continue;
    std::array<char, 256> bytes{};
    const ssize_t got = good ? ::recv(socket.get(), bytes.data(), bytes.size(), 0) : 0;
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) continue;
    if (got <= 0) {
      why = "it closed the connection";
      return connection;
    }
    try {
      channel->receive(std::string_view(bytes.data(), static_cast<size_t>(got)));
    } catch (const Error& error) {
      throw Error(error.code(), fmt::format("{}: {}", endpoint.text(), error.what()), error.hint());
    }
  }
  connection.socket = std::move(socket);
  connection.channel = std::move(channel);
  return connection;
}

std::shared_ptr<Rendezvous> join(ProvedConnection connection,
                                 std::unique_ptr<RendezvousServer> server,
                                 const MeetingOptions& options) {
  auto rendezvous =
      std::make_shared<TcpRendezvous>(std::move(connection), std::move(server), options);
  rendezvous->join(options);
  return rendezvous;
}

}  // namespace trireme::comm
