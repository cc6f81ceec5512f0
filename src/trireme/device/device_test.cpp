// Every back end keeps the contract of the Device interface.
#include "trireme/device/device.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "trireme/base/error.h"
#include "trireme/device/sim/sim.h"

namespace trireme::device {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;

class DeviceTest : public ::testing::TestWithParam<const char*> {
 protected:
  Device& device_ = get_device(GetParam());
  at::TensorOptions here() const { return at::TensorOptions().device(device_.torch_device()); }
};

TEST_P(DeviceTest, HasANameMemoryAndTypes) {
  EXPECT_EQ(&get_device(GetParam()), &device_);
  EXPECT_FALSE(device_.name().empty());
  EXPECT_THAT(std::string(GetParam()), ::testing::StartsWith(device_.type()));
  EXPECT_GT(device_.total_memory_bytes(), 0);
  const Capabilities can = device_.capabilities();
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kLong, at::kFloat8_e4m3fn}) {
    EXPECT_THAT(can.dtypes, Contains(dtype));
    EXPECT_TRUE(at::empty({2}, here().dtype(dtype)).defined());
  }
  for (const auto dtype : {at::kFloat8_e4m3fn, at::kFloat8_e5m2})
    EXPECT_THAT(can.fp8_kinds, Contains(dtype));
  EXPECT_THAT(can.fp8_kinds, ::testing::Not(Contains(at::kByte)));
}

TEST_P(DeviceTest, CountsMemoryAndCapsIt) {
  const MemoryStatistics before = device_.memory();
  device_.reset_peak_memory();
  {
    const at::Tensor x = at::zeros({1 << 18}, here());
  }
  const MemoryStatistics after = device_.memory();
  EXPECT_EQ(after.allocated_bytes, before.allocated_bytes);
  EXPECT_EQ(after.peak_allocated_bytes, before.allocated_bytes + (1 << 20));
  EXPECT_GE(after.peak_reserved_bytes, 1 << 20);
  EXPECT_GE(after.num_allocations, before.num_allocations + 1);

  device_.set_memory_cap(before.allocated_bytes + (1 << 20));
  EXPECT_EQ(device_.memory().cap_bytes, before.allocated_bytes + (1 << 20));
  EXPECT_NO_THROW(at::zeros({1 << 18}, here()));
  EXPECT_THROW(at::zeros({1 << 19}, here()), std::exception);
  device_.set_memory_cap(0);
  EXPECT_NO_THROW(at::zeros({1 << 19}, here()));
  EXPECT_THROW(device_.set_memory_cap(int64_t{1} << 60), Error);
}

TEST_P(DeviceTest, CopiesThroughPinnedBuffersAndQueues) {
  Queue& compute = device_.compute_queue();
  EXPECT_EQ(&device_.compute_queue(), &compute);
  const std::unique_ptr<Queue> side = device_.new_queue();
  at::Tensor host = device_.empty_pinned({3, 4}, at::kFloat);
  host.copy_(at::arange(12).reshape({3, 4}));
  const at::Tensor x = at::empty({4, 3}, here());
  side->wait_for(*compute.record());
  device_.copy(x.t(), host, *side);
  compute.wait_for(*side->record());
  at::Tensor y = x * 2;
  at::Tensor back = device_.empty_pinned({4, 3}, at::kDouble);
  side->wait_for(*compute.record());
  device_.copy(back, y, *side);
  const std::unique_ptr<Event> done = side->record();
  done->wait();
  EXPECT_TRUE(done->done());
  EXPECT_TRUE(back.equal(at::arange(12, at::kDouble).reshape({3, 4}).t() * 2));
  device_.synchronize();
}

TEST_P(DeviceTest, AGuardMakesAQueueTheOneOfATensCalls) {
  const std::unique_ptr<Queue> side = device_.new_queue();
  const c10::Stream before = device_.compute_queue().torch_stream();
  {
    const QueueGuard guard(*side);
    EXPECT_EQ(device_.compute_queue().torch_stream(), side->torch_stream());
    const at::Tensor x = at::ones({4}, here());
    side->synchronize();
    EXPECT_EQ(x.sum().item<float>(), 4);
  }
  EXPECT_EQ(device_.compute_queue().torch_stream(), before);
}

TEST_P(DeviceTest, EventsReadOneClock) {
  Queue& queue = device_.compute_queue();
  const std::unique_ptr<Event> first = queue.record();
  const std::unique_ptr<Event> second = queue.record();
  second->wait();
  EXPECT_TRUE(first->done());
  EXPECT_LE(first->seconds(), second->seconds());
}

TEST_P(DeviceTest, RandomNumbersFollowFromTheState) {
  device_.seed(7);
  const at::Tensor state = device_.random_state();
  const at::Tensor x = at::randn({20}, here());
  device_.set_random_state(state);
  EXPECT_TRUE(at::randn({20}, here()).equal(x));
  device_.seed(7);
  EXPECT_TRUE(at::randn({20}, here()).equal(x));
}

INSTANTIATE_TEST_SUITE_P(BackEnds, DeviceTest, ::testing::Values("cpu", "sim", "sim:1"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), ':', '_');
                           return name;
                         });

TEST(GetDeviceTest, RefusesUnknownNamesWithTheNearest) {
  const auto refusal = [](const std::string& name) {
    try {
      get_device(name);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), name == "sim:15" ? ErrorCode::kDevice : ErrorCode::kConfig);
      return std::string(error.what()) + "; " + error.hint();
    }
    return std::string();
  };
  EXPECT_THAT(refusal("cpuu"), HasSubstr("did you mean 'cpu'?"));
  EXPECT_THAT(refusal("sin"), HasSubstr("did you mean 'sim'?"));
  EXPECT_THAT(refusal("sim:x"), HasSubstr("no device is called \"sim:x\""));
  EXPECT_THAT(refusal("sim:-1"), HasSubstr("no device is called \"sim:-1\""));
  EXPECT_THAT(refusal("sim:"), HasSubstr("no device is called \"sim:\""));
  EXPECT_THAT(refusal("sim:15"), HasSubstr("no device sim:15"));
  EXPECT_THAT(refusal("abacus"), HasSubstr("known: cpu, sim"));
}

}  // namespace
}  // namespace trireme::device
