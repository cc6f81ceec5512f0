// Launchers of several machines are threads here.
#include "trireme/resilience/nodes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <future>

#include "trireme/base/error.h"
#include "trireme/comm/rendezvous/socket.h"

namespace trireme::resilience {
namespace {

using ::testing::HasSubstr;

std::string free_address() {
  const comm::Descriptor socket = comm::listen_on({"127.0.0.1", 0});
  return comm::local_endpoint(socket).text();
}

NodesOptions options(const std::string& rdzv, int node = -1) {
  NodesOptions options;
  options.num_nodes = 3;
  options.node = node;
  options.rdzv = rdzv;
  options.token = "a token of the tests";
  options.num_ranks = 2;
  options.timeout_s = 60;
  return options;
}

void expect_together(const std::vector<NodesOptions>& all, bool as_asked) {
  std::vector<std::future<NodesPlace>> futures;
  for (const NodesOptions& own : all)
    futures.push_back(std::async(std::launch::async, meet_nodes, own));
  std::vector<bool> seen(all.size());
  int port = 0;
  for (size_t i = 0; i < futures.size(); ++i) {
    const NodesPlace place = futures[i].get();
    if (as_asked) {
      EXPECT_EQ(place.node, all[i].node);
    }
    EXPECT_FALSE(seen.at(static_cast<size_t>(place.node)));
    seen[static_cast<size_t>(place.node)] = true;
    EXPECT_EQ(place.hosts.size(), all.size());
    EXPECT_EQ(place.address, "127.0.0.1");
    if (port == 0) port = place.port;
    EXPECT_EQ(place.port, port);
    EXPECT_EQ(place.listener >= 0, place.node == 0);
    if (place.listener >= 0) {
      const comm::Descriptor listener = comm::inherited_listener(place.listener);
      EXPECT_EQ(comm::local_endpoint(listener).port, port);
    }
  }
}

TEST(Nodes, ArriveInAnyOrder) {
  const std::string rdzv = free_address();
  expect_together({options(rdzv), options(rdzv), options(rdzv)}, false);
}

TEST(Nodes, HaveTheNumbersTheyAskFor) {
  const std::string rdzv = free_address();
  expect_together({options(rdzv, 2), options(rdzv, 0), options(rdzv, 1)}, true);
}

TEST(Nodes, MustHaveTheSameNumberOfRanks) {
  const std::string rdzv = free_address();
  std::vector<std::future<std::string>> futures;
  for (int node = 0; node < 3; ++node) {
    NodesOptions own = options(rdzv, node);
    own.num_ranks = node == 2 ? 4 : 2;
    futures.push_back(std::async(std::launch::async, [own]() -> std::string {
      try {
        meet_nodes(own);
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::kConfig);
        return error.what();
      }
      return "nothing";
    }));
  }
  for (auto& future : futures) EXPECT_THAT(future.get(), HasSubstr("--nproc differs: 2 on "));
}

TEST(Nodes, WrongNumbersAreNamed) {
  EXPECT_THROW(meet_nodes(options("127.0.0.1:29500", 3)), Error);
  EXPECT_THROW(meet_nodes(options("127.0.0.1", 0)), Error);
}

}  // namespace
}  // namespace trireme::resilience
