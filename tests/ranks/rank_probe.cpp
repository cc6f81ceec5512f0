// One rank of several that does nothing but meet the others:
//
//   rank_probe meet               all meet, add their ranks up, and say what they found
//   rank_probe die RANK           the same, then RANK is killed; the others say who is gone and end with status 4
//   rank_probe abort RANK         the same, but RANK stops the run with a reason
//   rank_probe hang RANK          all but RANK end with status 3; RANK never does
//   rank_probe launch N MODE ...  starts N of itself as `trireme launch` does
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <future>
#include <string>
#include <vector>

#include "trireme/base/error.h"
#include "trireme/base/secret.h"
#include "trireme/comm/rendezvous.h"
#include "trireme/comm/rendezvous/socket.h"
#include "trireme/comm/transfer.h"
#include "trireme/resilience/launcher.h"

namespace {

using namespace trireme;

int start_several(const std::vector<std::string>& arguments) {
  resilience::LaunchOptions options;
  options.program = std::filesystem::read_symlink("/proc/self/exe");
  options.num_ranks = std::stoi(arguments.at(1));
  options.arguments = {arguments.begin() + 2, arguments.end()};
  options.token = hexadecimal(random_bytes(16));
  options.grace_s = 5;
  options.kill_s = 1;
  const comm::Descriptor listener = comm::listen_on({options.address, 0});
  options.port = comm::local_endpoint(listener).port;
  options.listener = listener.get();
  options.hosts = {comm::this_host()};
  return resilience::launch(options);
}

int be_a_rank(const std::vector<std::string>& arguments) {
  const std::string& mode = arguments.at(0);
  const comm::Environment environment = comm::process_environment();
  const comm::Placement placement = comm::read_placement({}, environment);
  comm::MeetingOptions options = comm::meeting_options(placement, environment);
  if (const char* timeout = std::getenv("PROBE_TIMEOUT_S")) options.timeout_s = std::atof(timeout);
  if (std::getenv("PROBE_ABSENT") != nullptr &&
      std::getenv("PROBE_ABSENT") == std::to_string(placement.rank))
    return 0;
  std::promise<comm::PeerLoss> lost;
  bool told = false;
  const std::shared_ptr<comm::Rendezvous> rendezvous = comm::meet(options);
  rendezvous->on_peer_lost([&](const comm::PeerLoss& loss) {
    if (!told) lost.set_value(loss);
    told = true;
  });
  const std::string own = std::to_string(rendezvous->rank());
  rendezvous->set("rank/" + own, own);
  const bool chosen = mode != "meet" && arguments.at(1) == own;
  if (mode == "hang" && chosen) {
    ::signal(SIGTERM, SIG_IGN);
    while (true) ::pause();
  }
  int sum = 0;
  for (int rank = 0; rank < rendezvous->size(); ++rank)
    sum += std::stoi(rendezvous->get(fmt::format("rank/{}", rank), options.timeout_s));
  fmt::print("rank {} of {}, local {}: the ranks add up to {}\n", own, rendezvous->size(),
             placement.local_rank, sum);
  std::fflush(stdout);
  if (mode == "meet") {
    rendezvous->leave(options.timeout_s);
    return 0;
  }
  if (mode == "hang") ::_exit(3);
  if (chosen) {
    if (mode == "die") ::raise(SIGKILL);
    rendezvous->abort("the loss is nan");
    rendezvous->leave(options.timeout_s);
    return 5;
  }
  const comm::PeerLoss loss = lost.get_future().get();
  throw Error(ErrorCode::kDevice, comm::describe(loss));
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  try {
    return arguments.at(0) == "launch" ? start_several(arguments) : be_a_rank(arguments);
  } catch (const Error& error) {
    fmt::print(stderr, "error: {}\n", error.what());
    return static_cast<int>(error.code());
  }
}
