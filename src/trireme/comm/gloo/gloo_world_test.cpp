#include "trireme/comm/gloo/gloo_world.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <latch>
#include <torch/csrc/distributed/c10d/HashStore.hpp>

#include "trireme/base/error.h"
#include "trireme/comm/gloo/tcp_ranks.h"
#include "trireme/comm/testing/collective_check.h"
#include "trireme/comm/testing/world_calls.h"
#include "trireme/comm/transfer.h"

namespace trireme::comm {
namespace {

using testing::cpu;
using ::testing::ElementsAre;
using testing::error_of;
using ::testing::HasSubstr;

TEST(GlooWorld, TransfersDoWhatPlainLoopsDo) {
  for (uint64_t seed = 0; seed < 8; ++seed) {
    const int size = 1 + static_cast<int>(seed % 4);
    const auto groups = testing::draw_groups(seed, size);
    run_ranks_over_tcp(
        size, [&](World& world) { testing::check_transfers(world, cpu(), seed, 20, groups); });
  }
}

TEST(GlooWorld, BothSendFirst) {
  run_ranks_over_tcp(2, [](World& world) {
    const auto group = world.make_group({0, 1}, cpu());
    device::Queue& queue = cpu().compute_queue();
    const int other = 1 - world.rank();
    std::vector<at::Tensor> got;
    std::vector<Group::Pending> works;
    constexpr int64_t kMany = 400000;  // more than sockets hold
    for (int i = 0; i < 5; ++i)
      works.push_back(group->send(at::full({kMany}, 10.0 * world.rank() + i), other, queue));
    for (int i = 0; i < 5; ++i) {
      got.push_back(at::empty({kMany}));
      works.push_back(group->receive(got.back(), other, queue));
    }
    for (auto work = works.rbegin(); work != works.rend(); ++work) (*work)->wait(queue);
    for (int i = 0; i < 5; ++i) {
      const at::Tensor& values = got[static_cast<size_t>(i)];
      EXPECT_TRUE(at::equal(values, at::full({kMany}, 10.0 * other + i)));
    }
  });
}

TEST(GlooWorld, ExchangesSmallThings) {
  run_ranks_over_tcp(3, [](World& world) {
    EXPECT_EQ(world.transport(), "gloo");
    EXPECT_EQ(world.host(2), this_host());
    for (int i = 0; i < 4; ++i) {
      EXPECT_THAT(world.exchange(std::string(static_cast<size_t>(world.rank()), 'x')),
                  ElementsAre("", "x", "xx"));
    }
    EXPECT_EQ(world.make_group({0, 2}, cpu()) == nullptr, world.rank() == 1);
    const auto mixed = [&] {
      world.make_group(world.rank() == 2 ? std::vector<int>{0, 2} : std::vector<int>{0, 1}, cpu());
    };
    EXPECT_THAT(error_of(mixed, ErrorCode::kInternal), HasSubstr("makes group 0,2"));
    world.barrier();
  });
}

TEST(GlooWorld, SaysWhoDidNotComeToTheRendezvous) {
  GlooOptions options;
  options.timeout_s = 0.05;
  const std::string text =
      error_of([&] { make_gloo_world(c10::make_intrusive<c10d::HashStore>(), 1, 3, options); });
  EXPECT_THAT(text, HasSubstr("ranks 0 and 2 did not come to the rendezvous within 0.05 s"));
}

TEST(GlooWorld, SaysWhoDidNotComeToATransfer) {
  GlooOptions options;
  options.timeout_s = 2.0;  // also for the rendezvous, to which all of them come at once
  std::latch over(1);
  const std::string reason = "rank 2 (" + this_host() +
                             ") did not come to receive #0 from rank 2 of group 0,1,2 within 2 s";
  run_ranks_over_tcp(
      3,
      [&](World& world) {
        const auto group = world.make_group({0, 1, 2}, cpu());
        device::Queue& queue = cpu().compute_queue();
        const at::Tensor x = at::zeros({1});
        if (world.rank() == 0) {
          const auto work = group->receive(x, 2, queue);
          EXPECT_EQ(error_of([&] { work->wait(queue); }), reason);
          const auto later = group->broadcast(x, 0, queue);
          EXPECT_THROW(later->wait(queue), Error);
          over.count_down();
        } else if (world.rank() == 1) {
          over.wait();
          EXPECT_EQ(error_of([&] { world.barrier(); }), reason);
        } else {
          over.wait();
        }
      },
      options);
}

TEST(GlooWorld, AnAbortWakesWhoeverWaits) {
  GlooOptions options;
  options.timeout_s = 3600;
  options.watch_s = 0.01;
  const std::string text = error_of([&] {
    run_ranks_over_tcp(
        4,
        [](World& world) {
          const auto group = world.make_group({0, 1, 2, 3}, cpu());
          device::Queue& queue = cpu().compute_queue();
          if (world.rank() == 3) throw Error(ErrorCode::kDevice, "rank three has had enough");
          const at::Tensor x = at::ones({100});
          std::string what;
          if (world.rank() == 0) what = error_of([&] { world.barrier(); });
          if (world.rank() == 1) what = error_of([&] { group->all_reduce(x, queue)->wait(queue); });
          if (world.rank() == 2) what = error_of([&] { group->receive(x, 3, queue)->wait(queue); });
          EXPECT_THAT(what,
                      HasSubstr("rank 3 (" + this_host() + ") gave up: rank three has had enough"));
        },
        options);
  });
  EXPECT_EQ(text, "rank three has had enough");
}

TEST(GlooWorld, AClosedConnectionIsNoticedAtOnce) {
  GlooOptions options;
  options.timeout_s = 3600;
  run_ranks_over_tcp(
      3,
      [](World& world) {
        auto group = world.make_group({0, 1, 2}, cpu());
        if (world.rank() == 1) {
          group.reset();
          EXPECT_THROW(world.barrier(), Error);
          return;
        }
        const at::Tensor x = at::zeros({1});
        const auto work = group->receive(x, 1, cpu().compute_queue());
        const std::string text = error_of([&] { work->wait(cpu().compute_queue()); });
        EXPECT_THAT(text, HasSubstr("rank 1 (" + this_host() + ") is lost in receive #0"));
      },
      options);
}

TEST(GlooWorld, AnAddressOfAnotherMachineIsRefused) {
  GlooOptions options;
  options.interface = "nosuchinterface0";
  const auto make = [&] { make_gloo_world(c10::make_intrusive<c10d::HashStore>(), 0, 1, options); };
  EXPECT_THAT(error_of(make, ErrorCode::kConfig), HasSubstr("nosuchinterface0"));
}

}  // namespace
}  // namespace trireme::comm
