#include "trireme/train/kernel_times.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <stdexcept>

namespace trireme::train {
namespace {

TEST(KernelTimesTest, CountsWhatRan) {
  device::Device& device = device::get_device("cpu");
  const at::Tensor x = at::ones({64, 64});
  const std::vector<KernelTime> times = kernel_times(device, [&] {
    for (int i = 0; i < 3; ++i) static_cast<void>(at::mm(x, x));
  });
  const auto mm = std::ranges::find(times, "aten::mm", &KernelTime::name);
  ASSERT_NE(mm, times.end());
  EXPECT_EQ(mm->calls, 3);
  EXPECT_GT(mm->seconds, 0.0);
  EXPECT_TRUE(std::ranges::is_sorted(times, std::ranges::greater(), &KernelTime::seconds));
}

TEST(KernelTimesTest, StopsWhereTheWorkFails) {
  device::Device& device = device::get_device("cpu");
  EXPECT_THROW(kernel_times(device, [] { throw std::runtime_error("no"); }), std::runtime_error);
  EXPECT_NO_THROW(kernel_times(device, [] { static_cast<void>(at::ones({1})); }));
}

}  // namespace
}  // namespace trireme::train
