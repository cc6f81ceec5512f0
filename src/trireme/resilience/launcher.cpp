#include "trireme/resilience/launcher.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>

#include "trireme/base/clock.h"
#include "trireme/base/error.h"
#include "trireme/base/thread_pool.h"
#include "trireme/resilience/line_prefixer.h"

extern char** environ;

namespace trireme::resilience {

namespace {

constexpr int kCommunication = static_cast<int>(ErrorCode::kDevice);
constexpr int kInterrupted = static_cast<int>(ErrorCode::kInterrupted);
constexpr int kExecFailed = 127;
constexpr double kNever = std::numeric_limits<double>::infinity();

void close_if_open(int& descriptor) {
  if (descriptor >= 0) ::close(descriptor);
  descriptor = -1;
}

void write_all(int descriptor, const std::string& bytes) {
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t count = ::write(descriptor, bytes.data() + done, bytes.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EAGAIN) {  // somebody made the terminal's or pipe's end so
      pollfd entry = {descriptor, POLLOUT, 0};
      ::poll(&entry, 1, -1);
      continue;
    }
    if (count <= 0) return;  // nobody reads it; the ranks' work goes on
    done += static_cast<size_t>(count);
  }
}

/// One stream of one rank: from its pipe into ours.
struct Stream {
  int from = -1;
  int to = -1;
  std::optional<LinePrefixer> prefixer;  // none: bytes as they are

  void take(std::string_view bytes) {
    write_all(to, prefixer ? prefixer->take(bytes) : std::string(bytes));
  }
  /// False at its end, and if there is nothing now.
  bool read_once() {
    std::array<char, 1 << 16> bytes{};
    const ssize_t got = ::read(from, bytes.data(), bytes.size());
    if (got > 0) {
      take({bytes.data(), static_cast<size_t>(got)});
      return true;
    }
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return false;
    finish();
    return false;
  }
  void finish() {
    if (from >= 0 && prefixer) write_all(to, prefixer->finish());
    close_if_open(from);
  }
};

struct Child {
  int rank = 0;
  pid_t pid = -1;  // -1: has ended
  bool signalled = false;
  Stream out;
  Stream err;
};

/// SIGINT, SIGTERM and SIGCHLD as a descriptor, while it lives.
class Signals {
 public:
  Signals() {
    sigemptyset(&set_);
    for (const int number : {SIGINT, SIGTERM, SIGCHLD}) sigaddset(&set_, number);
    ::signal(
        SIGCHLD,
        SIG_DFL);  // whoever started us may have had it ignored, and then nobody can be waited for
    ::pthread_sigmask(SIG_BLOCK, &set_, &before_);
    descriptor_ = ::signalfd(-1, &set_, SFD_CLOEXEC | SFD_NONBLOCK);
    TRIREME_CHECK(descriptor_ >= 0, "no signalfd: {}", std::strerror(errno));
  }
  Signals(const Signals&) = delete;
  Signals& operator=(const Signals&) = delete;
  ~Signals() {
    ::close(descriptor_);
    ::pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }
  int descriptor() const { return descriptor_; }
  const sigset_t& before() const { return before_; }
  /// SIGINT and SIGTERM that came since the last call.
  std::vector<int> take() const {
    std::vector<int> numbers;
    signalfd_siginfo info{};
    while (::read(descriptor_, &info, sizeof info) == sizeof info) {
      if (info.ssi_signo != SIGCHLD) numbers.push_back(static_cast<int>(info.ssi_signo));
    }
    return numbers;
  }

