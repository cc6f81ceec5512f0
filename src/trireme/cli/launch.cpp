#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <memory>

#include "trireme/base/error.h"
#include "trireme/base/secret.h"
#include "trireme/base/suggest.h"
#include "trireme/cli/command.h"
#include "trireme/comm/rendezvous/socket.h"
#include "trireme/comm/transfer.h"
#include "trireme/resilience/launcher.h"
#include "trireme/resilience/nodes.h"

namespace trireme::cli {

namespace {

constexpr int kMaxRanks = 4096;

struct LaunchArguments {
  int nproc = 1;
  int threads = 0;
  int nnodes = 1;
  int node_rank = -1;
  std::string rdzv;
  double rdzv_timeout_s = 300;
  double grace_s = 10;
  std::vector<std::string> command;
};

/// What knows how to be one rank of several.
void check_command(const std::vector<std::string>& command) {
  TRIREME_USER_CHECK(!command.empty(), kConfig, "trireme launch --nproc 2 -- train RUN.toml",
                     "trireme launch: nothing to launch is given");
  const bool bench = command.size() > 1 && command[0] == "bench" && command[1] == "comm";
  if (command[0] == "train" || bench) return;
  const std::string near = nearest_name(command[0], {"train"});
  throw Error(ErrorCode::kConfig,
              fmt::format("trireme launch: '{}' does not run on several ranks", command[0]),
              near.empty() ? "only train does: trireme launch --nproc 2 -- train RUN.toml"
                           : fmt::format("did you mean '{}'?", near));
}

/// The options of launch that the sub-command has as well.
std::vector<std::string> with_global_options(std::vector<std::string> command,
                                             const GlobalOptions& options) {
  const auto add = [&](bool set, const char* name) {
    if (set && std::find(command.begin(), command.end(), name) == command.end())
      command.emplace_back(name);
  };
  add(options.json, "--json");
  add(options.quiet, "--quiet");
  add(options.verbose, "--verbose");
  return command;
}

/// Ranks as threads of this process: the command itself, told so.
int run_threads(std::vector<std::string> command, int threads) {
  TRIREME_USER_CHECK(command[0] == "train", kConfig, "trireme launch --threads 2 -- train RUN.toml",
                     "trireme launch --threads: '{}' does not run on ranks that are threads",
                     command[0]);
  command.insert(command.begin(), "trireme");
  command.emplace_back("--ranks-as-threads=" + std::to_string(threads));
  std::vector<char*> argv;
  for (std::string& argument : command) argv.push_back(argument.data());
  return run(static_cast<int>(argv.size()), argv.data());
}

std::string token_of_the_run(bool several_nodes) {
  const char* given = std::getenv("TRIREME_TOKEN");
  const std::string token = given == nullptr ? "" : given;
  constexpr const char* kHint =
      "on every machine the same: export TRIREME_TOKEN=..., made once by: openssl rand -hex 16";
  TRIREME_USER_CHECK(token.empty() || token.size() >= 16, kConfig, kHint,
                     "TRIREME_TOKEN has {} characters; 16 are the least", token.size());
  TRIREME_USER_CHECK(!token.empty() || !several_nodes, kConfig, kHint,
                     "TRIREME_TOKEN is not set: launchers of several machines prove with it that "
                     "they belong together");
  return token.empty() ? hexadecimal(random_bytes(16)) : token;
}

void run_launch(const LaunchArguments& arguments, const GlobalOptions& options) {
  check_command(arguments.command);
  const std::vector<std::string> command = with_global_options(arguments.command, options);
  if (arguments.threads > 0) {
    TRIREME_USER_CHECK(arguments.nnodes == 1 && arguments.nproc == 1, kConfig,
                       "leave --nproc and --nnodes out, or --threads",
                       "--threads {}: ranks that are threads are all in this process",
                       arguments.threads);
    throw CLI::RuntimeError(run_threads(command, arguments.threads));
  }
  const bool several = arguments.nnodes > 1;
  TRIREME_USER_CHECK(several || (arguments.rdzv.empty() && arguments.node_rank < 0), kConfig,
                     "give --nnodes, or leave --rdzv and --node-rank out",
                     "--rdzv and --node-rank are for several machines, but --nnodes is 1");
  TRIREME_USER_CHECK(!several || !arguments.rdzv.empty(), kConfig,
                     "--rdzv HOST:PORT, an address of the first machine, the same everywhere",
                     "--nnodes {}: where the machines meet is not given", arguments.nnodes);

  resilience::LaunchOptions launch;
  launch.program = std::filesystem::read_symlink("/proc/self/exe");
  launch.arguments = command;
  launch.num_ranks = arguments.nproc;
  launch.num_nodes = arguments.nnodes;
  launch.token = token_of_the_run(several);
  launch.document = std::find(command.begin(), command.end(), "--json") != command.end();
  launch.quiet = options.quiet;
  launch.grace_s = arguments.grace_s;
  comm::Descriptor listener;
  if (several) {
    const resilience::NodesPlace place =
        resilience::meet_nodes({arguments.nnodes, arguments.node_rank, arguments.rdzv, launch.token,
                                arguments.nproc, arguments.rdzv_timeout_s});
    launch.node = place.node;
    launch.hosts = place.hosts;
    launch.address = place.address;
    launch.port = place.port;
    if (place.listener >= 0) listener = comm::Descriptor(place.listener);
  } else {
    // Open from here on, so that nobody else gets the port before rank 0 does.
    listener = comm::listen_on({launch.address, 0});
    launch.port = comm::local_endpoint(listener).port;
    launch.hosts = {comm::this_host()};
  }
  launch.listener = listener ? listener.get() : -1;
  const int status = resilience::launch(launch);
  if (status != 0) throw CLI::RuntimeError(status);
}

}  // namespace

void add_launch(CLI::App& app, GlobalOptions& options) {
  CLI::App* command = app.add_subcommand("launch", "run a command as several ranks");
  auto arguments = std::make_shared<LaunchArguments>();
  command->add_option("--nproc", arguments->nproc, "ranks on this machine, a process each")
      ->check(CLI::Range(1, kMaxRanks))
      ->capture_default_str();
  command->add_option("--threads", arguments->threads, "ranks as threads of this process instead")
      ->check(CLI::Range(1, kMaxRanks));
  command->add_option("--nnodes", arguments->nnodes, "machines; run launch on each, all alike")
      ->check(CLI::Range(1, kMaxRanks))
      ->capture_default_str();
  command->add_option("--rdzv", arguments->rdzv,
                      "HOST:PORT of the first machine, where the launchers meet");
  command
      ->add_option("--node-rank", arguments->node_rank,
                   "number of this machine; else in the order of their arrival")
      ->check(CLI::Range(0, kMaxRanks - 1));
  command
      ->add_option("--rdzv-timeout", arguments->rdzv_timeout_s,
                   "seconds that the machines wait for each other")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command
      ->add_option("--grace", arguments->grace_s,
                   "seconds that the others have to end after a rank failed")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("COMMAND", arguments->command, "after --: train and its arguments")
      ->expected(1, -1);  // with 0, CLI11 gives what follows -- to the program
  add_global_options(*command, options, "trireme launch --nproc 2 -- train run.toml");
  command->callback([arguments, &options] { run_launch(*arguments, options); });
}

}  // namespace trireme::cli
