// The fault switch and the clock of the simulated device.
#include <ATen/ATen.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <memory>
#include <string>

#include "trireme/base/error.h"
#include "trireme/device/sim/testing/sim_fixture.h"

namespace trireme::device::sim {
namespace {

using ::testing::HasSubstr;

class FaultTest : public SimTest {
 protected:
  static std::string message_of_synchronize(int device = 0) {
    try {
      synchronize_device(device);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kDevice);
      return error.what();
    }
    return "";
  }
};

TEST_F(FaultTest, AnExceptionInWorkIsThrownWhereTheHostWaitsAndStays) {
  bool later = false;
  submit({"explode"}, [] { throw std::runtime_error("a bad address"); });
  submit({"later"}, [&] { later = true; });
  EXPECT_EQ(message_of_synchronize(), "kernel 'explode' failed on sim:0: a bad address");
  EXPECT_FALSE(later);
  EXPECT_THAT(message_of_synchronize(), HasSubstr("explode"));
  EXPECT_THROW(submit({"more"}, [] {}), Error);
  EXPECT_EQ(message_of_synchronize(1), "");  // other devices go on
  recover(0);
  submit({"more"}, [&] { later = true; });
  EXPECT_EQ(message_of_synchronize(), "");
  EXPECT_TRUE(later);
}

TEST_F(FaultTest, TheNthKernelOfANameFails) {
  inject_fault(0, {.kind = Fault::Kind::kFail, .nth = 2, .kernel = "product"});
  int done = 0;
  for (int i = 0; i < 3; ++i) {
    submit({"product"}, [&] { ++done; });
    submit({"other"}, [&] { done += 10; });
  }
  EXPECT_EQ(message_of_synchronize(), "kernel 'product' failed on sim:0: an injected fault");
  EXPECT_EQ(done, 11);
}

TEST_F(FaultTest, OperatorsFailToo) {
  const at::Tensor x = at::ones({2, 2}, on_sim());
  inject_fault(0, {.kind = Fault::Kind::kFail, .kernel = "aten::mm"});
  EXPECT_EQ(x.add(x).sum().item<float>(), 8);
  EXPECT_THROW(x.mm(x), Error);
  recover(0);
  EXPECT_EQ(x.mm(x).sum().item<float>(), 8);
}

TEST_F(FaultTest, AKernelHangsUntilItIsReleased) {
  inject_fault(0, {.kind = Fault::Kind::kHang});
  std::atomic<bool> done{false};
  submit({"slow"}, [&] { done = true; });
  wait_until_hung(0);
  EXPECT_FALSE(guard().queryStream(stream(0)));
  EXPECT_FALSE(done);
  submit(stream(0, 1), {"elsewhere"}, [] {});
  EXPECT_EQ(message_of_synchronize(1), "");
  release_hung(0);
  EXPECT_EQ(message_of_synchronize(), "");
  EXPECT_TRUE(done);
}

TEST_F(FaultTest, AKernelThatHangsIsAbortedUnderEverySchedule) {
  for (const Schedule schedule : {Schedule::kLate, Schedule::kEager, Schedule::kShuffled}) {
    set_schedule(schedule);
    inject_fault(0, {.kind = Fault::Kind::kHang});
    submit({"slow"}, [] {});
    wait_until_hung(0);
    abort_hung(0);
    EXPECT_THAT(message_of_synchronize(),
                HasSubstr("kernel 'slow' failed on sim:0: it did not end"));
    recover(0);
  }
}

TEST_F(FaultTest, ABitFlips) {
  const at::Tensor x = at::empty({4}, on_sim());
  // The sign bit of the second float, little end first.
  inject_fault(0, {.kind = Fault::Kind::kFlipBit, .kernel = "fill", .bit = 63});
  x.fill_(2);
  EXPECT_TRUE(x.cpu().equal(at::tensor({2.f, -2.f, 2.f, 2.f})));
  x.fill_(2);
  EXPECT_TRUE(x.cpu().equal(at::tensor({2.f, 2.f, 2.f, 2.f})));
}

TEST_F(FaultTest, TheNthAllocationFailsOnce) {
  fail_allocation(0, 2);
  const at::Tensor first = at::zeros({4}, on_sim());
  EXPECT_THROW(at::zeros({4}, on_sim()), c10::OutOfMemoryError);
  EXPECT_EQ(at::zeros({4}, on_sim()).sum().item<float>(), 0);
}

// ---- clock ---------------------------------------------------------------------------------------

class SimClockTest : public SimTest {
 protected:
  void SetUp() override {
    SimTest::SetUp();
    auto profile = std::make_shared<DeviceProfile>();
    profile->flops_per_s = {{at::kFloat, 1e12}, {at::kBFloat16, 4e12}};
    profile->bytes_per_s = 1e9;
    profile->host_link_bytes_per_s = 1e8;
    profile->peer_link_bytes_per_s = 5e8;
    profile->launch_latency_s = 1e-3;
    set_profile(profile);
    restart_clock();
  }
  static void issue(int queue,
                    double seconds) {  // of memory traffic at 1e9 bytes/s, plus the launch
    submit(stream(queue), {"piece", {.bytes = (seconds - 1e-3) * 1e9}}, [] {});
  }
};

TEST_F(SimClockTest, WorkTakesItsLaunchAndTheLargerOfArithmeticAndTraffic) {
  submit({"traffic", {.flops = 1e9, .bytes = 5e6}}, [] {});  // 1 ms of flops, 5 ms of bytes
  EXPECT_NEAR(simulated_seconds(0), 0.006, 1e-12);
  submit({"product", {.flops = 2e10, .bytes = 5e6, .dtype = at::kFloat}}, [] {});  // 20 ms
  EXPECT_NEAR(simulated_seconds(0), 0.006 + 0.021, 1e-12);
  submit({"product", {.flops = 2e10, .bytes = 0, .dtype = at::kBFloat16}}, [] {});  // 5 ms
  submit({"late", {}}, [] { add_cost({.bytes = 3e6}); });
  EXPECT_NEAR(simulated_seconds(0), 0.027 + 0.006 + 0.004, 1e-12);
  EXPECT_EQ(simulated_seconds(1), 0);
  restart_clock();
  EXPECT_EQ(simulated_seconds(0), 0);
}

TEST_F(SimClockTest, QueuesOverlapExceptWhereEventsOrderThem) {
  c10::Event copied(c10::DeviceType::PrivateUse1, c10::EventFlag::BACKEND_DEFAULT);
  issue(0, 0.010);
  issue(1, 0.030);
  copied.record(stream(1));
  issue(1, 0.040);
  copied.block(stream(0));
  issue(0, 0.005);
  synchronize(stream(0));
  EXPECT_NEAR(simulated_seconds(0), 0.070, 1e-12);  // queue 1; queue 0 ends at 0.035
  c10::Event end(c10::DeviceType::PrivateUse1, c10::EventFlag::BACKEND_DEFAULT);
  end.record(stream(0));
  end.synchronize();
  EXPECT_NEAR(copied.elapsedTime(end), 40.0,
              1e-9);  // 0.070, which the host has seen, - 0.030; in ms
}

TEST_F(SimClockTest, WhatTheHostIssuesAfterWaitingStartsAfterIt) {
  issue(0, 0.010);
  synchronize(stream(0));
  issue(1, 0.020);
  EXPECT_NEAR(simulated_seconds(0), 0.030, 1e-12);
}

TEST_F(SimClockTest, OperatorsCostTheirBytesAndProductsTheirArithmetic) {
  const at::Tensor a = at::empty({1000, 500}, on_sim());
  const at::Tensor b = at::empty({500, 250}, on_sim());
  at::Tensor out = at::empty({1000, 250}, on_sim());
  synchronize_device(0);
  restart_clock();
  a.fill_(1);  // 2e6 bytes: 2 ms
  EXPECT_NEAR(simulated_seconds(0), 0.003, 1e-12);
  b.fill_(1);             // 0.5e6 bytes
  at::mm_out(out, a, b);  // 2.5e8 flops: 0.25 ms; 2e6 + 0.5e6 + 1e6 bytes: 3.5 ms
  EXPECT_NEAR(simulated_seconds(0), 0.003 + 0.0015 + 0.0045, 1e-12);
  restart_clock();
  out.cpu();  // 1e6 bytes over the host link: 10 ms
  EXPECT_NEAR(simulated_seconds(0), 0.011, 1e-12);
  restart_clock();
  out.to(on_sim(1).device());  // 1e6 bytes between peers: 2 ms
  EXPECT_NEAR(simulated_seconds(0), 0.003, 1e-12);
  EXPECT_NEAR(simulated_seconds(1), 0.003, 1e-12);
}

}  // namespace
}  // namespace trireme::device::sim