 private:
  sigset_t set_{};
  sigset_t before_{};
  int descriptor_ = -1;
};

/// What the child's side needs, made before fork(): after it only a few calls are safe.
struct Command {
  std::vector<std::string> texts;
  std::vector<char*> arguments;
  std::vector<char*> environment;
};

std::unique_ptr<Command> make_command(const LaunchOptions& options, int local_rank) {
  auto command = std::make_unique<Command>();
  const auto variables = rank_variables(options, local_rank, available_cpus(),
                                        std::getenv("OMP_NUM_THREADS") != nullptr);
  std::vector<std::string>& texts = command->texts;
  texts.push_back(options.program);
  texts.insert(texts.end(), options.arguments.begin(), options.arguments.end());
  const size_t num_arguments = texts.size();
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    const std::string_view name = text.substr(0, text.find('='));
    // What another launcher said about us is not for the ranks.
    const bool ours = name == "TRIREME_LISTEN_FD" ||
                      std::any_of(variables.begin(), variables.end(),
                                  [&](const auto& variable) { return variable.first == name; });
    if (!ours) texts.emplace_back(text);
  }
  for (const auto& [name, value] : variables) texts.push_back(name + "=" + value);
  for (size_t i = 0; i < texts.size(); ++i)
    (i < num_arguments ? command->arguments : command->environment).push_back(texts[i].data());
  command->arguments.push_back(nullptr);
  command->environment.push_back(nullptr);
  return command;
}

/// In the child. Does not return.
[[noreturn]] void become(const Command& command, int out, int err, int listener, pid_t parent,
                         const sigset_t& mask) {
  // Its own group: what is typed at the terminal comes to the launcher alone, which passes it on once.
  ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(kExecFailed);  // the launcher ended before the line above
  const int null = ::open("/dev/null", O_RDONLY);
  if (null >= 0) ::dup2(null, 0);
  ::dup2(out, 1);
  ::dup2(err, 2);
  if (listener >= 0) ::fcntl(listener, F_SETFD, 0);
  ::signal(SIGPIPE, SIG_DFL);
  ::pthread_sigmask(SIG_SETMASK, &mask, nullptr);
  ::execve(command.arguments[0], command.arguments.data(), command.environment.data());
  const std::array<const char*, 5> words = {"error: cannot run ", command.arguments[0], ": ",
                                            std::strerror(errno), "\n"};
  for (const char* text : words) {
    [[maybe_unused]] const ssize_t written = ::write(2, text, std::strlen(text));
  }
  ::_exit(kExecFailed);
}

/// SIGKILL goes to what the rank has started as well; other signals are the rank's to handle.
void send_signal(const Child& child, int number) {
  ::kill(number == SIGKILL ? -child.pid : child.pid, number);
}

class Launch {
 public:
  explicit Launch(const LaunchOptions& options) : options_(options) {}

  ~Launch() {
    for (Child& child : children_) {
      if (child.pid > 0) {
        send_signal(child, SIGKILL);
        ::waitpid(child.pid, nullptr, 0);
      }
      close_if_open(child.out.from);
      close_if_open(child.err.from);
    }
  }
  Launch(const Launch&) = delete;
  Launch& operator=(const Launch&) = delete;

  int run() {
    // Room for all: pointers into it stay.
    children_.reserve(static_cast<size_t>(options_.num_ranks));
    for (int local_rank = 0; local_rank < options_.num_ranks; ++local_rank) start(local_rank);
    while (num_running() > 0) {
      wait_for_something();
      for (const int number : signals_.take()) pass_on(number);
      reap();
      check_deadlines();
    }
    // A rank's own children may still hold the pipes; what is in them now is all that is waited for.
    for (Child& child : children_) {
      for (Stream* stream : {&child.out, &child.err}) {
        while (stream->from >= 0 && stream->read_once()) {
        }
        stream->finish();
      }
    }
    return report();
  }

 private:
  void say(const std::string& line) const { write_all(options_.err, "launch: " + line + "\n"); }

