#include <chrono>
#include <filesystem>
#include <sstream>
#include <system_error>
#include <thread>
#include <utility>

#include "trireme/base/clock.h"
#include "trireme/base/error.h"
#include "trireme/base/secret.h"
#include "trireme/comm/rank_names.h"
#include "trireme/comm/rendezvous.h"
#include "trireme/comm/rendezvous/announcement.h"
#include "trireme/comm/rendezvous/client.h"
#include "trireme/comm/rendezvous/server.h"

namespace trireme::comm {

namespace {

constexpr size_t kMinTokenBytes = 16;
constexpr auto kRetry = std::chrono::milliseconds(20);
constexpr const char* kTokenHint =
    "give all ranks the same one, of 16 characters or more: export TRIREME_TOKEN=$(openssl rand "
    "-hex 16)";

std::string variable(const Environment& environment, const char* name,
                     const std::string& fallback = "") {
  const auto found = environment.find(name);
  return found == environment.end() ? fallback : found->second;
}

/// Removes a file when the meeting is over, however it ends.
struct FileGuard {
  std::string path;
  FileGuard() = default;
  FileGuard(const FileGuard&) = delete;
  FileGuard& operator=(const FileGuard&) = delete;
  ~FileGuard() {
    std::error_code ignored;
    if (!path.empty()) std::filesystem::remove(path, ignored);
  }
};

std::unique_ptr<RendezvousServer> start_server(const MeetingOptions& options, Announcement& own,
                                               FileGuard& guard) {
  const std::string& address = options.bind.empty() ? options.address : options.bind;
  // Where the others learn the port, it is any.
  const int port = options.announcement.empty() && !options.agent_store ? options.port : 0;
  Descriptor listener =
      options.listener >= 0 ? inherited_listener(options.listener) : listen_on({address, port});
  own.endpoint = local_endpoint(listener);
  own.token = options.announcement.empty() ? options.token : hexadecimal(random_bytes(16));
  RendezvousHubOptions hub;
  hub.size = options.size;
  hub.address = own.endpoint.text();
  hub.timeout_s = options.timeout_s;
  hub.expected_hosts = options.expected_hosts;
  auto server = std::make_unique<RendezvousServer>(std::move(listener), own.token, std::move(hub));
  if (!options.announcement.empty()) {
    guard.path = options.announcement;
    write_announcement(options.announcement, own);
  } else if (options.agent_store) {
    announce_in_store({options.address, options.port}, options.job, own.endpoint,
                      options.timeout_s);
  }
  return server;
}

/// Where rank 0 is, as far as is known now; `left_s` is how long it may take to ask.
std::optional<Announcement> find_server(const MeetingOptions& options, double left_s) {
  if (!options.announcement.empty()) return read_announcement(options.announcement);
  if (!options.agent_store) return Announcement{{options.address, options.port}, options.token};
  const std::optional<Endpoint> endpoint =
      ask_store({options.address, options.port}, options.job, left_s);
  if (!endpoint) return std::nullopt;
  return Announcement{*endpoint, options.token};
}

std::string place_text(const MeetingOptions& options) {
  if (!options.announcement.empty()) return "on this machine";
  return "at " + Endpoint{options.address, options.port}.text();
}

/// Tries until it is connected and both ends have proved the token.
ProvedConnection connect(const MeetingOptions& options, const std::optional<Announcement>& own,
                         double deadline_s) {
  std::string why = "it did not say where it is";
  while (true) {
    const double left_s = deadline_s - steady_clock().now_s();
    if (left_s <= 0) break;
    const std::optional<Announcement> target = own ? own : find_server(options, left_s);
    if (target) {
      try {
        ProvedConnection connection = prove(target->endpoint, target->token, left_s, why);
        if (connection.socket) return connection;
      } catch (const Error& error) {
        // What a file says may be of an earlier run; this one's rank 0 will write over it.
        if (options.announcement.empty()) throw;
        why = error.what();
      }
    }
    std::this_thread::sleep_for(kRetry);
  }
  const std::string who =
      options.rank < 0 ? std::string("this machine") : fmt::format("rank {}", options.rank);
  throw Error(ErrorCode::kDevice,
              fmt::format("{} waited {:g} s for rank 0 {}: {}", who, options.timeout_s,
                          place_text(options), why),
              "see what rank 0 says; its address must be reached from here");
}

}  // namespace

MeetingOptions meeting_options(const Placement& placement, const Environment& environment) {
  MeetingOptions options;
  options.rank = placement.rank;
  options.size = placement.size;
  if (placement.size == 1) {
    options.token = hexadecimal(random_bytes(16));
    return options;
  }
  options.token = variable(environment, "TRIREME_TOKEN");
  options.bind = variable(environment, "TRIREME_BIND");
  TRIREME_USER_CHECK(options.token.empty() || options.token.size() >= kMinTokenBytes, kConfig,
                     kTokenHint, "TRIREME_TOKEN has {} characters", options.token.size());
  const bool one_machine = placement.local_size == placement.size;
  const bool address_is_free = !placement.address.empty() && !placement.agent_store;
  options.job = placement.job.empty() ? parent_identity() : placement.job;
  if (one_machine && (options.token.empty() || !address_is_free)) {
    options.token.clear();
    options.announcement = announcement_path(options.job, variable(environment, "XDG_RUNTIME_DIR"),
                                             variable(environment, "TMPDIR", "/tmp"));
  } else {
    TRIREME_USER_CHECK(
        !options.token.empty(), kConfig, kTokenHint,
        "TRIREME_TOKEN is not set: ranks on several machines prove with it that they "
        "belong together");
    options.address = placement.address;
    options.port = placement.port;
    options.agent_store = placement.agent_store;
  }
  if (const std::string fd = variable(environment, "TRIREME_LISTEN_FD");
      !fd.empty() && placement.rank == 0) {
    TRIREME_USER_CHECK(fd.find_first_not_of("0123456789") == std::string::npos && fd.size() < 6,
                       kConfig, "unset it: trireme launch sets it for rank 0",
                       "TRIREME_LISTEN_FD = '{}' is not a number", fd);
    options.listener = std::stoi(fd);
  }
  // One host a machine, each with as many ranks as this one.
  std::istringstream hosts(variable(environment, "TRIREME_HOSTS"));
  for (std::string host; std::getline(hosts, host, ',');) {
    for (int i = 0; i < placement.local_size; ++i) options.expected_hosts.push_back(host);
  }
  return options;
}

std::shared_ptr<Rendezvous> meet(const MeetingOptions& options) {
  TRIREME_CHECK(options.size >= 1 && options.rank >= -1 && options.rank < options.size,
                "rank {} of {} cannot meet", options.rank, options.size);
  const double deadline_s = steady_clock().now_s() + options.timeout_s;
  FileGuard guard;
  std::unique_ptr<RendezvousServer> server;
  std::optional<Announcement> own;
  if (options.rank == 0) {
    own.emplace();
    server = start_server(options, *own, guard);
  }
  ProvedConnection connection = connect(options, own, deadline_s);
  return join(std::move(connection), std::move(server), options);
}

}  // namespace trireme::comm
