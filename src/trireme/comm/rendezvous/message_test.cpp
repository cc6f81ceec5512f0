#include "trireme/comm/rendezvous/message.h"

#include <gtest/gtest.h>

#include <random>

#include "trireme/base/error.h"
#include "trireme/comm/rendezvous/channel.h"

namespace trireme::comm {
namespace {

Message some_message(std::mt19937& random) {
  const auto below = [&](uint32_t end) { return random() % end; };
  Message message;
  message.kind = static_cast<MessageKind>(1 + below(static_cast<uint32_t>(MessageKind::kLost)));
  message.id = (uint64_t{random()} << 32) | random();
  message.number = static_cast<int64_t>((uint64_t{random()} << 32) | random());
  for (uint32_t i = below(4); i > 0; --i) {
    std::string text(below(300), '\0');
    for (char& byte : text) byte = static_cast<char>(random());
    message.texts.push_back(text);
  }
  return message;
}

TEST(Message, LooksAsWritten) {
  EXPECT_EQ(
      encode({MessageKind::kSet, 0x0102, -1, {"k", ""}}),
      std::string(
          "\x04\x02\x01\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\x02\0\0\0\x01\0\0\0k\0\0\0\0",
          30));
}

TEST(Message, ComesBackAsItWas) {
  std::mt19937 random(1);
  for (int i = 0; i < 200; ++i) {
    const Message message = some_message(random);
    EXPECT_EQ(decode(encode(message)), message);
  }
}

TEST(Message, EveryShorterOrLongerTextIsRefused) {
  const std::string bytes =
      encode({MessageKind::kCompareSet, 1, 2, {"key", "expected", "desired"}});
  for (size_t size = 0; size < bytes.size(); ++size)
    EXPECT_THROW(decode(std::string_view(bytes).substr(0, size)), Error) << size;
  EXPECT_THROW(decode(bytes + "x"), Error);
}

TEST(Message, SizesPastTheEndAreRefused) {
  std::string bytes = encode({MessageKind::kSet, 1, 2, {"key", "value"}});
  std::string many = bytes;
  many[17] = many[18] = many[19] = many[20] = '\xff';
  EXPECT_THROW(decode(many), Error);
  std::string longer = bytes;
  longer[24] = '\xff';
  EXPECT_THROW(decode(longer), Error);
  std::string kind = bytes;
  kind[0] = 0;
  EXPECT_THROW(decode(kind), Error);
  kind[0] = static_cast<char>(static_cast<int>(MessageKind::kLost) + 1);
  EXPECT_THROW(decode(kind), Error);
}

struct Pair {
  Channel server;
  Channel client;
  explicit Pair(const std::string& token, const std::string& other = "")
      : server(Channel::End::kServer, token, std::string(32, 's')),
        client(Channel::End::kClient, other.empty() ? token : other, std::string(32, 'c')) {}