  void start(int local_rank) {
    const std::unique_ptr<Command> command = make_command(options_, local_rank);
    Child child;
    child.rank = options_.node * options_.num_ranks + local_rank;
    std::array<int, 2> out{-1, -1};
    std::array<int, 2> err{-1, -1};
    const bool piped = ::pipe2(out.data(), O_CLOEXEC) == 0 && ::pipe2(err.data(), O_CLOEXEC) == 0;
    const pid_t parent = ::getpid();
    const pid_t pid = piped ? ::fork() : -1;
    if (pid == 0) {
      become(*command, out[1], err[1], child.rank == 0 ? options_.listener : -1, parent,
             signals_.before());
    }
    const int error = errno;
    close_if_open(out[1]);
    close_if_open(err[1]);
    if (pid < 0) {
      close_if_open(out[0]);
      close_if_open(err[0]);
      throw Error(ErrorCode::kDevice,
                  fmt::format("cannot start rank {}: {}", child.rank, std::strerror(error)),
                  "start fewer ranks (--nproc), or raise the limits of processes and open files "
                  "(ulimit -u, -n)");
    }
    // Whoever comes first; from here on the group can be signalled.
    ::setpgid(pid, pid);
    for (const int end : {out[0], err[0]}) ::fcntl(end, F_SETFL, O_NONBLOCK);
    child.pid = pid;
    const std::string prefix = fmt::format("[{}] ", child.rank);
    child.err = {err[0], options_.err, LinePrefixer(prefix)};
    if (!options_.document) {
      child.out = {out[0], options_.out, LinePrefixer(prefix)};
    } else if (child.rank == 0) {
      child.out = {out[0], options_.out, std::nullopt};
    } else {
      child.out = {out[0], options_.err, LinePrefixer(prefix)};
    }
    children_.push_back(std::move(child));
  }

  int num_running() const {
    return static_cast<int>(std::count_if(children_.begin(), children_.end(),
                                          [](const Child& child) { return child.pid > 0; }));
  }

  void wait_for_something() {
    std::vector<pollfd> entries = {{signals_.descriptor(), POLLIN, 0}};
    std::vector<Stream*> streams;
    for (Child& child : children_) {
      for (Stream* stream : {&child.out, &child.err}) {
        if (stream->from < 0) continue;
        entries.push_back({stream->from, POLLIN, 0});
        streams.push_back(stream);
      }
    }
    int timeout_ms = -1;
    if (deadline_s_ != kNever) {
      const double left_s = std::max(0.0, deadline_s_ - steady_clock().now_s());
      timeout_ms = static_cast<int>(std::min(left_s, 3600.0) * 1e3) + 1;
    }
    if (::poll(entries.data(), entries.size(), timeout_ms) <= 0) return;
    for (size_t i = 0; i < streams.size(); ++i) {
      if (entries[i + 1].revents != 0) streams[i]->read_once();
    }
  }

  void signal_all(int number) {
    for (Child& child : children_) {
      if (child.pid > 0) send_signal(child, number);
    }
  }

  void pass_on(int number) {
    if (interrupted_) {
      say(fmt::format("interrupted twice: the ranks that run ({}) are killed", num_running()));
      signal_all(SIGKILL);
      return;
    }
    interrupted_ = true;
    if (!options_.quiet) {
      say(fmt::format("{} is passed on to the ranks that run ({}); a second one kills them",
                      number == SIGINT ? "SIGINT" : "SIGTERM", num_running()));
    }
    signal_all(number);
  }

  void reap() {
    ++moment_;
    for (Child& child : children_) {
      if (child.pid <= 0) continue;
      int state = 0;
      const pid_t ended = ::waitpid(child.pid, &state, WNOHANG);
      if (ended != child.pid && !(ended < 0 && errno == ECHILD)) continue;
      child.pid = -1;
      const int status = ended < 0          ? static_cast<int>(ErrorCode::kInternal)
                         : WIFEXITED(state) ? WEXITSTATUS(state)
                                            : 128 + WTERMSIG(state);
      ends_.push_back({child.rank, status, moment_, child.signalled});
      // Its last lines go before what is said about it.
      while (child.out.from >= 0 && child.out.read_once()) {
      }
      while (child.err.from >= 0 && child.err.read_once()) {
      }
      const bool failed = status != 0 && !(interrupted_ && status == kInterrupted);
      if (failed && deadline_s_ == kNever && num_running() > 0) {
        deadline_s_ = steady_clock().now_s() + options_.grace_s;
        failed_rank_ = child.rank;
      }
    }
  }

  void check_deadlines() {
    if (steady_clock().now_s() < deadline_s_ || num_running() == 0) return;
    const int number = terminating_ ? SIGKILL : SIGTERM;
    for (Child& child : children_) {
      if (child.pid <= 0) continue;
      if (!terminating_) {
        say(fmt::format("rank {} has not ended {:g} s after rank {} failed: it is stopped",
                        child.rank, options_.grace_s, failed_rank_));
      }
      child.signalled = true;
      send_signal(child, number);
    }
    deadline_s_ = terminating_ ? kNever : steady_clock().now_s() + options_.kill_s;
    terminating_ = true;
  }

