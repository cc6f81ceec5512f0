// The emulation does what a device does, and finds what a device would not show each time.
#include "trireme/kernels/cuda/emulation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#include "trireme/kernels/cuda/gpu.h"

namespace trireme::kernels::gpu {
namespace {

class EmulationTest : public ::testing::TestWithParam<emulation::Order> {
 protected:
  EmulationTest() { emulation::set_order(GetParam()); }
};

__global__ void write_index(unsigned* out) {
  out[blockIdx.x * blockDim.x + threadIdx.x] = blockIdx.x * 1000 + threadIdx.x;
}

TEST_P(EmulationTest, RunsEveryThreadOfEveryBlock) {
  std::vector<unsigned> out(3 * 70);
  launch("write_index", &write_index, 3, 70, 0, nullptr, out.data());
  for (unsigned i = 0; i < out.size(); ++i) EXPECT_EQ(out[i], i / 70 * 1000 + i % 70);
}

/// Each thread's value from the one at the other end of the block, twice over.
__global__ void reverse(int* values, bool with_barrier) {
  __shared__ int shared[128];
  for (int round = 0; round < 2; ++round) {
    shared[threadIdx.x] = values[threadIdx.x];
    if (with_barrier) __syncthreads();
    values[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x] + 1;
    if (with_barrier) __syncthreads();
  }
}

std::vector<int> reversed_twice(bool with_barrier) {
  std::vector<int> values(128);
  std::iota(values.begin(), values.end(), 0);
  launch("reverse", &reverse, 1, 128, 0, nullptr, values.data(), with_barrier);
  return values;
}

TEST_P(EmulationTest, BarriersHoldThreadsTogether) {
  const std::vector<int> values = reversed_twice(true);
  for (int i = 0; i < 128; ++i) EXPECT_EQ(values[static_cast<size_t>(i)], i + 2);
}

TEST(EmulationOrderTest, AMissingBarrierShowsInTheOrder) {
  emulation::set_order(emulation::Order::kForward);
  const std::vector<int> forward = reversed_twice(false);
  emulation::set_order(emulation::Order::kBackward);
  EXPECT_NE(forward, reversed_twice(false));
}

/// Two sums over the block through the same scratch, without a barrier between the first's reading and the second's writing.
__global__ void hasty_sums(const float* x, float* first, bool with_barrier) {
  __shared__ float scratch[kBlock / kWarp];
  for (int round = 0; round < 2; ++round) {
    const float sum = warp_reduce(x[threadIdx.x] * static_cast<float>(1 + round), Sum{});
    if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = sum;
    __syncthreads();
    float total = 0.0F;
    for (int i = 0; i < kBlock / kWarp; ++i) total += scratch[i];
    if (round == 0) first[threadIdx.x] = total;
    if (with_barrier) __syncthreads();
  }
}

TEST_P(EmulationTest, AWarpThatRunsAheadShowsScratchThatIsUsedTooSoon) {
  const std::vector<float> x(kBlock, 1.0F);
  std::vector<float> first(kBlock);
  launch("hasty_sums", &hasty_sums, 1, kBlock, 0, nullptr, x.data(), first.data(), true);
  EXPECT_EQ(std::count(first.begin(), first.end(), 256.0F), kBlock);
  launch("hasty_sums", &hasty_sums, 1, kBlock, 0, nullptr, x.data(), first.data(), false);
  EXPECT_LT(std::count(first.begin(), first.end(), 256.0F), kBlock);
}

/// Sums of squares by teams of a warp and of the block.
__global__ void team_sums(const float* x, float* of_warp, float* of_block, int64_t* largest) {
  __shared__ float scratch[kBlock / kWarp];
  __shared__ int64_t whole[kBlock / kWarp];
  const float value = x[threadIdx.x];
  of_warp[threadIdx.x] = team_reduce<kWarp>(value, scratch, Sum{});
  of_block[threadIdx.x] = team_reduce<kBlock>(value, scratch, Sum{});
  largest[threadIdx.x] = team_reduce<kBlock>(static_cast<int64_t>(value), whole, Max{});
}

TEST_P(EmulationTest, TeamsGetTheSameSum) {
  std::vector<float> x(kBlock);
  std::iota(x.begin(), x.end(), -100.0F);  // sums of small integers are exact
  std::vector<float> of_warp(kBlock);
  std::vector<float> of_block(kBlock);
  std::vector<int64_t> largest(kBlock);
  launch("team_sums", &team_sums, 1, kBlock, 0, nullptr, x.data(), of_warp.data(), of_block.data(),
         largest.data());
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t first = i / kWarp * kWarp;
    EXPECT_EQ(of_warp[i], std::accumulate(x.begin() + static_cast<int64_t>(first),
                                          x.begin() + static_cast<int64_t>(first) + kWarp, 0.0F));
    EXPECT_EQ(of_block[i], std::accumulate(x.begin(), x.end(), 0.0F));
    EXPECT_EQ(largest[i], 155);
  }
}

__global__ void read_shared(float* out) {
  GPU_DYNAMIC_SHARED(shared);
  out[blockIdx.x] = shared[5];
  shared[5] = 1.0F;
}

TEST_P(EmulationTest, SharedMemoryOfABlockBeginsAsNan) {
  std::vector<float> out(2);
  launch("read_shared", &read_shared, 2, 1, 64, nullptr, out.data());
  EXPECT_TRUE(std::isnan(out[0]) && std::isnan(out[1]));
}

__global__ void some_wait(bool in_warp) {
  if (threadIdx.x < 16) return;
  if (in_warp) {
    static_cast<void>(__shfl_xor_sync(kAllLanes, 1.0F, 1));
  } else if (threadIdx.x < 48) {
    __syncthreads();
  } else {
    static_cast<void>(__shfl_xor_sync(kAllLanes, 1.0F, 1));
  }
}

TEST_P(EmulationTest, ABarrierThatIsNotReachedIsAnError) {
  EXPECT_THROW(launch("some_wait", &some_wait, 1, 64, 0, nullptr, true), std::logic_error);
  EXPECT_THROW(launch("some_wait", &some_wait, 1, 64, 0, nullptr, false), std::logic_error);
  // And the next launch is not disturbed.
  EXPECT_EQ(reversed_twice(true)[7], 9);
}

TEST_P(EmulationTest, ThreadsThatAreDoneAreNotWaitedFor) {
  // As on a device: the others of the block pass its barrier.
  static const auto kernel = +[](int* out) {
    if (threadIdx.x >= 32) return;
    __syncthreads();
    out[threadIdx.x] = 1;
  };
  std::vector<int> out(32);
  launch("kernel", kernel, 1, 64, 0, nullptr, out.data());
  EXPECT_EQ(std::accumulate(out.begin(), out.end(), 0), 32);
}

INSTANTIATE_TEST_SUITE_P(Orders, EmulationTest,
                         ::testing::Values(emulation::Order::kForward,
                                           emulation::Order::kBackward));

/// By hand: 1 + 2^-8 is half a step of bfloat16 above 1 (to even: down), 1 + 3 * 2^-8 half a step below 1 + 2^-6 (up).
TEST(Bf16Test, RoundsToNearestEven) {
  const auto bits = [](float x) { return rounded<Bf16>(x).bits; };
  EXPECT_EQ(bits(1.0F), 0x3f80);
  EXPECT_EQ(bits(1.0F + 0x1p-8F), 0x3f80);
  EXPECT_EQ(bits(1.0F + 0x1p-8F + 0x1p-20F), 0x3f81);
  EXPECT_EQ(bits(1.0F + 3 * 0x1p-8F), 0x3f82);
  EXPECT_EQ(bits(-0.0F), 0x8000);
  EXPECT_EQ(bits(0x1.fffffep127F), 0x7f80);  // the largest float32 is beyond half a step
  EXPECT_EQ(bits(INFINITY), 0x7f80);
  EXPECT_EQ(bits(0x1p-149F), 0x0000);
  EXPECT_EQ(bits(0x1p-133F), 0x0001);  // the smallest denormal bfloat16
  // A NaN whose upper half alone would be an infinity stays a NaN.
  EXPECT_TRUE(std::isnan(wide(rounded<Bf16>(__uint_as_float(0x7f800001U)))));
  for (uint32_t i = 0; i < 65536; ++i) {
    const float x = wide(Bf16{static_cast<uint16_t>(i)});
    if (std::isnan(x)) continue;
    ASSERT_EQ(bits(x), i);
  }
}

}  // namespace
}  // namespace trireme::kernels::gpu
