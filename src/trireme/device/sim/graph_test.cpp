// Work that the simulated device records: what the conformance suite cannot ask of any device.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trireme/base/error.h"
#include "trireme/device/device.h"
#include "trireme/device/sim/testing/sim_fixture.h"

namespace trireme::device::sim {
namespace {

using ::testing::HasSubstr;

class GraphTest : public SimTest {
 protected:
  Device& device() { return get_device("sim"); }
};

TEST_F(GraphTest, WaitingWhileItIsRecordedIsAnErrorThatNamesTheLastKernel) {
  const at::Tensor x = at::full({4}, 2, on_sim());
  const auto refused = [&](const std::function<void()>& work) {
    try {
      device().record(
          [&] {
            submit({"the last kernel"}, [] {});
            work();
          },
          device().new_graph_memory());
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kDevice);
      return std::string(error.what());
    }
    return std::string("nothing was thrown");
  };
  EXPECT_THAT(refused([] { synchronize(); }),
              HasSubstr("work is waited for while work is recorded, after 'the last kernel'"));
  EXPECT_THAT(refused([&] { device().synchronize(); }), HasSubstr("the device is waited for"));
  EXPECT_THAT(refused([&] { device().compute_queue().record(); }),
              HasSubstr("an event is recorded"));
  EXPECT_THAT(refused([&] { x.cpu(); }), HasSubstr("while work is recorded"));
  EXPECT_TRUE(at::equal(x.cpu(), at::full({4}, 2)));
}

TEST_F(GraphTest, MemoryIsHeldForAsLongAsItCanRun) {
  constexpr int64_t kBytes = int64_t{1} << 20;
  const int64_t before = device().memory().allocated_bytes;
  {
    const auto graph = device().record(
        [&] {
          // One after the other: they share a block.
          for (int i = 0; i < 5; ++i) at::empty({kBytes}, on_sim().dtype(at::kByte)).fill_(1);
        },
        device().new_graph_memory());
    EXPECT_EQ(device().memory().allocated_bytes - before, kBytes);
    graph->replay(device().compute_queue());
    EXPECT_EQ(device().memory().allocated_bytes - before, kBytes);
  }
  synchronize();
  EXPECT_EQ(device().memory().allocated_bytes, before);
}

TEST_F(GraphTest, OneCallLaunchesAllOfIt) {
  DeviceProfile profile;
  profile.launch_latency_s = 1e-3;
  profile.bytes_per_s = 1e9;
  const auto seconds = [&](bool recorded) {
    const at::Tensor x = at::full({1}, 1, on_sim());
    const auto work = [&] {
      for (int i = 0; i < 10; ++i) submit({"one", {.bytes = 1e6}}, [] {});
    };
    std::unique_ptr<Graph> graph;
    if (recorded) graph = device().record(work, device().new_graph_memory());
    synchronize();
    set_profile(std::make_shared<DeviceProfile>(profile));
    restart_clock();
    if (recorded) {
      graph->replay(device().compute_queue());
    } else {
      work();
    }
    const double end = simulated_seconds(0);
    set_profile(nullptr);
    return end;
  };
  EXPECT_NEAR(seconds(false), 10 * 1e-3 + 10 * 1e-3, 1e-9);
  EXPECT_NEAR(seconds(true), 1e-3 + 10 * 1e-3, 1e-9);
}

TEST_F(GraphTest, AFaultMeetsAKernelOfIt) {
  inject_fault(0, {.kind = Fault::Kind::kFail, .nth = 3, .kernel = "one"});
  const auto graph = device().record([] { submit({"one"}, [] {}); }, device().new_graph_memory());
  Queue& queue = device().compute_queue();
  graph->replay(queue);
  graph->replay(queue);
  queue.synchronize();
  graph->replay(queue);
  EXPECT_THROW(queue.synchronize(), Error);
}

}  // namespace
}  // namespace trireme::device::sim
