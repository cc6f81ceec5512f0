#include "trireme/comm/rendezvous/server.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <utility>
#include <vector>

#include "trireme/base/clock.h"
#include "trireme/base/error.h"
#include "trireme/base/secret.h"

namespace trireme::comm {

namespace {

// Strangers: so many at once, for so long.
constexpr size_t kMaxStrangers = 64;
constexpr double kHandshakeSeconds = 10;
// A rank that reads nothing for long is given up before its answers fill the memory.
constexpr size_t kMaxOutgoingBytes = size_t{64} << 20;

}  // namespace

RendezvousServer::RendezvousServer(Descriptor listener, std::string token,
                                   RendezvousHubOptions options)
    : token_(std::move(token)),
      timeout_s_(options.timeout_s),
      start_s_(steady_clock().now_s()),
      listener_(std::move(listener)),
      hub_(std::move(options)) {
  thread_ = start_thread([this] { serve(); });
}

RendezvousServer::~RendezvousServer() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.wake();
  thread_.join();
}

bool RendezvousServer::finish(double timeout_s) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, std::chrono::duration<double>(timeout_s),
                           [&] { return hub_.num_present() == 0; });
}

int RendezvousServer::poll_timeout_ms() const {
  // The next moment at which time alone changes something.
  double next_s = 1e9;
  if (!hub_.met() && !hub_.failed()) next_s = start_s_ + timeout_s_;
  for (const auto& [id, connection] : connections_) {
    if (!connection.channel->open())
      next_s = std::min(next_s, connection.since_s + kHandshakeSeconds);
  }
  if (next_s >= 1e9) return -1;
  const double left_s = std::max(0.0, next_s - steady_clock().now_s());
  return static_cast<int>(std::min(left_s, 3600.0) * 1e3) + 1;
}

void RendezvousServer::serve() {
  std::unique_lock lock(mutex_);
  while (!stop_) {
    std::vector<pollfd> entries = {{wake_.read_end.get(), POLLIN, 0}, {listener_.get(), POLLIN, 0}};
    std::vector<RendezvousHub::Connection> ids;
    for (const auto& [id, connection] : connections_) {
      const bool writes = !connection.channel->outgoing().empty();
      entries.push_back(
          {connection.socket.get(), static_cast<short>(POLLIN | (writes ? POLLOUT : 0)), 0});
      ids.push_back(id);
    }
    const int timeout_ms = poll_timeout_ms();
    lock.unlock();
    const int ready = ::poll(entries.data(), entries.size(), timeout_ms);
    lock.lock();
    if (ready < 0 && errno != EINTR) break;
    if (stop_) break;
    if (ready > 0 && entries[0].revents != 0) wake_.drain();
    for (size_t i = 0; ready > 0 && i < ids.size(); ++i) {
      Connection& connection = connections_.at(ids[i]);
      if ((entries[i + 2].revents & (POLLIN | POLLHUP | POLLERR)) != 0)
        read_from(ids[i], connection);
      if ((entries[i + 2].revents & POLLOUT) != 0) write_to(connection);
    }
    if (ready > 0 && entries[1].revents != 0) accept_all();
    if (steady_clock().now_s() >= start_s_ + timeout_s_) hub_.time_is_over();
    deliver();
    close_broken();
    changed_.notify_all();
  }
  // Last words, as far as they go without waiting.
  for (auto& [id, connection] : connections_) write_to(connection);
  connections_.clear();
  listener_.reset();
}

void RendezvousServer::accept_all() {
  while (Descriptor socket = accept_from(listener_)) {
    // A flood of strangers pushes out its own oldest.
    size_t strangers = 0;
    Connection* oldest = nullptr;
    for (auto& [id, connection] : connections_) {
      if (connection.channel->open() || connection.broken) continue;
      ++strangers;
      if (oldest == nullptr || connection.since_s < oldest->since_s) oldest = &connection;
    }
    if (strangers >= kMaxStrangers) oldest->broken = true;
    Connection connection;
    connection.socket = std::move(socket);
    connection.channel = std::make_unique<Channel>(Channel::End::kServer, token_, random_bytes(32));
    connection.since_s = steady_clock().now_s();
    write_to(connection);
    connections_.emplace(next_++, std::move(connection));
  }
}

void RendezvousServer::read_from(RendezvousHub::Connection id, Connection& connection) {
  if (connection.broken) return;
  std::array<char, 1 << 16> bytes{};
  const ssize_t got = ::recv(connection.socket.get(), bytes.data(), bytes.size(), 0);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (got <= 0) {
    connection.broken = true;
    return;
  }
  try {
    for (const Message& message :
         connection.channel->receive(std::string_view(bytes.data(), static_cast<size_t>(got))))
      hub_.receive(id, message);
  } catch (const Error& error) {
    hub_.turned_away(error.what());
    write_to(connection);
    connection.broken = true;
  }
}

void RendezvousServer::write_to(Connection& connection) {
  std::string& outgoing = connection.channel->outgoing();
  size_t written = 0;
  while (written < outgoing.size() && !connection.broken) {
    const ssize_t count = ::send(connection.socket.get(), outgoing.data() + written,
                                 outgoing.size() - written, MSG_NOSIGNAL);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EAGAIN) break;
    if (count <= 0) {
      connection.broken = true;
    } else {
      written += static_cast<size_t>(count);
    }
  }
  outgoing.erase(0, written);
}

void RendezvousServer::deliver() {
  for (RendezvousHub::Outgoing& outgoing : hub_.take_outgoing()) {
    const auto found = connections_.find(outgoing.to);
    if (found == connections_.end() || found->second.broken) continue;
    found->second.channel->send(outgoing.message);
  }
  for (auto& [id, connection] : connections_) {
    write_to(connection);
    if (connection.channel->outgoing().size() > kMaxOutgoingBytes) connection.broken = true;
  }
}

void RendezvousServer::close_broken() {
  const double now_s = steady_clock().now_s();
  bool again = true;
  while (again) {
    again = false;
    for (auto it = connections_.begin(); it != connections_.end();) {
      Connection& connection = it->second;
      if (!connection.channel->open() && now_s >= connection.since_s + kHandshakeSeconds)
        connection.broken = true;
      if (!connection.broken) {
        ++it;
        continue;
      }
      const RendezvousHub::Connection id = it->first;
      it = connections_.erase(it);
      hub_.closed(id);
      again = true;
    }
    // What the losses have to say may find other connections broken.
    if (again) deliver();
  }
}

}  // namespace trireme::comm
