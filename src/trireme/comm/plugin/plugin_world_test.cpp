// A device's own collectives: tests/devices/collectives, which the tests' plug-in device has, on the processor.
#include "trireme/comm/plugin/plugin_world.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <functional>
#include <thread>
#include <torch/csrc/distributed/c10d/HashStore.hpp>

#include "trireme/base/error.h"
#include "trireme/comm/gloo/gloo_world.h"
#include "trireme/comm/plugin/collectives_library.h"
#include "trireme/comm/rank_threads.h"
#include "trireme/comm/testing/collective_check.h"
#include "trireme/comm/testing/world_calls.h"

namespace trireme::comm {
namespace {

using ::testing::AllOf;
using testing::cpu;
using testing::error_of;
using ::testing::HasSubstr;

const std::string kFolder = TRIREME_TEST_DEVICES "/";
const std::string kLibrary = kFolder + "libtrireme_abacus_collectives.so";

class PluginWorldTest : public ::testing::Test {
 protected:
  void SetUp() override { use_collectives("cpu", kLibrary); }
  void TearDown() override {
    use_collectives("cpu", "host");
    ::unsetenv("STORE_COLLECTIVES");
  }

  /// `timeout_s`: of transfers, not of meeting.
  static void run_ranks(int size, const std::function<void(World&)>& body,
                        double timeout_s = 60.0) {
    const auto store = c10::make_intrusive<c10d::HashStore>();
    run_rank_threads(
        size,
        [&](int rank) {
          return make_plugin_world(make_gloo_world(store, rank, size), store, timeout_s);
        },
        body);
  }
};

TEST_F(PluginWorldTest, TransfersDoWhatPlainLoopsDo) {
  for (uint64_t seed = 0; seed < 8; ++seed) {
    ::setenv("STORE_COLLECTIVES", seed % 2 == 0 ? "coalesced" : "sequential", 1);
    const int size = 1 + static_cast<int>(seed % 4);
    const auto groups = testing::draw_groups(seed, size);
    run_ranks(size,
              [&](World& world) { testing::check_transfers(world, cpu(), seed, 20, groups); });
  }
}

TEST_F(PluginWorldTest, BytesGoTheirWay) {
  run_ranks(2, [](World& world) {
    const auto group = world.make_group({0, 1}, cpu());
    device::Queue& queue = cpu().compute_queue();
    at::Tensor mine = at::full({3}, 1.5 + world.rank());
    at::Tensor both = at::empty({6});
    const auto work = group->all_gather(both, {3, 3}, mine, queue);
    EXPECT_FALSE(work->done());  // the library brings nothing before it is waited for
    work->wait(queue);
    EXPECT_TRUE(work->done());
    EXPECT_GE(work->end_s(), work->start_s());
    EXPECT_TRUE(at::equal(both, at::tensor({1.5F, 1.5F, 1.5F, 2.5F, 2.5F, 2.5F})));
    EXPECT_EQ(group->traffic().sent_bytes, 12);
  });
}

TEST_F(PluginWorldTest, WithoutALibraryTheHostCarries) {
  use_collectives("cpu", "host");
  EXPECT_EQ(collectives_of("cpu"), "");
  run_ranks(2, [](World& world) {
    testing::check_transfers(world, cpu(), 3, 5, testing::draw_groups(3, 2));
  });
}

TEST_F(PluginWorldTest, AnAbortEndsWhatIsUnderWay) {
  run_ranks(2, [](World& world) {
    const auto group = world.make_group({0, 1}, cpu());
    device::Queue& queue = cpu().compute_queue();
    if (world.rank() == 1) {
      world.abort("the loss is nan");
    } else {
      at::Tensor tensor = at::empty({2});
      const auto work = group->receive(tensor, 1, queue);
      std::thread other([&] { world.abort("rank 1 stopped the run: the loss is nan"); });
      EXPECT_THAT(error_of([&] { work->wait(queue); }, ErrorCode::kDevice),
                  HasSubstr("the loss is nan"));
      other.join();
    }
    EXPECT_THAT(error_of([&] { world.check(); }, ErrorCode::kDevice), HasSubstr("the loss is nan"));
    EXPECT_THAT(error_of([&] { group->broadcast(at::empty({1}), 0, queue); }, ErrorCode::kDevice),
                HasSubstr("the loss is nan"));
  });
}

TEST_F(PluginWorldTest, ATransferThatFailsIsNamed) {
  run_ranks(
      2,
      [](World& world) {
        const auto group = world.make_group({0, 1}, cpu());
        if (world.rank() == 1) return;
        device::Queue& queue = cpu().compute_queue();
        at::Tensor tensor = at::empty({2});
        const auto work = group->receive(tensor, 1, queue);
        EXPECT_THAT(error_of([&] { work->wait(queue); }, ErrorCode::kDevice),
                    AllOf(HasSubstr("receive #0 from rank 1 of group 0,1 failed"),
                          HasSubstr("nothing came from rank 1")));
      },
      0.2);
}

TEST(CollectivesLibrary, SaysWhatIsWrong) {
  const auto refusal = [](const std::string& path) {
    return error_of([&] { use_collectives("cpu:0", path); }, ErrorCode::kConfig);
  };
  EXPECT_THAT(refusal("absent.so"), HasSubstr("the collectives absent.so do not open"));
  EXPECT_THAT(refusal(kFolder + "../my_rms_norm.so"), HasSubstr("is no library of collectives"));
  EXPECT_THAT(refusal(kFolder + "libstale_collectives.so"),
              HasSubstr("was built for another Trireme: contract 2, here 1"));
  EXPECT_EQ(collectives_of("cpu"), "");
}

TEST(CollectivesLibrary, IsFoundByTheDevicesType) {
  ::setenv("TRIREME_DEVICE_PATH", TRIREME_TEST_DEVICES, 1);
  use_collectives("abacus:1", "");
  EXPECT_EQ(collectives_of("abacus"), kLibrary);
  EXPECT_EQ(collectives_of("abacas"), "");
  ::unsetenv("TRIREME_DEVICE_PATH");
}

}  // namespace
}  // namespace trireme::comm