  /// Carries what waits, `piece` bytes at a time, until nothing does.
  void carry(size_t piece = 1 << 20) {
    while (!server.outgoing().empty() || !client.outgoing().empty()) {
      move(server, client, piece, to_client);
      move(client, server, piece, to_server);
    }
  }
  static void move(Channel& from, Channel& into, size_t piece, std::vector<Message>& got) {
    std::string bytes = std::exchange(from.outgoing(), {});
    for (size_t at = 0; at < bytes.size(); at += piece) {
      for (Message& message : into.receive(std::string_view(bytes).substr(at, piece)))
        got.push_back(std::move(message));
    }
  }
  std::vector<Message> to_client;
  std::vector<Message> to_server;
};

TEST(Channel, CarriesMessagesBothWaysInPiecesOfAnySize) {
  for (const size_t piece : {size_t{1}, size_t{3}, size_t{64}, size_t{1} << 20}) {
    std::mt19937 random(static_cast<uint32_t>(piece));
    Pair pair("the token of the run");
    pair.carry(piece);
    ASSERT_TRUE(pair.server.open() && pair.client.open());
    std::vector<Message> up;
    std::vector<Message> down;
    for (int i = 0; i < 20; ++i) {
      up.push_back(some_message(random));
      down.push_back(some_message(random));
      pair.client.send(up.back());
      pair.server.send(down.back());
      if (i % 3 == 0) pair.carry(piece);
    }
    pair.carry(piece);
    EXPECT_EQ(pair.to_server, up);
    EXPECT_EQ(pair.to_client, down);
  }
}

TEST(Channel, ADifferentTokenIsNoticedByTheServer) {
  Pair pair("the token of the run", "the token of another");
  EXPECT_THROW(pair.carry(), Error);
  EXPECT_FALSE(pair.server.open());
  EXPECT_EQ(pair.server.outgoing(), std::string(32, '\0'));
  try {
    pair.client.receive(pair.server.outgoing());
    FAIL() << "a refusal went unnoticed";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kConfig);
  }
}

TEST(Channel, AFalseServerIsNoticedByTheClient) {
  Channel client(Channel::End::kClient, "the token of the run", std::string(32, 'c'));
  const Channel other(Channel::End::kServer, "the token of another", std::string(32, 's'));
  client.receive(other.outgoing());
  EXPECT_THROW(client.receive(std::string(32, '\0')), Error);
  EXPECT_FALSE(client.open());
}

TEST(Channel, StrangersAndOtherVersionsAreNoticed) {
  Channel server(Channel::End::kServer, "token", std::string(32, 's'));
  EXPECT_THROW(server.receive("GET / HTTP/1.1\r\n"), Error);
  Channel second(Channel::End::kServer, "token", std::string(32, 's'));
  EXPECT_THROW(second.receive(std::string("TRIREMER\x63\0\0\0", 12)), Error);
}

TEST(Channel, NothingOfAnEarlierConnectionCanBeSentAgain) {
  Channel server(Channel::End::kServer, "token", std::string(32, '1'));
  Channel client(Channel::End::kClient, "token", std::string(32, 'c'));
  client.receive(server.outgoing());
  const std::string recorded = client.outgoing();
  server.receive(recorded);
  EXPECT_TRUE(server.open());
  Channel later(Channel::End::kServer, "token", std::string(32, '2'));
  EXPECT_THROW(later.receive(recorded), Error);
}

TEST(Channel, EveryChangedByteOfAFrameIsNoticed) {
  Pair pair("token");
  pair.carry();
  pair.client.send({MessageKind::kSet, 1, 0, {"key", "value"}});
  const std::string frame = pair.client.outgoing();
  for (size_t at = 0; at < frame.size(); ++at) {
    Pair fresh("token");
    fresh.carry();
    fresh.client.send({MessageKind::kSet, 1, 0, {"key", "value"}});
    ASSERT_EQ(fresh.client.outgoing(), frame);
    std::string changed = frame;
    changed[at] = static_cast<char>(changed[at] ^ 1);
    // A larger size makes it wait for more: bytes that come then do not fit.
    changed += std::string(1 << 10, 'x');
    bool refused = false;
    try {
      refused = fresh.server.receive(changed).empty() && at < 4;
    } catch (const Error&) {
      refused = true;
    }
    EXPECT_TRUE(refused) << at;
  }
}

TEST(Channel, AFrameThatComesTwiceIsNoticed) {
  Pair pair("token");
  pair.carry();
  pair.client.send({MessageKind::kSet, 1, 0, {"key", "value"}});
  const std::string frame = pair.client.outgoing();
  EXPECT_EQ(pair.server.receive(frame).size(), 1u);
  EXPECT_THROW(pair.server.receive(frame), Error);
}

TEST(Channel, ALongFrameIsRefusedBeforeItsBytesCome) {
  Pair pair("token");
  pair.carry();
  EXPECT_THROW(pair.server.receive(std::string("\xff\xff\xff\x7f", 4)), Error);
}

}  // namespace
}  // namespace trireme::comm
