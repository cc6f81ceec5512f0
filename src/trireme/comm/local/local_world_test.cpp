#include "trireme/comm/local/local_world.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <latch>
#include <numeric>
#include <thread>

#include "trireme/base/error.h"
#include "trireme/comm/testing/collective_check.h"
#include "trireme/comm/testing/world_calls.h"
#include "trireme/comm/transfer.h"
#include "trireme/device/sim/sim.h"

namespace trireme::comm {
namespace {

using testing::cpu;
using ::testing::ElementsAre;
using testing::error_of;
using ::testing::HasSubstr;
using ::testing::Not;

std::vector<int> all_of(int size) {
  std::vector<int> ranks(static_cast<size_t>(size));
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

void check_random(const LocalOptions& options, int count) {
  for (uint64_t seed = 0; seed < 24; ++seed) {
    const int size = 1 + static_cast<int>(seed % 8);
    const auto groups = testing::draw_groups(seed, size);
    run_ranks(
        size, [&](World& world) { testing::check_transfers(world, cpu(), seed, count, groups); },
        options);
  }
}

TEST(LocalWorld, TransfersDoWhatPlainLoopsDo) {
  check_random({}, 25);
}

TEST(LocalWorld, TransfersOverLinksDoWhatPlainLoopsDo) {
  LocalOptions options;
  options.node_size = 2;
  options.inside_node = {1e-6, 1e10};
  options.between_nodes = {2e-5, 1e9};
  check_random(options, 12);
}

TEST(LocalWorld, LateTransfersDoWhatPlainLoopsDo) {
  LocalOptions options;
  options.late = true;
  check_random(options, 25);
}

TEST(LocalWorld, OneRankNeedsNoTransport) {
  for (uint64_t seed = 0; seed < 5; ++seed) {
    const std::unique_ptr<World> world = single_rank();
    testing::check_transfers(*world, cpu(), seed, 20, {{0}});
  }
}

class LocalWorldOnSim : public ::testing::TestWithParam<device::sim::Schedule> {
 protected:
  void SetUp() override {
    device::sim::Options options;
    options.num_devices = 4;
    device::sim::register_backend(options);
    device::sim::set_schedule(GetParam(), 11);
  }
  void TearDown() override { device::sim::set_schedule(device::sim::Schedule::kLate); }
};

TEST_P(LocalWorldOnSim, TransfersDoWhatPlainLoopsDo) {
  for (uint64_t seed = 0; seed < 8; ++seed) {
    const int size = 1 + static_cast<int>(seed % 4);
    const auto groups = testing::draw_groups(seed, size);
    run_ranks(size, [&](World& world) {
      device::Device& device = device::get_device(fmt::format("sim:{}", world.rank()));
      testing::check_transfers(world, device, seed, 12, groups);
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Schedules, LocalWorldOnSim,
                         ::testing::Values(device::sim::Schedule::kLate,
                                           device::sim::Schedule::kShuffled,
                                           device::sim::Schedule::kEager));

TEST(LocalWorld, OnADeviceTheQueueWaitsAndNotTheHost) {
  device::sim::register_backend({});
  run_ranks(2, [](World& world) {
    device::Device& device = device::get_device(fmt::format("sim:{}", world.rank()));
    const auto group = world.make_group({0, 1}, device);
    const at::Tensor x = at::full({1000}, 1.0 + world.rank(), device.torch_device());
    const at::Tensor all = at::empty({2000}, device.torch_device());
    const auto other = device.new_queue();
    const auto work = group->all_gather(all, {1000, 1000}, x, device.compute_queue());
    work->wait(*other);
    at::Tensor copy = at::empty({2000});
    {
      const device::QueueGuard guard(*other);
      copy = all.cpu();
    }
    EXPECT_EQ(copy[0].item<float>(), 1.0F);
    EXPECT_EQ(copy[1999].item<float>(), 2.0F);
    EXPECT_LE(work->start_s(), work->end_s());
  });
}

/// A clock that starts at 0 and counts what work costs.
class SimulatedLinks : public ::testing::Test {
 protected:
  void SetUp() override {
    device::sim::register_backend({});
    for (int rank = 0; rank < 4; ++rank) device::get_device(fmt::format("sim:{}", rank));
    device::sim::restart_clock();
    auto profile = std::make_shared<device::sim::DeviceProfile>();
    profile->flops_per_s[c10::kFloat] = 1e9;
    device::sim::set_profile(profile);
  }
  void TearDown() override {
    device::sim::set_profile(nullptr);
    device::sim::restart_clock();
  }
  /// Keeps the device's queue busy.
  static void compute(double seconds) {
    device::sim::Kernel kernel;
    kernel.name = "compute";
    kernel.cost.flops = seconds * 1e9;
    device::sim::submit(std::move(kernel), [] {});
  }
};

TEST_F(SimulatedLinks, CarryOnTheDevicesClock) {
  LocalOptions options;
  options.simulated_clock = true;
  options.inside_node = {0.5, 1e6};
  run_ranks(
      4,
      [](World& world) {
        device::Device& device = device::get_device(fmt::format("sim:{}", world.rank()));
        const auto group = world.make_group(all_of(4), device);
        device::Queue& queue = device.compute_queue();
        const device::QueueGuard guard(queue);
        const at::Tensor piece = at::full({250000}, 1.0 + world.rank(), device.torch_device());
        const at::Tensor all = at::empty({1000000}, device.torch_device());
        compute(10.0 + world.rank());  // rank 3 comes at 13
        const auto work = group->all_gather(all, std::vector<int64_t>(4, 250000), piece, queue);
        compute(3.0);  // beside the transfer
        work->wait(queue);
        compute(1.0);
        // Three pieces of a megabyte, with half a second each: from 13 to 17.5.
        EXPECT_NEAR(device::sim::simulated_seconds(world.rank()), 13 + 3 * 1.5 + 1, 1e-2);
        EXPECT_NEAR(work->end_s() - work->start_s(), 4.5, 1e-2);
        EXPECT_EQ(all.cpu()[999999].item<float>(), 4.0F);
      },
      options);
}

TEST_F(SimulatedLinks, AreHiddenBehindComputation) {
  LocalOptions options;
  options.simulated_clock = true;
  options.inside_node = {0.0, 1e6};
  run_ranks(
      2,
      [](World& world) {
        device::Device& device = device::get_device(fmt::format("sim:{}", world.rank()));
        const auto group = world.make_group({0, 1}, device);
        device::Queue& queue = device.compute_queue();
        const device::QueueGuard guard(queue);
        const at::Tensor in = at::ones({500000}, device.torch_device());
        const at::Tensor out = at::empty({500000}, device.torch_device());
        const std::vector<int64_t> counts(2, 250000);
        // Ten steps: each computes for 1 s while a megabyte goes out and one comes in.
        Group::Pending work;
        for (int step = 0; step < 10; ++step) {
          if (work != nullptr) work->wait(queue);
          work = group->all_to_all(out, counts, in, counts, queue);
          compute(1.0);
        }
        work->wait(queue);
        EXPECT_NEAR(device::sim::simulated_seconds(world.rank()), 10.0, 1e-2);
      },
      options);
}

TEST(LocalWorld, WhatIsNotWaitedForIsNotThereWhereItIsLate) {
  LocalOptions options;
  options.late = true;
  auto worlds = make_local_worlds(2, options);
  std::unique_ptr<Group> groups[2];
  std::thread second([&] { groups[1] = worlds[1]->make_group({0, 1}, cpu()); });
  groups[0] = worlds[0]->make_group({0, 1}, cpu());
  second.join();
  device::Queue& queue = cpu().compute_queue();
  const at::Tensor out = at::zeros({2, 2});
  const at::Tensor other_out = at::zeros({2, 2});
  const auto work = groups[0]->all_gather(out, {2, 2}, at::full({2}, 3.0), queue);
  const auto other = groups[1]->all_gather(other_out, {2, 2}, at::full({2}, 4.0), queue);
  EXPECT_EQ(out.sum().item<float>(), 0);
  EXPECT_FALSE(work->done());
  work->wait(queue);
  EXPECT_EQ(out.sum().item<float>(), 14);
}

TEST(LocalWorld, TransfersBetweenTwoKeepTheirOrder) {
  run_ranks(2, [](World& world) {
    const auto group = world.make_group({0, 1}, cpu());
    device::Queue& queue = cpu().compute_queue();
    const int other = 1 - world.rank();
    std::vector<at::Tensor> got;
    std::vector<Group::Pending> works;
    // Both send first and take afterwards; nobody waits before the end.
    for (int i = 0; i < 20; ++i)
      works.push_back(group->send(at::full({3}, 100.0 * world.rank() + i), other, queue));
    for (int i = 0; i < 20; ++i) {
      got.push_back(at::empty({3}));
      works.push_back(group->receive(got.back(), other, queue));
    }
    for (auto work = works.rbegin(); work != works.rend(); ++work) (*work)->wait(queue);
    for (int i = 0; i < 20; ++i)
      EXPECT_EQ(got[static_cast<size_t>(i)][2].item<float>(), 100.0 * other + i);
  });
}

TEST(LocalWorld, ALinkTakesItsTime) {
  LocalOptions options;
  options.inside_node = {1e-3, 1e7};
  run_ranks(
      4,
      [](World& world) {
        const auto group = world.make_group(all_of(4), cpu());
        device::Queue& queue = cpu().compute_queue();
        const at::Tensor out = at::empty({4, 5000}, at::kByte);
        const auto work = group->all_gather(out, {5000, 5000, 5000, 5000},
                                            at::full({5000}, world.rank(), at::kByte), queue);
        work->wait(queue);
        // Three pieces in and out, one after the other.
        EXPECT_GE(work->end_s() - work->start_s(), 3 * (1e-3 + 5000 / 1e7) - 1e-9);
        for (int from = 0; from < 4; ++from) EXPECT_EQ(out[from][17].item<int>(), from);
      },
      options);
}

TEST(LocalWorld, AWorkThatNobodyWaitsForDoesNoHarm) {
  run_ranks(3, [](World& world) {
    const auto group = world.make_group({0, 1, 2}, cpu());
    device::Queue& queue = cpu().compute_queue();
    group->all_reduce(at::ones({100000}), queue);
    const at::Tensor x = at::ones({4});
    group->all_reduce(x, queue)->wait(queue);
    EXPECT_EQ(x[3].item<float>(), 3);
  });
}

TEST(LocalWorld, SaysWhoDidNotCome) {
  LocalOptions options;
  options.timeout_s = 0.02;
  const auto worlds = make_local_worlds(3, options);
  const std::string barrier = error_of([&] { worlds[1]->barrier(); });
  EXPECT_THAT(barrier, HasSubstr("ranks 0 and 2 (" + this_host() + ") did not come to barrier #0"));
  EXPECT_THAT(barrier, HasSubstr("within 0.02 s"));
}

TEST(LocalWorld, SaysWhoDidNotComeToATransfer) {
  LocalOptions options;
  options.timeout_s = 1.0;  // also for the groups, which all of them make at once
  std::latch over(1);
  const std::string reason =
      "rank 2 (" + this_host() + ") did not come to all_gather #0 of group 0,1,2 within 1 s";
  run_ranks(
      3,
      [&](World& world) {
        const auto group = world.make_group({0, 1, 2}, cpu());
        const auto pair = world.make_group({0, 1}, cpu());
        device::Queue& queue = cpu().compute_queue();
        const at::Tensor out = at::zeros({3});
        Group::Pending work;
        if (world.rank() < 2) work = group->all_gather(out, {1, 1, 1}, at::ones({1}), queue);
        world.barrier();
        if (world.rank() == 0) {
          EXPECT_EQ(error_of([&] { work->wait(queue); }), reason);
          over.count_down();
        } else if (world.rank() == 1) {
          // Another transfer ends with it, and what comes later fails at once.
          const at::Tensor x = at::zeros({1});
          const auto receive = pair->receive(x, 0, queue);
          over.wait();
          EXPECT_TRUE(receive->done());
          EXPECT_EQ(error_of([&] { receive->wait(queue); }),
                    "receive #0 from rank 0 of group 0,1 was ended: " + reason);
          const auto later = group->all_reduce(at::ones({1}), queue);
          EXPECT_TRUE(later->done());
          EXPECT_THROW(later->wait(queue), Error);
        } else {
          over.wait();
        }
      },
      options);
}

TEST(LocalWorld, AnAbortWakesWhoeverWaits) {
  LocalOptions options;
  options.timeout_s = 3600;
  const std::string text = error_of([&] {
    run_ranks(
        4,
        [](World& world) {
          const auto group = world.make_group(all_of(4), cpu());
          device::Queue& queue = cpu().compute_queue();
          if (world.rank() == 3) throw Error(ErrorCode::kDevice, "rank three has had enough");
          if (world.rank() == 2) world.barrier();
          const at::Tensor x = at::zeros({1});
          group->receive(x, 3, queue)->wait(queue);
        },
        options);
  });
  EXPECT_EQ(text, "rank three has had enough");
}

TEST(LocalWorld, AnAbortSaysWhoAndWhy) {
  LocalOptions options;
  options.timeout_s = 3600;
  std::atomic<int> told{0};
  EXPECT_THROW(run_ranks(
                   3,
                   [&](World& world) {
                     const auto group = world.make_group(all_of(3), cpu());
                     if (world.rank() == 1) throw std::runtime_error("no luck");
                     const auto work = group->all_reduce(at::ones({9}), cpu().compute_queue());
                     const std::string text = error_of([&] { work->wait(cpu().compute_queue()); });
                     EXPECT_THAT(text, HasSubstr("rank 1 (" + this_host() + ") gave up: no luck"));
                     EXPECT_THAT(text, HasSubstr("all_reduce #0 of group 0,1,2"));
                     ++told;
                   },
                   options),
               std::runtime_error);
  EXPECT_EQ(told, 2);
}

TEST(LocalWorld, WhoHasEndedIsNotWaitedFor) {
  LocalOptions options;
  options.timeout_s = 3600;
  run_ranks(
      2,
      [](World& world) {
        const auto group = world.make_group({0, 1}, cpu());
        if (world.rank() == 1) return;
        const at::Tensor x = at::zeros({1});
        const auto work = group->receive(x, 1, cpu().compute_queue());
        const std::string text = error_of([&] { work->wait(cpu().compute_queue()); });
        EXPECT_THAT(text, HasSubstr("rank 1 (" + this_host() +
                                    ") has ended and does not come to "
                                    "receive #0 from rank 1 of group 0,1"));
        EXPECT_THAT(error_of([&] { world.barrier(); }), HasSubstr("has ended"));
      },
      options);
}

TEST(LocalWorld, RanksThatWantDifferentThingsAreTold) {
  run_ranks(2, [](World& world) {
    const auto group = world.make_group({0, 1}, cpu());
    device::Queue& queue = cpu().compute_queue();
    const at::Tensor x = at::zeros({4});
    const auto kinds =
        world.rank() == 0 ? group->all_reduce(x, queue) : group->broadcast(x, 0, queue);
    EXPECT_THAT(error_of([&] { kinds->wait(queue); }, ErrorCode::kInternal), HasSubstr("rank"));
    const at::Tensor y = at::zeros({3 + world.rank()});
    const auto sizes = group->all_reduce(y, queue);
    EXPECT_THAT(error_of([&] { sizes->wait(queue); }, ErrorCode::kInternal), HasSubstr("bytes"));
    const at::Tensor z = at::zeros({3}, world.rank() == 0 ? at::kFloat : at::kBFloat16);
    const auto types = world.rank() == 0 ? group->send(z, 1, queue) : group->receive(z, 0, queue);
    EXPECT_THAT(error_of([&] { types->wait(queue); }, ErrorCode::kInternal), HasSubstr("BFloat16"));
    world.barrier();
  });
}

TEST(LocalWorld, TensorsThatDoNotFitAreRefused) {
  run_ranks(2, [](World& world) {
    const auto group = world.make_group({0, 1}, cpu());
    device::Queue& queue = cpu().compute_queue();
    EXPECT_THROW(group->all_gather(at::zeros({3}), {1, 1}, at::zeros({1}), queue), Error);
    EXPECT_THROW(group->all_reduce(at::zeros({4, 4}).t().slice(0, 0, 2), queue), Error);
    EXPECT_THROW(group->all_reduce(at::zeros({4}, at::kLong), queue), Error);
    EXPECT_THROW(group->send(at::zeros({4}), world.rank(), queue), Error);
    EXPECT_THROW(world.make_group({1, 0}, cpu()), Error);
  });
}

TEST(LocalWorld, GroupsAreOfThoseWhoAreNamed) {
  run_ranks(4, [](World& world) {
    const auto odd = world.make_group({1, 3}, cpu());
    EXPECT_EQ(odd != nullptr, world.rank() % 2 == 1);
    if (odd != nullptr) {
      EXPECT_EQ(odd->size(), 2);
      EXPECT_EQ(odd->rank(), world.rank() / 2);
      EXPECT_THAT(odd->members(), ElementsAre(1, 3));
    }
    EXPECT_EQ(world.transport(), "local");
    EXPECT_EQ(world.size(), 4);
    EXPECT_THAT(world.exchange(std::string(static_cast<size_t>(world.rank()), 'x')),
                ElementsAre("", "x", "xx", "xxx"));
    const auto mixed = [&] { world.make_group(world.rank() == 2 ? all_of(3) : all_of(4), cpu()); };
    EXPECT_THAT(error_of(mixed, ErrorCode::kInternal), HasSubstr("makes group 0,1,2"));
    world.barrier();
  });
}

}  // namespace
}  // namespace trireme::comm
