// How ranks talk over TCP.
#pragma once

#include <string>

namespace trireme::comm {

struct GlooOptions {
  /// Of this machine; data sockets listen on it and nowhere else. A host name or an address; or an interface's name, which
  /// outranks it.
  std::string address = "127.0.0.1";
  std::string interface;
  /// Who waits for longer ends the run.
  double timeout_s = 60.0;
  /// How often a rank looks whether another one gave up.
  double watch_s = 0.2;
};

}  // namespace trireme::comm
