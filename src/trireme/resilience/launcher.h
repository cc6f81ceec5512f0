// Ranks as processes of this machine: starts them, carries their output, passes signals on, and ends with one exit status.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace trireme::resilience {

struct LaunchOptions {
  std::string program;  ///< its path
  std::vector<std::string> arguments;
  int num_ranks = 1;                  ///< processes on this machine
  int node = 0;                       ///< this machine's number
  int num_nodes = 1;                  ///< machines, each with num_ranks
  std::string address = "127.0.0.1";  ///< where the ranks meet
  int port = 0;
  int listener = -1;  ///< a listening socket there, which rank 0 inherits; stays the caller's
  std::string token;  ///< of the run
  std::vector<std::string> hosts;  ///< machines' names, for messages
  int num_threads = 0;             ///< of each rank; 0: its share of the cores
  /// Rank 0's standard output comes through as it is, the others' goes to standard error: for commands that print one document.
  bool document = false;
  bool quiet = false;   ///< without notes; failures are said all the same
  double grace_s = 10;  ///< after a failure the other ranks have so long to end themselves
  double kill_s = 5;    ///< and after SIGTERM so long before SIGKILL
  int out = 1;          ///< descriptors that lines are written to
  int err = 2;
};

/// The variables of one rank of this machine, beside those that this process has itself: those of torchrun, and TRIREME_TOKEN,
/// TRIREME_LISTEN_FD (rank 0), TRIREME_HOSTS, OMP_NUM_THREADS (`has_omp`: the user has set it, and it stays as it is). Pure.
std::vector<std::pair<std::string, std::string>> rank_variables(const LaunchOptions& options,
                                                                int local_rank, int num_cores,
                                                                bool has_omp);

/// How one rank ended.
struct RankEnd {
  int rank = 0;
  int status = 0;  ///< exit status, or 128 + the signal's number
  int moment = 0;  ///< ends that were noticed together have the same
  bool ended_by_us =
      false;  ///< after SIGTERM or SIGKILL of the launcher, for another rank had failed
};

/// What the launcher ends with, from the ends in the order in which they were noticed: 0 if all are 0; else the first failing rank's
/// status. The one that failed for a reason of its own counts, not those that lost their peer (status 4); of one that a signal ended only where they were
/// noticed together. If a
/// signal had been passed on, ranks that ended by it count as 130. `failed_rank` is the rank whose status it is, or -1. Pure.
int judge(const std::vector<RankEnd>& ends, bool interrupted, int* failed_rank = nullptr);

/// Starts the ranks and waits until all have ended. SIGINT and SIGTERM to this process are passed on, once; the second one kills. Ranks do
/// not outlive this process, however it ends, nor get what is typed at its terminal. Blocks; only one thread of the process
/// should run. Returns the exit status. Error{kDevice} if a process cannot be started.
int launch(const LaunchOptions& options);

}  // namespace trireme::resilience
