#include "trireme/comm/rendezvous/socket.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <memory>
#include <utility>

#include "trireme/base/error.h"

namespace trireme::comm {

namespace {

// A machine that died or cannot be reached is noticed after 1 + 3 x 1 s, also where nothing is being sent.
constexpr int kKeepaliveIdle = 1;
constexpr int kKeepaliveInterval = 1;
constexpr int kKeepaliveProbes = 3;
constexpr int kUserTimeoutMs = 4000;

void set_option(int socket, int level, int name, int value) {
  ::setsockopt(socket, level, name, &value, sizeof value);
}

void set_connection_options(int socket) {
  set_option(socket, IPPROTO_TCP, TCP_NODELAY, 1);
  set_option(socket, SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option(socket, IPPROTO_TCP, TCP_KEEPIDLE, kKeepaliveIdle);
  set_option(socket, IPPROTO_TCP, TCP_KEEPINTVL, kKeepaliveInterval);
  set_option(socket, IPPROTO_TCP, TCP_KEEPCNT, kKeepaliveProbes);
  set_option(socket, IPPROTO_TCP, TCP_USER_TIMEOUT, kUserTimeoutMs);
}

struct FreeAddresses {
  void operator()(addrinfo* list) const { ::freeaddrinfo(list); }
};
using Addresses = std::unique_ptr<addrinfo, FreeAddresses>;

Addresses look_up(const Endpoint& endpoint, int flags) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int error = ::getaddrinfo(endpoint.address.c_str(), std::to_string(endpoint.port).c_str(),
                                  &hints, &found);
  TRIREME_USER_CHECK(error == 0, kConfig, "write an address or a name that this machine knows",
                     "{}: {}", endpoint.text(), ::gai_strerror(error));
  return Addresses(found);
}

bool is_wildcard(const sockaddr* address) {
  if (address->sa_family == AF_INET) {
    sockaddr_in in{};
    std::memcpy(&in, address, sizeof in);
    return in.sin_addr.s_addr == htonl(INADDR_ANY);
  }
  if (address->sa_family == AF_INET6) {
    sockaddr_in6 in{};
    std::memcpy(&in, address, sizeof in);
    return IN6_IS_ADDR_UNSPECIFIED(&in.sin6_addr);
  }
  return false;
}

}  // namespace

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  if (this != &other) {
    reset();
    value_ = other.release();
  }
  return *this;
}

int Descriptor::release() {
  return std::exchange(value_, -1);
}

void Descriptor::reset() {
  if (value_ >= 0) ::close(value_);
  value_ = -1;
}

std::string Endpoint::text() const {
  const bool colons = address.find(':') != std::string::npos;
  return colons ? fmt::format("[{}]:{}", address, port) : fmt::format("{}:{}", address, port);
}

Endpoint parse_endpoint(const std::string& text, const std::string& origin) {
  Endpoint endpoint;
  const size_t colon = text.rfind(':');
  endpoint.address = text.substr(0, colon);
  if (endpoint.address.size() >= 2 && endpoint.address.front() == '[' &&
      endpoint.address.back() == ']')
    endpoint.address = endpoint.address.substr(1, endpoint.address.size() - 2);
  bool good = colon != std::string::npos && !endpoint.address.empty();
  if (good) {
    const char* end = text.data() + text.size();
    const auto [rest, error] = std::from_chars(text.data() + colon + 1, end, endpoint.port);
    good = error == std::errc() && rest == end && endpoint.port >= 1 && endpoint.port <= 65535;
  }
  TRIREME_USER_CHECK(good, kConfig, "write HOST:PORT, such as 10.0.0.1:29500", "{} {}: no address",
                     origin, text);
  return endpoint;
}

