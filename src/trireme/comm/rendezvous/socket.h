// TCP sockets of the rendezvous: one address, never all interfaces; a dead peer is noticed in seconds.
#pragma once

#include <functional>
#include <string>
#include <thread>

namespace trireme::comm {

/// An open file descriptor; closes it.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int value) : value_(value) {}
  Descriptor(Descriptor&& other) noexcept : value_(other.release()) {}
  Descriptor& operator=(Descriptor&& other) noexcept;
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() { reset(); }
  int get() const { return value_; }
  explicit operator bool() const { return value_ >= 0; }
  int release();
  void reset();

 private:
  int value_ = -1;
};

struct Endpoint {
  std::string address;
  int port = 0;
  /// "127.0.0.1:29511", "[::1]:29511"
  std::string text() const;
};

/// Reads Endpoint::text()'s form, with a name or an address. Error{kConfig} that begins with `origin`.
Endpoint parse_endpoint(const std::string& text, const std::string& origin);

/// Listens on one interface's address (or a name of it); port 0: any free one. Not inherited by other programs. Error{kConfig} if
/// the address stands for all interfaces or is none of this machine's, or the port is taken.
Descriptor listen_on(const Endpoint& endpoint);

/// The listening socket that this process was started with. Error{kConfig} if `descriptor` is none.
Descriptor inherited_listener(int descriptor);

/// Where a socket is bound.
Endpoint local_endpoint(const Descriptor& socket);

/// One try to connect, of at most `timeout_s`. Empty with the reason in `why` if nobody answers. Error{kConfig} for a name that
/// does not exist. The socket does not block.
Descriptor connect_to(const Endpoint& endpoint, double timeout_s, std::string& why);

/// Takes a connection; empty if there is none, or the peer is gone again. The socket does not block.
Descriptor accept_from(const Descriptor& listener);

/// Two ends of a pipe that wakes a thread in poll().
struct WakePipe {
  WakePipe();
  void wake() const;
  void drain() const;
  Descriptor read_end;
  Descriptor write_end;
};

/// A thread that gets none of the process's signals.
std::thread start_thread(std::function<void()> body);

}  // namespace trireme::comm
