// Launchers of several machines meet, so that each knows its number, the machines, and where the ranks meet.
#pragma once

#include <string>
#include <vector>

namespace trireme::resilience {

struct NodesOptions {
  int num_nodes = 1;
  int node =
      -1;  ///< this machine's number; -1: 0 for the machine that has `rdzv`, the others in the order of their arrival
  std::string rdzv;   ///< HOST:PORT, an address of machine 0
  std::string token;  ///< of the run, at least 16 characters
  int num_ranks = 1;  ///< of this machine; all must say the same
  double timeout_s = 300;
};

struct NodesPlace {
  int node = 0;
  std::vector<std::string> hosts;  ///< names of the machines
  std::string address;             ///< where the ranks meet
  int port = 0;
  /// At machine 0 the socket that listens there; the caller's to close. -1 elsewhere.
  int listener = -1;
};

/// Blocks until all launchers are there. Error{kDevice} that names how many came, Error{kConfig} if they were not started alike.
NodesPlace meet_nodes(const NodesOptions& options);

}  // namespace trireme::resilience