Descriptor listen_on(const Endpoint& endpoint) {
  const Addresses addresses = look_up(endpoint, AI_PASSIVE);
  int error = 0;
  for (const addrinfo* info = addresses.get(); info != nullptr; info = info->ai_next) {
    TRIREME_USER_CHECK(
        !is_wildcard(info->ai_addr), kConfig,
        "name the interface that the other ranks reach, such as 127.0.0.1",
        "{} means all interfaces of this machine: nobody outside the run shall reach "
        "it",
        endpoint.text());
    Descriptor socket(::socket(info->ai_family, info->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK,
                               info->ai_protocol));
    if (socket) {
      // The port of a run that just ended can be had again.
      set_option(socket.get(), SOL_SOCKET, SO_REUSEADDR, 1);
      if (::bind(socket.get(), info->ai_addr, info->ai_addrlen) == 0 &&
          ::listen(socket.get(), SOMAXCONN) == 0)
        return socket;
    }
    error = errno;
  }
  TRIREME_USER_CHECK(error != EADDRINUSE, kConfig, "choose another port, or end what uses it",
                     "cannot listen on {}: the port is taken", endpoint.text());
  TRIREME_USER_CHECK(
      error != EADDRNOTAVAIL, kConfig, "name the machine of rank 0, by an address of its own",
      "cannot listen on {}: no interface of this machine has that address", endpoint.text());
  throw Error(ErrorCode::kConfig,
              fmt::format("cannot listen on {}: {}", endpoint.text(), std::strerror(error)),
              "choose another address or port");
}

Descriptor inherited_listener(int descriptor) {
  int listening = 0;
  socklen_t size = sizeof listening;
  const bool good =
      ::getsockopt(descriptor, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) == 0 && listening != 0;
  TRIREME_USER_CHECK(good, kConfig, "unset it: trireme launch sets it for rank 0",
                     "TRIREME_LISTEN_FD = {} is no listening socket", descriptor);
  ::fcntl(descriptor, F_SETFD, FD_CLOEXEC);
  ::fcntl(descriptor, F_SETFL, ::fcntl(descriptor, F_GETFL) | O_NONBLOCK);
  return Descriptor(descriptor);
}

Endpoint local_endpoint(const Descriptor& socket) {
  sockaddr_storage storage{};
  socklen_t size = sizeof storage;
  std::array<char, NI_MAXHOST> host{};
  std::array<char, NI_MAXSERV> port{};
  auto* address = reinterpret_cast<sockaddr*>(&storage);
  TRIREME_CHECK(::getsockname(socket.get(), address, &size) == 0 &&
                    ::getnameinfo(address, size, host.data(), host.size(), port.data(), port.size(),
                                  NI_NUMERICHOST | NI_NUMERICSERV) == 0,
                "a socket without an address");
  return {host.data(), std::stoi(port.data())};
}

Descriptor connect_to(const Endpoint& endpoint, double timeout_s, std::string& why) {
  const Addresses addresses = look_up(endpoint, 0);
  for (const addrinfo* info = addresses.get(); info != nullptr; info = info->ai_next) {
    Descriptor socket(::socket(info->ai_family, info->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK,
                               info->ai_protocol));
    if (!socket) {
      why = std::strerror(errno);
      continue;
    }
    set_connection_options(socket.get());
    int error = ::connect(socket.get(), info->ai_addr, info->ai_addrlen) == 0 ? 0 : errno;
    if (error == EINPROGRESS) {
      pollfd entry = {socket.get(), POLLOUT, 0};
      const int ready = ::poll(&entry, 1, static_cast<int>(timeout_s * 1e3) + 1);
      socklen_t size = sizeof error;
      if (ready <= 0 || ::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error, &size) != 0)
        error = ETIMEDOUT;
    }
    if (error == 0) {
      // A port that nobody listens on can be connected to itself, when the system gives it to the connecting socket.
      const Endpoint own = local_endpoint(socket);
      if (own.port != endpoint.port) return socket;
      error = ECONNREFUSED;
    }
    why = std::strerror(error);
  }
  return {};
}

Descriptor accept_from(const Descriptor& listener) {
  Descriptor socket(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (socket) set_connection_options(socket.get());
  return socket;
}

WakePipe::WakePipe() {
  std::array<int, 2> ends{};
  TRIREME_USER_CHECK(::pipe2(ends.data(), O_CLOEXEC | O_NONBLOCK) == 0, kDevice,
                     "raise the limit of open files (ulimit -n)", "no pipe: {}",
                     std::strerror(errno));
  read_end = Descriptor(ends[0]);
  write_end = Descriptor(ends[1]);
}

void WakePipe::wake() const {
  // A full pipe wakes as well.
  [[maybe_unused]] const ssize_t written = ::write(write_end.get(), "", 1);
}

void WakePipe::drain() const {
  std::array<char, 64> bytes{};
  while (::read(read_end.get(), bytes.data(), bytes.size()) > 0) {
  }
}

std::thread start_thread(std::function<void()> body) {
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread thread(std::move(body));
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return thread;
}

}  // namespace trireme::comm
