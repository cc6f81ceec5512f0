#include "trireme/comm/local/links.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <random>

namespace trireme::comm {
namespace {

LocalOptions links_of(double latency_s, double bytes_per_s, int node_size = 0) {
  LocalOptions options;
  options.inside_node = {latency_s, bytes_per_s};
  options.node_size = node_size;
  options.between_nodes = {10 * latency_s, bytes_per_s / 10};
  return options;
}

/// All ends, by advancing to them one after the other.
std::map<int64_t, Links::Passage> run(Links& links) {
  std::map<int64_t, Links::Passage> passages;
  while (!std::isinf(links.next_s())) {
    for (const Links::Passage& passage : links.advance(links.next_s()))
      passages[passage.id] = passage;
  }
  return passages;
}

TEST(Links, TakeLatencyAndBytesOverRate) {
  Links links(2, links_of(0.5, 100));
  links.add(7, 0, 1, 150, 10.0);
  const auto passages = run(links);
  EXPECT_DOUBLE_EQ(passages.at(7).start_s, 10.0);
  EXPECT_DOUBLE_EQ(passages.at(7).end_s, 12.0);
}

TEST(Links, CarryOneTransferAtATimeInEachDirection) {
  Links links(3, links_of(0, 100));
  links.add(0, 0, 1, 100, 0.0);
  links.add(1, 1, 0, 100, 0.0);  // the other direction is free
  links.add(2, 0, 2, 100, 0.0);  // rank 0 is still sending
  links.add(3, 2, 1, 100, 0.0);  // rank 1 is still receiving
  const auto passages = run(links);
  EXPECT_DOUBLE_EQ(passages.at(0).end_s, 1.0);
  EXPECT_DOUBLE_EQ(passages.at(1).end_s, 1.0);
  EXPECT_DOUBLE_EQ(passages.at(2).start_s, 1.0);
  EXPECT_DOUBLE_EQ(passages.at(3).start_s, 1.0);
}

TEST(Links, BetweenNodesAreOthersThanInside) {
  Links links(4, links_of(0, 100, 2));
  links.add(0, 0, 1, 100, 0.0);
  links.add(1, 0, 2, 100, 0.0);
  links.add(2, 0, 3, 100, 0.0);
  const auto passages = run(links);
  EXPECT_DOUBLE_EQ(passages.at(0).end_s, 1.0);
  EXPECT_DOUBLE_EQ(passages.at(1).end_s, 10.0);
  EXPECT_DOUBLE_EQ(passages.at(2).end_s, 20.0);
}

// n - 1 rounds of pieces: what theory has for a gather, a scatter and an exchange.
TEST(Links, RoundsOfAnExchangeLoseNothing) {
  for (int size = 2; size <= 16; ++size) {
    Links links(size, links_of(0.01, 1000));
    int64_t id = 0;
    for (int round = 1; round < size; ++round) {
      for (int from = 0; from < size; ++from) links.add(id++, from, (from + round) % size, 50, 0);
    }
    double end_s = 0;
    for (const auto& [at, passage] : run(links)) end_s = std::max(end_s, passage.end_s);
    EXPECT_NEAR(end_s, (size - 1) * 0.06, 1e-9) << size << " ranks";
  }
}

TEST(Links, ALateCallDoesNotMakeTransfersLate) {
  Links prompt(2, links_of(0.1, 1000));
  Links late(2, links_of(0.1, 1000));
  for (int64_t id = 0; id < 5; ++id) {
    prompt.add(id, 0, 1, 100, 0.0);
    late.add(id, 0, 1, 100, 0.0);
  }
  const auto expected = run(prompt);
  const std::vector<Links::Passage> passages = late.advance(100.0);
  ASSERT_EQ(passages.size(), 5U);
  for (const Links::Passage& passage : passages)
    EXPECT_DOUBLE_EQ(passage.end_s, expected.at(passage.id).end_s);
}

TEST(Links, AreNeverUsedTwiceAtOnce) {
  std::mt19937 random(5);
  for (int draw = 0; draw < 30; ++draw) {
    const int size = 2 + static_cast<int>(random() % 6);
    Links links(size, links_of(0.01, 1000, draw % 3));
    struct Sent {
      int from, to;
    };
    std::vector<Sent> sent;
    std::map<int64_t, Links::Passage> passages;
    double now = 0;
    for (int64_t id = 0; id < 60; ++id) {
      const int from = static_cast<int>(random() % static_cast<unsigned>(size));
      const int to =
          (from + 1 + static_cast<int>(random() % static_cast<unsigned>(size - 1))) % size;
      now += static_cast<double>(random() % 20) * 1e-3;
      links.add(id, from, to, static_cast<int64_t>(random() % 100), now);
      sent.push_back({from, to});
      if (random() % 3 == 0) {
        for (const Links::Passage& passage : links.advance(now)) passages[passage.id] = passage;
      }
    }
    for (const auto& [id, passage] : run(links)) passages[id] = passage;
    ASSERT_EQ(passages.size(), sent.size());
    const auto tier = [&](const Sent& s) {
      const int node = draw % 3;
      return node == 0 || s.from / node == s.to / node;
    };
    for (size_t a = 0; a < sent.size(); ++a) {
      for (size_t b = a + 1; b < sent.size(); ++b) {
        const bool shared = tier(sent[a]) == tier(sent[b]) &&
                            (sent[a].from == sent[b].from || sent[a].to == sent[b].to);
        if (!shared) continue;
        const Links::Passage& one = passages.at(static_cast<int64_t>(a));
        const Links::Passage& other = passages.at(static_cast<int64_t>(b));
        EXPECT_TRUE(one.end_s <= other.start_s || other.end_s <= one.start_s);
      }
    }
  }
}

}  // namespace
}  // namespace trireme::comm
