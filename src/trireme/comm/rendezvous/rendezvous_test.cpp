// Ranks are threads here, with a real server and real sockets on the loopback interface.
#include "trireme/comm/rendezvous.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <sstream>
#include <thread>

#include "trireme/base/error.h"
#include "trireme/base/secret.h"
#include "trireme/base/test_folder.h"
#include "trireme/comm/rendezvous/announcement.h"
#include "trireme/comm/rendezvous/client.h"
#include "trireme/comm/rendezvous/torch_store.h"

namespace trireme::comm {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr double kLong = 60;
constexpr const char* kToken = "a token of the tests";

/// A port that rank 0 listens on from the start.
struct Meeting {
  Descriptor listener = listen_on({"127.0.0.1", 0});
  Endpoint endpoint = local_endpoint(listener);
  int size;
  explicit Meeting(int ranks) : size(ranks) {}

  MeetingOptions options(int rank) {
    MeetingOptions options;
    options.rank = rank;
    options.size = size;
    options.port = endpoint.port;
    options.token = kToken;
    options.timeout_s = kLong;
    options.host = "h" + std::to_string(rank);
    if (rank == 0) options.listener = listener.release();
    return options;
  }
};

using Ranks = std::vector<std::shared_ptr<Rendezvous>>;

Ranks meet_all(int size) {
  Meeting meeting(size);
  std::vector<std::future<std::shared_ptr<Rendezvous>>> futures;
  for (int rank = 0; rank < size; ++rank)
    futures.push_back(std::async(std::launch::async, meet, meeting.options(rank)));
  Ranks ranks;
  for (auto& future : futures) ranks.push_back(future.get());
  return ranks;
}

void leave_all(Ranks& ranks) {
  for (size_t rank = ranks.size(); rank-- > 0;) ranks[rank]->leave(kLong);
}

/// The message of the Error{code} that `body` throws.
std::string error_of(ErrorCode code, const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no error";
  return "";
}

TEST(Rendezvous, OneRankMeetsItself) {
  Ranks ranks = meet_all(1);
  EXPECT_EQ(ranks[0]->size(), 1);
  ranks[0]->set("k", "v");
  EXPECT_EQ(ranks[0]->get("k", kLong), "v");
  leave_all(ranks);
}

TEST(Rendezvous, RanksKnowEachOtherAndShareValues) {
  Ranks ranks = meet_all(4);
  for (int rank = 0; rank < 4; ++rank) {
    EXPECT_EQ(ranks[static_cast<size_t>(rank)]->rank(), rank);
    EXPECT_EQ(ranks[static_cast<size_t>(rank)]->host(3), "h3");
  }
  auto waiting = std::async(std::launch::async, [&] { return ranks[3]->get("late", kLong); });
  const std::string binary = random_bytes(3 << 20);
  ranks[1]->set("late", binary);
  EXPECT_EQ(waiting.get(), binary);
  EXPECT_EQ(ranks[0]->add("n", 2), 2);
  EXPECT_EQ(ranks[2]->add("n", 3), 5);
  EXPECT_TRUE(ranks[1]->check({"n", "late"}));
  EXPECT_EQ(ranks[1]->num_keys(), 2);
  ranks[2]->append("log", "a");
  ranks[3]->append("log", "b");
  EXPECT_EQ(ranks[0]->get("log", kLong), "ab");
  EXPECT_EQ(ranks[0]->compare_set("log", "ab", "c"), "c");
  EXPECT_TRUE(ranks[0]->remove("log"));
  EXPECT_FALSE(ranks[1]->check({"log"}));
  ranks[2]->wait({"n", "late"}, kLong);
  leave_all(ranks);
  EXPECT_THAT(error_of(ErrorCode::kDevice, [&] { ranks[1]->set("k", "v"); }),
              HasSubstr("has left"));
}

TEST(Rendezvous, ManyThreadsOfManyRanksAsk) {
  Ranks ranks = meet_all(3);
  std::vector<std::future<void>> futures;
  for (size_t i = 0; i < 12; ++i) {
    futures.push_back(std::async(std::launch::async, [&, i] {
      Rendezvous& own = *ranks[i % 3];
      for (int round = 0; round < 20; ++round) {
        own.set(fmt::format("{}/{}", round, i), std::to_string(i));
        EXPECT_EQ(own.get(fmt::format("{}/{}", round, (i + 5) % 12), kLong),
                  std::to_string((i + 5) % 12));
        own.add("total", 1);
      }
    }));
  }
  for (auto& future : futures) future.get();
  EXPECT_EQ(ranks[0]->get("total", kLong), "240");
  leave_all(ranks);
}

TEST(Rendezvous, AKeyThatNobodySetsIsNamed) {
  Ranks ranks = meet_all(2);
  EXPECT_THAT(error_of(ErrorCode::kDevice, [&] { ranks[1]->get("never", 0.01); }),
              HasSubstr("rank 1 waited 0.01 s for 'never'"));
  EXPECT_THAT(error_of(ErrorCode::kDevice, [&] { ranks[1]->set("k", std::string(9 << 20, 'x')); }),
              HasSubstr("too long"));
  ranks[1]->set("k", "v");  // the connection is as good as before
  leave_all(ranks);
}

TEST(Rendezvous, WhoIsMissingIsNamed) {
  Meeting meeting(4);
  std::vector<std::future<std::string>> futures;
  for (const int rank : {0, 2}) {
    MeetingOptions options = meeting.options(rank);
    options.timeout_s = rank == 0 ? 0.5 : kLong;  // rank 0's counts
    options.expected_hosts = {"alpha", "alpha", "beta", "beta"};
    futures.push_back(std::async(std::launch::async, [options] {
      return error_of(ErrorCode::kDevice, [&] { meet(options); });
    }));
  }
  for (auto& future : futures) {
    EXPECT_EQ(future.get(),
              fmt::format(
                  "2 of 4 ranks came to {} within 0.5 s: rank 1 (alpha), rank 3 (beta) are missing",
                  meeting.endpoint.text()));
  }
}

TEST(Rendezvous, AServerThatIsNotThereIsNamed) {
  Meeting meeting(2);
  MeetingOptions options = meeting.options(1);
  options.timeout_s = 0.1;
  meeting.listener.reset();
  EXPECT_THAT(error_of(ErrorCode::kDevice, [&] { meet(options); }),
              AllOf(HasSubstr("rank 1 waited 0.1 s for rank 0 at " + meeting.endpoint.text()),
                    HasSubstr("refused")));
}

TEST(Rendezvous, AnotherTokenIsTurnedAwayAndTheOthersMeet) {
  Meeting meeting(2);
  auto zero = std::async(std::launch::async, meet, meeting.options(0));
  MeetingOptions wrong = meeting.options(1);
  wrong.token = "another token of tests";
  EXPECT_THAT(error_of(ErrorCode::kConfig, [&] { meet(wrong); }),
              HasSubstr("TRIREME_TOKEN differs"));
  auto one = meet(meeting.options(1));
  EXPECT_EQ(one->size(), 2);
  one->leave(kLong);
  zero.get()->leave(kLong);
}

TEST(Rendezvous, StrangersChangeNothing) {
  Meeting meeting(2);
  auto zero = std::async(std::launch::async, meet, meeting.options(0));
  std::string why;
  std::vector<Descriptor>
      strangers;  // more than are kept; some say nothing, some the wrong thing, one a forged length
  for (int i = 0; i < 100; ++i) {
    strangers.push_back(connect_to(meeting.endpoint, kLong, why));
    const std::string words = i % 3 == 0   ? ""
                              : i % 3 == 1 ? "GET / HTTP/1.1\r\n\r\n"
                                           : "TRIREMER\x01";
    ::send(strangers.back().get(), words.data(), words.size(), MSG_NOSIGNAL);
  }
  auto one = meet(meeting.options(1));
  auto first = zero.get();
  EXPECT_EQ(first->num_keys(), 0);
  one->leave(kLong);
  first->leave(kLong);
}

TEST(Rendezvous, SomethingElseAtTheAddressIsNamed) {
  const Descriptor listener = listen_on({"127.0.0.1", 0});
  const Endpoint endpoint = local_endpoint(listener);
  std::thread other([&] {
    Descriptor socket;
    while (!socket) socket = accept_from(listener);
    ::send(socket.get(), "SSH-2.0-x\r\n", 11, MSG_NOSIGNAL);
    char byte = 0;
    while (::recv(socket.get(), &byte, 1, 0) < 0) {
    }
  });
  MeetingOptions options;
  options.rank = 1;
  options.size = 2;
  options.port = endpoint.port;
  options.token = kToken;
  options.timeout_s = kLong;
  EXPECT_THAT(error_of(ErrorCode::kDevice, [&] { meet(options); }),
              AllOf(HasSubstr(endpoint.text()), HasSubstr("no rendezvous of Trireme")));
  other.join();
}

TEST(Rendezvous, AllInterfacesAtOnceAreRefused) {
  for (const char* address : {"0.0.0.0", "::", "0"}) {
    EXPECT_THAT(error_of(ErrorCode::kConfig, [&] { listen_on({address, 0}); }),
                HasSubstr("all interfaces"))
        << address;
  }
  EXPECT_THAT(error_of(ErrorCode::kConfig, [&] { listen_on({"192.0.2.1", 29500}); }),
              HasSubstr("no interface of this machine has that address"));  // RFC 5737: nobody's
  const Descriptor taken = listen_on({"127.0.0.1", 0});
  EXPECT_THAT(error_of(ErrorCode::kConfig, [&] { listen_on(local_endpoint(taken)); }),
              HasSubstr("the port is taken"));
}

TEST(Rendezvous, TheServerListensOnLoopbackAlone) {
  Meeting meeting(1);
  auto rendezvous = meet(meeting.options(0));
  // All listening TCP sockets of this system with our port, as the kernel lists them.
  std::vector<std::string> listening;
  for (const char* file : {"/proc/net/tcp", "/proc/net/tcp6"}) {
    std::ifstream lines(file);
    for (std::string line; std::getline(lines, line);) {
      std::istringstream fields(line);
      std::string number, local, remote, state;
      fields >> number >> local >> remote >> state;
      if (state == "0A" && local.ends_with(fmt::format(":{:04X}", meeting.endpoint.port)))
        listening.push_back(local);
    }
  }
  ASSERT_EQ(listening.size(), 1u);
  EXPECT_TRUE(listening[0].starts_with("0100007F:")) << listening[0];
  rendezvous->leave(kLong);
}

/// Collects what on_peer_lost() says, and waits for it.
struct Losses {
  std::promise<PeerLoss> first;
  std::atomic<int> count = 0;
  std::function<void(const PeerLoss&)> callback() {
    return [this](const PeerLoss& loss) {
      if (count++ == 0) first.set_value(loss);
    };
  }
};

TEST(Rendezvous, ALostRankIsToldToAllOthersAndEndsTheirWaiting) {
  Ranks ranks = meet_all(4);
  Losses losses[4];
  for (size_t rank : {0u, 1u, 3u}) ranks[rank]->on_peer_lost(losses[rank].callback());
  auto waiting = std::async(std::launch::async, [&] {
    return error_of(ErrorCode::kDevice, [&] { ranks[3]->get("never", kLong); });
  });
  ranks[2].reset();  // no goodbye
  EXPECT_EQ(waiting.get(), "rank 2 (h2) is gone");
  for (size_t rank : {0u, 1u, 3u}) {
    const PeerLoss first = losses[rank].first.get_future().get();
    EXPECT_EQ(first.rank, 2);
    EXPECT_EQ(describe(first), "rank 2 (h2) is gone: its connection closed");
  }
  // Who asks later hears of it, too.
  Losses later;
  ranks[0]->on_peer_lost(later.callback());
  EXPECT_EQ(later.count, 1);
  EXPECT_THAT(error_of(ErrorCode::kDevice, [&] { ranks[1]->get("never", kLong); }),
              HasSubstr("rank 2 (h2) is gone"));
  ranks[1]->set("k", "v");
  EXPECT_EQ(ranks[0]->get("k", kLong), "v");
  for (size_t rank : {3u, 1u, 0u}) ranks[rank]->leave(kLong);
}

TEST(Rendezvous, TheLossOfRankZeroIsNoticedByAll) {
  Ranks ranks = meet_all(3);
  Losses losses;
  ranks[1]->on_peer_lost(losses.callback());
  auto waiting = std::async(std::launch::async, [&] {
    return error_of(ErrorCode::kDevice, [&] { ranks[2]->get("never", kLong); });
  });
  ranks[0].reset();
  EXPECT_THAT(waiting.get(), HasSubstr("rank 0 (h0)"));
  EXPECT_EQ(losses.first.get_future().get().rank, 0);
  EXPECT_THAT(error_of(ErrorCode::kDevice,
                       [&] {
                         ranks[1]->set("k", "v");
                         ranks[1]->set("k", "v");
                       }),
              AllOf(HasSubstr("rank 0 (h0)"), HasSubstr("is gone")));
  ranks[1]->leave(kLong);
  ranks[2]->leave(kLong);
}

TEST(Rendezvous, AnAbortIsToldWithItsReason) {
  Ranks ranks = meet_all(3);
  Losses losses;
  ranks[0]->on_peer_lost(losses.callback());
  ranks[1]->abort("the loss is nan");
  EXPECT_EQ(describe(losses.first.get_future().get()),
            "rank 1 (h1) stopped the run: the loss is nan");
  EXPECT_THAT(error_of(ErrorCode::kDevice, [&] { ranks[2]->get("never", kLong); }),
              HasSubstr("the loss is nan"));
  for (size_t rank : {2u, 1u, 0u}) ranks[rank]->leave(kLong);
  EXPECT_EQ(losses.count, 1);
}

TEST(Rendezvous, AGoodbyeIsNoLoss) {
  Ranks ranks = meet_all(3);
  Losses losses;
  ranks[0]->on_peer_lost(losses.callback());
  ranks[2]->leave(kLong);
  ranks[1]->set("k", "v");
  EXPECT_EQ(ranks[0]->get("k", kLong), "v");
  ranks[1]->leave(kLong);
  ranks[0]->leave(kLong);
  EXPECT_EQ(losses.count, 0);
}

TEST(Rendezvous, RanksByArrival) {
  Meeting meeting(3);
  std::vector<std::future<std::shared_ptr<Rendezvous>>> futures;
  for (int i = 0; i < 3; ++i) {
    MeetingOptions options = meeting.options(i);
    options.rank = i == 0 ? 0 : -1;
    futures.push_back(std::async(std::launch::async, meet, options));
  }
  Ranks ranks;
  for (auto& future : futures) ranks.push_back(future.get());
  EXPECT_EQ(ranks[0]->rank(), 0);
  EXPECT_EQ(ranks[1]->rank() + ranks[2]->rank(), 3);
  EXPECT_EQ(ranks[0]->host(ranks[2]->rank()), "h2");
  if (ranks[1]->rank() > ranks[2]->rank()) std::swap(ranks[1], ranks[2]);
  leave_all(ranks);
}

TEST(Rendezvous, RanksOfOneMachineMeetByAFile) {
  const TestFolder folder;
  const std::string path = announcement_path("job", folder.path().string(), "/nowhere");
  // What a run before left, which nobody answers for.
  write_announcement(path, {{"127.0.0.1", 1}, "an old token"});
  std::vector<std::future<std::shared_ptr<Rendezvous>>> futures;
  for (const int rank : {1, 2, 0}) {
    MeetingOptions options;
    options.rank = rank;
    options.size = 3;
    options.announcement = path;
    options.timeout_s = kLong;
    futures.push_back(std::async(std::launch::async, meet, options));
  }
  Ranks ranks;
  for (auto& future : futures) ranks.push_back(future.get());
  std::swap(ranks[0], ranks[2]);
  EXPECT_FALSE(std::filesystem::exists(path));
  leave_all(ranks);
}

TEST(Announcement, IsReadableByItsUserAlone) {
  const TestFolder folder;
  const std::string path = announcement_path("job", "", folder.path().string());
  EXPECT_NE(path, announcement_path("another job", "", folder.path().string()));
  write_announcement(path, {{"127.0.0.1", 29511}, "token"});
  struct stat status{};
  ASSERT_EQ(::stat(path.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600u);
  const auto read = read_announcement(path);
  ASSERT_TRUE(read);
  EXPECT_EQ(read->endpoint.text(), "127.0.0.1:29511");
  EXPECT_EQ(read->token, "token");
  EXPECT_FALSE(read_announcement(path + ".absent"));
  for (const char* text : {"", "127.0.0.1 29511 token", "127.0.0.1 70000 token\n", "127.0.0.1\n"}) {
    std::ofstream(path) << text;
    EXPECT_FALSE(read_announcement(path)) << text;
  }
  // Others may have planted it.
  write_announcement(path, {{"127.0.0.1", 29511}, "token"});
  ::chmod(path.c_str(), 0666);
  EXPECT_FALSE(read_announcement(path));
}

TEST(Announcement, AFolderThatOthersMayWriteToIsRefused) {
  const TestFolder folder;
  const std::string path = announcement_path("job", "", folder.path().string());
  const std::string own = std::filesystem::path(path).parent_path();
  ::chmod(own.c_str(), 0777);
  EXPECT_THROW(announcement_path("job", "", folder.path().string()), Error);
  std::filesystem::remove_all(own);
  std::filesystem::create_directory_symlink(folder.path().string(), own);
  EXPECT_THROW(announcement_path("job", "", folder.path().string()), Error);
}

TEST(MeetingOptions, FollowFromThePlacement) {
  const TestFolder folder;
  const Environment files = {{"XDG_RUNTIME_DIR", folder.path().string()}};
  Placement placement;
  placement.rank = 1;
  placement.size = 4;
  placement.local_size = 4;
  placement.job = "mpirun 7";
  // One machine and no token: by a file.
  EXPECT_THAT(meeting_options(placement, files).announcement, HasSubstr(folder.path().string()));
  // trireme launch: a token and a free address.
  placement.address = "127.0.0.1";
  placement.port = 4000;
  Environment launch = files;
  launch["TRIREME_TOKEN"] = "0123456789abcdef";
  launch["TRIREME_LISTEN_FD"] = "7";
  launch["TRIREME_HOSTS"] = "alpha";
  MeetingOptions options = meeting_options(placement, launch);
  EXPECT_EQ(options.announcement, "");
  EXPECT_EQ(options.port, 4000);
  EXPECT_EQ(options.listener, -1);  // it is rank 0's
  EXPECT_EQ(options.expected_hosts.size(), 4u);
  placement.rank = 0;
  EXPECT_EQ(meeting_options(placement, launch).listener, 7);
  // torchrun's agent has the address: by a file on one machine, by its store on several.
  placement.agent_store = true;
  EXPECT_NE(meeting_options(placement, launch).announcement, "");
  placement.local_size = 2;
  EXPECT_TRUE(meeting_options(placement, launch).agent_store);
  // Several machines need a token, and no short one.
  EXPECT_THAT(error_of(ErrorCode::kConfig, [&] { meeting_options(placement, files); }),
              HasSubstr("TRIREME_TOKEN is not set"));
  launch["TRIREME_TOKEN"] = "short";
  EXPECT_THAT(error_of(ErrorCode::kConfig, [&] { meeting_options(placement, launch); }),
              HasSubstr("has 5 characters"));
}

TEST(Endpoint, IsReadAsItIsWritten) {
  for (const char* text : {"127.0.0.1:29511", "[::1]:80", "node07:65535"})
    EXPECT_EQ(parse_endpoint(text, "--rdzv").text(), text);
  for (const char* text :
       {"", "host", "host:", ":80", "host:0", "host:65536", "host:80x", "host:-1"}) {
    EXPECT_THAT(error_of(ErrorCode::kConfig, [&] { parse_endpoint(text, "--rdzv"); }),
                HasSubstr("--rdzv"))
        << text;
  }
}

TEST(TorchStore, IsAStoreOfC10d) {
  Ranks ranks = meet_all(2);
  auto one = as_torch_store(ranks[0], kLong);
  auto two = as_torch_store(ranks[1], kLong);
  one->set("k", std::vector<uint8_t>{0, 255, 7});
  EXPECT_EQ(two->get("k"), (std::vector<uint8_t>{0, 255, 7}));
  EXPECT_EQ(two->add("n", 4), 4);
  EXPECT_TRUE(one->check({"k", "n"}));
  EXPECT_EQ(one->getNumKeys(), 2);
  one->wait({"k", "n"});
  EXPECT_EQ(two->compareSet("n", std::vector<uint8_t>{'4'}, std::vector<uint8_t>{'5'}),
            (std::vector<uint8_t>{'5'}));
  one->append("k", {1});
  EXPECT_EQ(two->multiGet({"k", "n"}), (std::vector<std::vector<uint8_t>>{{0, 255, 7, 1}, {'5'}}));
  one->multiSet({"a", "b"}, {{1}, {2}});
  EXPECT_TRUE(two->deleteKey("a"));
  EXPECT_FALSE(two->check({"a"}));
  two->setTimeout(std::chrono::milliseconds(10));
  EXPECT_THROW(two->get("never"), Error);
  EXPECT_THROW(two->wait({"never"}, std::chrono::milliseconds(10)), Error);
  leave_all(ranks);
}

}  // namespace
}  // namespace trireme::comm
