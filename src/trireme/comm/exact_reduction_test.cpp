#include "trireme/comm/exact_reduction.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "trireme/base/error.h"
#include "trireme/cluster/slices.h"
#include "trireme/comm/local/local_world.h"
#include "trireme/comm/testing/collective_check.h"
#include "trireme/device/sim/sim.h"

namespace trireme::comm {
namespace {

constexpr int64_t kElements = 1777;

/// What a lane adds up to: numbers of very different sizes, so that any other order has other bits.
at::Tensor lane_sum(int64_t lane, c10::ScalarType dtype) {
  std::mt19937_64 random(static_cast<uint64_t>(lane) + 1);
  std::normal_distribution<float> normal;
  at::Tensor sum = at::empty({kElements}, at::kFloat);
  for (int64_t i = 0; i < kElements; ++i)
    sum.data_ptr<float>()[i] = normal(random) * std::exp(3 * normal(random));
  return sum.to(dtype);
}

/// The definition: halves first.
at::Tensor tree_sum(int64_t first, int64_t size, c10::ScalarType dtype) {
  if (size == 1) return lane_sum(first, dtype);
  return at::add(tree_sum(first, size / 2, dtype), tree_sum(first + size / 2, size / 2, dtype));
}

struct Layout {
  int ranks;
  int64_t lanes;
  c10::ScalarType dtype;
  ExactReduction::When when;
};

/// What one rank does; its slice, and what it sent.
at::Tensor reduce(World& world, device::Device& device, const Layout& layout, Traffic* traffic) {
  std::vector<int> all;
  for (int rank = 0; rank < layout.ranks; ++rank) all.push_back(rank);
  const auto group = world.make_group(all, device);
  device::Queue& queue = device.compute_queue();
  ExactReduction reduction(*group, cluster::slice_bounds(kElements, layout.ranks, 16), layout.lanes,
                           layout.when);
  const auto options = at::TensorOptions().dtype(layout.dtype).device(device.torch_device());
  const at::Tensor pieces = at::empty({reduction.pieces_elements()}, options);
  std::vector<Group::Pending> works;
  for (int round = 0; round < reduction.rounds(); ++round) {
    at::Tensor sum;
    if (static_cast<size_t>(round) < reduction.nodes().size()) {
      const cluster::LaneNode node = reduction.nodes()[static_cast<size_t>(round)];
      sum = tree_sum(node.first, node.size, layout.dtype).to(options);
    }
    works.push_back(reduction.send(round, sum, pieces, queue));
  }
  for (const Group::Pending& work : works) work->wait(queue);
  const at::Tensor slice = at::empty({reduction.slice_elements()}, options);
  reduction.combine(pieces, slice);
  *traffic = group->traffic();
  return slice.cpu();
}

void check(const Layout& layout, const std::string& device) {
  SCOPED_TRACE(std::to_string(layout.ranks) + " ranks, " + std::to_string(layout.lanes) + " lanes");
  const at::Tensor expected = tree_sum(0, layout.lanes, layout.dtype);
  const std::vector<int64_t> bounds = cluster::slice_bounds(kElements, layout.ranks, 16);
  run_ranks(layout.ranks, [&](World& world) {
    const auto own = static_cast<size_t>(world.rank());
    device::Device& mine =
        device::get_device(device == "cpu" ? device : device + ":" + std::to_string(world.rank()));
    Traffic traffic;
    const at::Tensor slice = reduce(world, mine, layout, &traffic);
    EXPECT_TRUE(testing::same_bits(
        slice, expected.narrow(0, bounds[own], bounds[own + 1] - bounds[own]).clone()));
    // Everything but its own slice, once for each of its nodes.
    const cluster::LaneRange range = cluster::lane_range(world.rank(), layout.ranks, layout.lanes);
    const int64_t nodes =
        layout.when == ExactReduction::When::kEachLane
            ? range.last - range.first
            : static_cast<int64_t>(cluster::cover(range.first, range.last).size());
    EXPECT_EQ(traffic.sent_bytes, nodes * (kElements - slice.numel()) *
                                      static_cast<int64_t>(c10::elementSize(layout.dtype)));
  });
}

TEST(ExactReduction, BitsDoNotDependOnTheNumberOfRanks) {
  for (const int64_t lanes : {1, 2, 4, 8}) {
    for (int ranks = 1; ranks <= lanes; ++ranks) {
      check({ranks, lanes, at::kFloat, ExactReduction::When::kAllLanes}, "cpu");
      check({ranks, lanes, at::kFloat, ExactReduction::When::kEachLane}, "cpu");
    }
  }
}

TEST(ExactReduction, RoundsToBfloat16AtEveryNode) {
  for (int ranks = 1; ranks <= 8; ++ranks)
    check({ranks, 8, at::kBFloat16, ExactReduction::When::kAllLanes}, "cpu");
}

TEST(ExactReduction, OnADevice) {
  device::sim::register_backend({});
  for (int ranks = 1; ranks <= 4; ++ranks)
    check({ranks, 8, at::kFloat, ExactReduction::When::kAllLanes}, "sim");
}

// The order matters: the test's numbers would tell another tree.
TEST(ExactReduction, AnotherOrderHasOtherBits) {
  at::Tensor in_order = lane_sum(0, at::kFloat);
  for (int64_t lane = 1; lane < 8; ++lane) in_order = at::add(in_order, lane_sum(lane, at::kFloat));
  EXPECT_FALSE(testing::same_bits(in_order, tree_sum(0, 8, at::kFloat)));
}

TEST(ExactReduction, RefusesMoreRanksThanLanes) {
  run_ranks(3, [](World& world) {
    const auto group = world.make_group({0, 1, 2}, device::get_device("cpu"));
    EXPECT_THROW(ExactReduction(*group, {0, 1, 2, 3}, 2), Error);
    EXPECT_THROW(ExactReduction(*group, {0, 1, 3}, 4), Error);
  });
}

}  // namespace
}  // namespace trireme::comm
