#include "trireme/resilience/nodes.h"

#include <memory>

#include "trireme/base/error.h"
#include "trireme/comm/rendezvous.h"
#include "trireme/comm/rendezvous/socket.h"

namespace trireme::resilience {

namespace {

/// The socket that launchers meet at, on machine 0; empty if this is another one.
comm::Descriptor listen_if_first(const NodesOptions& options, const comm::Endpoint& endpoint) {
  if (options.node > 0) return {};
  try {
    return comm::listen_on(endpoint);
  } catch (const Error&) {
    // Not our address, or another launcher of this machine was first: then that one is machine 0.
    if (options.node == 0) throw;
    return {};
  }
}

}  // namespace

NodesPlace meet_nodes(const NodesOptions& options) {
  TRIREME_USER_CHECK(options.node >= -1 && options.node < options.num_nodes, kConfig,
                     "machines are numbered from 0", "--node-rank {} with --nnodes {}",
                     options.node, options.num_nodes);
  const comm::Endpoint endpoint = comm::parse_endpoint(options.rdzv, "--rdzv");
  comm::Descriptor listener = listen_if_first(options, endpoint);
  const bool first = static_cast<bool>(listener);
  comm::MeetingOptions meeting;
  meeting.rank = first ? 0 : options.node;
  meeting.size = options.num_nodes;
  meeting.address = endpoint.address;
  meeting.port = endpoint.port;
  meeting.token = options.token;
  meeting.timeout_s = options.timeout_s;
  if (first) meeting.listener = listener.release();
  const std::shared_ptr<comm::Rendezvous> launchers = comm::meet(meeting);

  NodesPlace place;
  place.node = launchers->rank();
  for (int node = 0; node < options.num_nodes; ++node) place.hosts.push_back(launchers->host(node));
  comm::Descriptor ranks;
  if (first) {
    ranks = comm::listen_on({endpoint.address, 0});
    // The address as it was given: a name may be another one on each machine.
    launchers->set("ranks", std::to_string(comm::local_endpoint(ranks).port));
  }
  launchers->set("nproc/" + std::to_string(place.node), std::to_string(options.num_ranks));
  place.address = endpoint.address;
  place.port = std::stoi(launchers->get("ranks", options.timeout_s));
  // Every launcher reads what all said, so that all find the same and none waits for one that gave up.
  std::string said;
  bool alike = true;
  for (int node = 0; node < options.num_nodes; ++node) {
    const std::string theirs = launchers->get("nproc/" + std::to_string(node), options.timeout_s);
    alike = alike && theirs == std::to_string(options.num_ranks);
    said += fmt::format("{}{} on {}", node == 0 ? "" : ", ", theirs,
                        place.hosts[static_cast<size_t>(node)]);
  }
  launchers->leave(options.timeout_s);
  TRIREME_USER_CHECK(alike, kConfig, "give every launcher the same --nproc", "--nproc differs: {}",
                     said);
  place.listener = ranks.release();
  return place;
}

}  // namespace trireme::resilience
