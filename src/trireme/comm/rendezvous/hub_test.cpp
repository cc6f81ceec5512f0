#include "trireme/comm/rendezvous/hub.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trireme/base/error.h"

namespace trireme::comm {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

/// Connection 100 + r is rank r's, on host "h<r>".
Message join(int rank, int size, const std::string& host) {
  return {MessageKind::kJoin, 1, rank, {host, std::to_string(size)}};
}

RendezvousHub make_hub(int size, size_t max_stored_bytes = 1 << 20) {
  RendezvousHubOptions options;
  options.size = size;
  options.address = "127.0.0.1:29511";
  options.max_stored_bytes = max_stored_bytes;
  return RendezvousHub(options);
}

void join_all(RendezvousHub& hub, int size) {
  for (int rank = 0; rank < size; ++rank)
    hub.receive(100 + rank, join(rank, size, "h" + std::to_string(rank)));
  hub.take_outgoing();
}

/// What goes to one connection.
std::vector<Message> to(const std::vector<RendezvousHub::Outgoing>& all,
                        RendezvousHub::Connection connection) {
  std::vector<Message> messages;
  for (const RendezvousHub::Outgoing& outgoing : all) {
    if (outgoing.to == connection) messages.push_back(outgoing.message);
  }
  return messages;
}

Message ask(RendezvousHub& hub, int rank, const Message& message) {
  hub.receive(100 + rank, message);
  const std::vector<Message> answers = to(hub.take_outgoing(), 100 + rank);
  EXPECT_EQ(answers.size(), 1u);
  return answers.empty() ? Message{} : answers[0];
}

TEST(RendezvousHub, WelcomesWhenTheLastRankComes) {
  RendezvousHub hub = make_hub(3);
  hub.receive(5, join(2, 3, "c"));
  hub.receive(6, join(0, 3, "a"));
  EXPECT_THAT(hub.take_outgoing(), IsEmpty());
  hub.receive(7, join(1, 3, "b"));
  const auto outgoing = hub.take_outgoing();
  ASSERT_EQ(outgoing.size(), 3u);
  EXPECT_TRUE(hub.met());
  const Message expected = {MessageKind::kWelcome, 0, 2, {"a", "b", "c"}};
  EXPECT_THAT(to(outgoing, 5), ElementsAre(expected));
  EXPECT_EQ(to(outgoing, 6)[0].number, 0);
}

TEST(RendezvousHub, GivesRanksByArrivalAroundThoseThatAreTaken) {
  RendezvousHub hub = make_hub(4);
  hub.receive(5, join(-1, 4, "w"));
  hub.receive(6, join(1, 4, "x"));
  hub.receive(7, join(-1, 4, "y"));
  hub.receive(8, join(0, 4, "z"));
  const auto outgoing = hub.take_outgoing();
  EXPECT_EQ(to(outgoing, 5)[0].number, 2);
  EXPECT_EQ(to(outgoing, 6)[0].number, 1);
  EXPECT_EQ(to(outgoing, 7)[0].number, 3);
  EXPECT_THAT(to(outgoing, 8)[0].texts, ElementsAre("z", "x", "w", "y"));
}

TEST(RendezvousHub, NamesWhoIsMissing) {
  RendezvousHubOptions options;
  options.size = 4;
  options.address = "127.0.0.1:29511";
  options.timeout_s = 60;
  options.expected_hosts = {"alpha", "alpha", "beta", "beta"};
  RendezvousHub hub(options);
  hub.receive(5, join(0, 4, "alpha"));
  hub.receive(6, join(2, 4, "beta"));
  hub.turned_away("its token differs");
  hub.time_is_over();
  EXPECT_TRUE(hub.failed());
  const auto outgoing = hub.take_outgoing();
  ASSERT_EQ(outgoing.size(), 2u);
  EXPECT_EQ(outgoing[0].message.kind, MessageKind::kRefused);
  EXPECT_THAT(
      outgoing[0].message.texts,
      ElementsAre(
          "2 of 4 ranks came to 127.0.0.1:29511 within 60 s: rank 1 (alpha), rank 3 (beta) are "
          "missing (turned away: its token differs)"));
  EXPECT_EQ(outgoing[0].message.texts, outgoing[1].message.texts);
  hub.time_is_over();
  EXPECT_THAT(hub.take_outgoing(), IsEmpty());
  // Who comes too late is told so.
  hub.receive(7, join(1, 4, "alpha"));
  EXPECT_THAT(hub.take_outgoing()[0].message.texts[0], HasSubstr("the meeting is over"));
}

TEST(RendezvousHub, TurnsAwayWhoCannotBeRight) {
  RendezvousHub hub = make_hub(3);
  hub.receive(5, join(1, 3, "a"));
  const auto refused = [&](const Message& message) {
    hub.receive(9, message);
    const auto outgoing = hub.take_outgoing();
    EXPECT_EQ(outgoing.size(), 1u);
    EXPECT_EQ(outgoing[0].message.kind, MessageKind::kRefused);
    return outgoing[0].message.texts[0];
  };
  EXPECT_EQ(refused(join(1, 3, "b")), "two processes say that they are rank 1: on a and on b");
  EXPECT_EQ(refused(join(2, 4, "b")), "rank 2 (b) is one of 4 ranks there, but rank 0 waits for 3");
  EXPECT_EQ(refused(join(3, 3, "b")), "there is no rank 3 among 3");
  EXPECT_EQ(refused(join(-2, 3, "b")), "there is no rank -2 among 3");
  // The others' meeting goes on.
  hub.receive(6, join(0, 3, "a"));
  hub.receive(7, join(2, 3, "a"));
  EXPECT_TRUE(hub.met());
  hub.take_outgoing();
  EXPECT_EQ(refused(join(2, 3, "b")), "all 3 ranks are there already");
}

TEST(RendezvousHub, BreachesOfTheProtocolThrow) {
  RendezvousHub hub = make_hub(2);
  EXPECT_THROW(hub.receive(5, {MessageKind::kSet, 1, 0, {"k", "v"}}), Error);
  EXPECT_THROW(hub.receive(5, {MessageKind::kJoin, 1, 0, {"h"}}), Error);
  hub.receive(5, join(0, 2, "a"));
  EXPECT_THROW(hub.receive(5, join(0, 2, "a")), Error);
  EXPECT_THROW(hub.receive(5, {MessageKind::kSet, 1, 0, {"k", "v"}}), Error);  // not all are there
  hub.receive(6, join(1, 2, "a"));
  EXPECT_THROW(hub.receive(5, {MessageKind::kSet, 1, 0, {"k"}}), Error);
  EXPECT_THROW(hub.receive(5, {MessageKind::kWelcome, 1, 0, {}}), Error);
}

TEST(RendezvousHub, KeepsValues) {
  RendezvousHub hub = make_hub(2);
  join_all(hub, 2);
  EXPECT_EQ(ask(hub, 0, {MessageKind::kSet, 7, 0, {"k", "v"}}),
            (Message{MessageKind::kReply, 7, 0, {}}));
  EXPECT_EQ(ask(hub, 1, {MessageKind::kWait, 8, 1, {"k"}}),
            (Message{MessageKind::kReply, 8, 0, {"v"}}));
  EXPECT_EQ(ask(hub, 1, {MessageKind::kWait, 8, 0, {"k"}}),
            (Message{MessageKind::kReply, 8, 0, {}}));
  EXPECT_EQ(ask(hub, 1, {MessageKind::kCheck, 9, 0, {"k", "l"}}).number, 0);
  EXPECT_EQ(ask(hub, 1, {MessageKind::kCheck, 9, 0, {"k"}}).number, 1);
  EXPECT_EQ(ask(hub, 0, {MessageKind::kAppend, 7, 0, {"k", "w"}}).kind, MessageKind::kReply);
  EXPECT_THAT(ask(hub, 1, {MessageKind::kWait, 8, 1, {"k"}}).texts, ElementsAre("vw"));
  EXPECT_EQ(ask(hub, 0, {MessageKind::kCount, 7, 0, {}}).number, 1);
  EXPECT_EQ(ask(hub, 0, {MessageKind::kRemove, 7, 0, {"k"}}).number, 1);
  EXPECT_EQ(ask(hub, 0, {MessageKind::kRemove, 7, 0, {"k"}}).number, 0);
  EXPECT_EQ(ask(hub, 0, {MessageKind::kCount, 7, 0, {}}).number, 0);
}

TEST(RendezvousHub, AddsToDecimalNumbers) {
  RendezvousHub hub = make_hub(1);
  join_all(hub, 1);
  EXPECT_EQ(ask(hub, 0, {MessageKind::kAdd, 1, 5, {"n"}}).number, 5);
  EXPECT_EQ(ask(hub, 0, {MessageKind::kAdd, 1, -7, {"n"}}).number, -2);
  EXPECT_THAT(ask(hub, 0, {MessageKind::kWait, 1, 1, {"n"}}).texts, ElementsAre("-2"));
  EXPECT_EQ(ask(hub, 0, {MessageKind::kAdd, 1, INT64_MIN, {"n"}}).kind, MessageKind::kRefused);
  ask(hub, 0, {MessageKind::kSet, 1, 0, {"text", "12a"}});
  EXPECT_EQ(ask(hub, 0, {MessageKind::kAdd, 1, 1, {"text"}}).kind, MessageKind::kRefused);
}

TEST(RendezvousHub, ComparesAndSets) {
  RendezvousHub hub = make_hub(1);
  join_all(hub, 1);
  const auto compare_set = [&](const char* expected, const char* desired) {
    return ask(hub, 0, {MessageKind::kCompareSet, 1, 0, {"k", expected, desired}}).texts.at(0);
  };
  EXPECT_EQ(compare_set("x", "y"), "x");  // not there, and not expected to be absent
  EXPECT_EQ(compare_set("", "a"), "a");
  EXPECT_EQ(compare_set("b", "c"), "a");
  EXPECT_EQ(compare_set("a", "c"), "c");
}

TEST(RendezvousHub, WaitersAreAnsweredWhenTheLastKeyComes) {
  RendezvousHub hub = make_hub(2);
  join_all(hub, 2);
  hub.receive(101, {MessageKind::kWait, 3, 1, {"a", "b"}});
  hub.receive(101, {MessageKind::kWait, 4, 1, {"a"}});
  hub.receive(101, {MessageKind::kWait, 5, 1, {"b"}});
  hub.receive(101, {MessageKind::kCancel, 5, 0, {}});
  EXPECT_THAT(hub.take_outgoing(), IsEmpty());
  hub.receive(100, {MessageKind::kSet, 1, 0, {"a", "1"}});
  EXPECT_THAT(to(hub.take_outgoing(), 101), ElementsAre(Message{MessageKind::kReply, 4, 0, {"1"}}));
  hub.receive(100, {MessageKind::kSet, 1, 0, {"b", "2"}});
  EXPECT_THAT(to(hub.take_outgoing(), 101),
              ElementsAre(Message{MessageKind::kReply, 3, 0, {"1", "2"}}));
}

TEST(RendezvousHub, SizesAreCapped) {
  RendezvousHub hub = make_hub(1, 1000);
  join_all(hub, 1);
  EXPECT_THAT(
      ask(hub, 0, {MessageKind::kSet, 1, 0, {std::string(kMaxKeyBytes + 1, 'k'), ""}}).texts[0],
      HasSubstr("too long"));
  EXPECT_EQ(ask(hub, 0, {MessageKind::kSet, 1, 0, {"a", std::string(900, 'x')}}).kind,
            MessageKind::kReply);
  EXPECT_THAT(ask(hub, 0, {MessageKind::kSet, 1, 0, {"b", std::string(100, 'x')}}).texts[0],
              HasSubstr("full"));
  // What is overwritten or removed makes room.
  EXPECT_EQ(ask(hub, 0, {MessageKind::kSet, 1, 0, {"a", std::string(700, 'x')}}).kind,
            MessageKind::kReply);
  EXPECT_EQ(ask(hub, 0, {MessageKind::kSet, 1, 0, {"b", std::string(100, 'x')}}).kind,
            MessageKind::kReply);
  ask(hub, 0, {MessageKind::kRemove, 1, 0, {"a"}});
  EXPECT_EQ(ask(hub, 0, {MessageKind::kSet, 1, 0, {"c", std::string(700, 'x')}}).kind,
            MessageKind::kReply);
}

TEST(RendezvousHub, ALossIsToldToAllOthersAndEndsWaiting) {
  RendezvousHub hub = make_hub(3);
  join_all(hub, 3);
  hub.receive(100, {MessageKind::kWait, 3, 1, {"never"}});
  hub.closed(102);
  auto outgoing = hub.take_outgoing();
  const Message lost = {MessageKind::kLost, 0, 2, {"h2", ""}};
  const Message refused = {MessageKind::kRefused, 3, 0, {"rank 2 (h2) is gone"}};
  EXPECT_THAT(to(outgoing, 100), ElementsAre(lost, refused));
  EXPECT_THAT(to(outgoing, 101), ElementsAre(lost));
  // From now on nobody waits in vain, but what is there can be had.
  EXPECT_EQ(ask(hub, 1, {MessageKind::kWait, 4, 1, {"never"}}).kind, MessageKind::kRefused);
  EXPECT_EQ(ask(hub, 1, {MessageKind::kSet, 4, 0, {"k", "v"}}).kind, MessageKind::kReply);
  EXPECT_THAT(ask(hub, 0, {MessageKind::kWait, 4, 1, {"k"}}).texts, ElementsAre("v"));
  EXPECT_EQ(hub.num_present(), 2);
}

TEST(RendezvousHub, AGoodbyeIsNoLoss) {
  RendezvousHub hub = make_hub(2);
  join_all(hub, 2);
  EXPECT_EQ(ask(hub, 1, {MessageKind::kGoodbye, 4, 0, {}}).kind, MessageKind::kReply);
  EXPECT_EQ(hub.num_present(), 1);
  hub.closed(101);
  hub.closed(77);  // never heard of
  EXPECT_THAT(hub.take_outgoing(), IsEmpty());
}

TEST(RendezvousHub, AnAbortIsToldWithItsReason) {
  RendezvousHub hub = make_hub(2);
  join_all(hub, 2);
  hub.receive(101, {MessageKind::kAbort, 0, 0, {"the loss is nan"}});
  EXPECT_THAT(to(hub.take_outgoing(), 100),
              ElementsAre(Message{MessageKind::kLost, 0, 1, {"h1", "the loss is nan"}}));
  hub.closed(101);
  EXPECT_THAT(hub.take_outgoing(), IsEmpty());
}

TEST(RendezvousHub, WhoGoesBeforeAllAreThereEndsTheMeeting) {
  RendezvousHub hub = make_hub(3);
  hub.receive(5, join(0, 3, "a"));
  hub.receive(6, join(1, 3, "b"));
  hub.closed(6);
  EXPECT_TRUE(hub.failed());
  const auto outgoing = hub.take_outgoing();
  ASSERT_EQ(outgoing.size(), 1u);
  EXPECT_THAT(outgoing[0].message.texts,
              ElementsAre("rank 1 (b) came and went before all ranks were there"));
}

}  // namespace
}  // namespace trireme::comm
