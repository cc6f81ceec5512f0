#include "trireme/execute/rounded_sum.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>

namespace trireme::execute {
namespace {

// Round to the nearest of the floats whose lower 16 bits are zero, ties to the even one (IEEE 754), on the bits.
float rounded(float x) {
  if (std::isnan(x)) return x;
  auto bits = std::bit_cast<uint32_t>(x);
  bits += 0x7fffU + ((bits >> 16U) & 1U);
  return std::bit_cast<float>(bits & 0xffff0000U);
}

TEST(RoundedSumTest, RoundsOperandsAndSum) {
  std::mt19937 random(7);
  // Exponents near one another, so that sums cancel and round; then any bits at all.
  for (const bool any : {false, true}) {
    const int64_t count = (1 << 20) + 12'345;
    at::Tensor left = at::empty({count}, at::kFloat);
    at::Tensor right = at::empty({count}, at::kFloat);
    for (const at::Tensor* tensor : {&left, &right}) {
      for (int64_t i = 0; i < count; ++i) {
        uint32_t bits = random();
        if (!any) bits = (bits & 0x81ffffffU) | 0x3e000000U;
        tensor->mutable_data_ptr<float>()[i] = std::bit_cast<float>(bits);
      }
    }
    // Half-way cases, and what is at the ends of the range.
    const float ties[] = {
        std::bit_cast<float>(0x3f808000U),      std::bit_cast<float>(0x3f818000U),
        std::numeric_limits<float>::max(),      -0.0F,
        std::numeric_limits<float>::infinity(), std::numeric_limits<float>::denorm_min()};
    for (size_t i = 0; i < std::size(ties); ++i) {
      left.mutable_data_ptr<float>()[i] = ties[i];
      right.mutable_data_ptr<float>()[i] = i % 2 == 0 ? 0.0F : ties[i];
    }
    at::Tensor sum = left.clone();
    add_rounded(sum, right);
    at::Tensor half = left.to(at::kBFloat16);
    add_rounded(half, right.to(at::kBFloat16));
    for (int64_t i = 0; i < count; ++i) {
      const float want =
          rounded(rounded(left.data_ptr<float>()[i]) + rounded(right.data_ptr<float>()[i]));
      const float got = sum.data_ptr<float>()[i];
      if (std::isnan(want)) {
        ASSERT_TRUE(std::isnan(got)) << i;
        continue;
      }
      ASSERT_EQ(std::bit_cast<uint32_t>(got), std::bit_cast<uint32_t>(want)) << i;
      ASSERT_EQ(static_cast<float>(half.data_ptr<at::BFloat16>()[i]), want) << i;
    }
  }
}

}  // namespace
}  // namespace trireme::execute