  int report() const {
    int rank = -1;
    const int status = judge(ends_, interrupted_, &rank);
    if (rank >= 0 && status != kInterrupted) {
      say(fmt::format("rank {} failed with {} {}", rank, status > 128 ? "signal" : "exit status",
                      status > 128 ? status - 128 : status));
    }
    return status;
  }

  const LaunchOptions& options_;
  Signals signals_;
  std::vector<Child> children_;
  std::vector<RankEnd> ends_;
  int moment_ = 0;
  bool interrupted_ = false;
  double deadline_s_ = kNever;  // when the ranks that still run are stopped
  bool terminating_ = false;    // they had their SIGTERM
  int failed_rank_ = -1;
};

}  // namespace

std::vector<std::pair<std::string, std::string>> rank_variables(const LaunchOptions& options,
                                                                int local_rank, int num_cores,
                                                                bool has_omp) {
  const int rank = options.node * options.num_ranks + local_rank;
  std::vector<std::pair<std::string, std::string>> variables = {
      {"RANK", std::to_string(rank)},
      {"WORLD_SIZE", std::to_string(options.num_nodes * options.num_ranks)},
      {"LOCAL_RANK", std::to_string(local_rank)},
      {"LOCAL_WORLD_SIZE", std::to_string(options.num_ranks)},
      {"GROUP_RANK", std::to_string(options.node)},
      {"GROUP_WORLD_SIZE", std::to_string(options.num_nodes)},
      {"MASTER_ADDR", options.address},
      {"MASTER_PORT", std::to_string(options.port)},
      {"TORCHELASTIC_USE_AGENT_STORE", "False"},
      {"TRIREME_TOKEN", options.token},
  };
  if (rank == 0 && options.listener >= 0)
    variables.emplace_back("TRIREME_LISTEN_FD", std::to_string(options.listener));
  std::string hosts;
  for (const std::string& host : options.hosts) hosts += (hosts.empty() ? "" : ",") + host;
  if (!hosts.empty()) variables.emplace_back("TRIREME_HOSTS", hosts);
  if (options.num_threads > 0 || !has_omp) {
    const int share = std::max(1, num_cores / options.num_ranks);
    variables.emplace_back("OMP_NUM_THREADS",
                           std::to_string(options.num_threads > 0 ? options.num_threads : share));
  }
  return variables;
}

int judge(const std::vector<RankEnd>& ends, bool interrupted, int* failed_rank) {
  const RankEnd* first = nullptr;
  bool ended_by_signal = false;
  for (const RankEnd& end : ends) {
    if (end.status == 0) continue;
    if (interrupted && (end.status == kInterrupted || end.status > 128)) {
      ended_by_signal = true;
      continue;
    }
    if (end.ended_by_us) continue;
    // Who says why is slower than those it told, who lost a peer. Who was killed may have been so for being left behind.
    const bool better = first != nullptr && first->status == kCommunication &&
                        end.status != kCommunication &&
                        (end.moment == first->moment || end.status < 128);
    if (first == nullptr || better) first = &end;
  }
  if (failed_rank != nullptr) *failed_rank = first == nullptr ? -1 : first->rank;
  // After an interruption the ranks that lost their peers by it are no failure.
  if (ended_by_signal && (first == nullptr || first->status == kCommunication)) {
    if (failed_rank != nullptr) *failed_rank = -1;
    return kInterrupted;
  }
  return first == nullptr ? 0 : first->status;
}

int launch(const LaunchOptions& options) {
  TRIREME_CHECK(options.num_ranks >= 1 && options.node >= 0 && options.node < options.num_nodes,
                "{} ranks on machine {} of {}", options.num_ranks, options.node, options.num_nodes);
  // Pipes must not get the numbers of standard streams that are closed.
  int null = ::open("/dev/null", O_RDWR);
  while (null >= 0 && null <= 2) null = ::dup(null);
  if (null > 2) ::close(null);
  return Launch(options).run();
}

}  // namespace trireme::resilience
