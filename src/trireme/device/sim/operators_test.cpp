// ATen on the simulated device: copies, views, the CPU fallback, and a training loop beside the CPU.
#include <ATen/ATen.h>
#include <c10/core/Event.h>
#include <c10/core/GradMode.h>
#include <c10/core/StreamGuard.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/variable.h>

#include <vector>

#include "trireme/device/sim/testing/sim_fixture.h"

namespace trireme::device::sim {
namespace {

using ::testing::HasSubstr;

using OperatorsTest = SimTest;

at::Tensor pinned(c10::IntArrayRef sizes) {
  return at::empty(sizes, at::TensorOptions().pinned_memory(true));
}

at::Tensor numbers(c10::IntArrayRef sizes) {
  int64_t count = 1;
  for (const int64_t size : sizes) count *= size;
  return at::arange(count, at::kFloat).reshape(sizes);
}

// ---- copies --------------------------------------------------------------------------------------

TEST_F(OperatorsTest, HostAndDeviceCopiesKeepEveryLayoutAndConvert) {
  const at::Tensor x = numbers({4, 6, 5});
  const std::vector<at::Tensor> layouts = {x,
                                           x.transpose(0, 2),
                                           x.narrow(1, 2, 3),
                                           x.select(2, 1),
                                           x[1][2][3],
                                           x.select(0, 0).expand({3, 6, 5})};
  for (const at::Tensor& host : layouts) {
    const at::Tensor device = host.to(on_sim().device());
    EXPECT_TRUE(device.cpu().equal(host));
    at::Tensor back = at::empty(host.sizes(), at::kDouble);
    back.copy_(device);
    EXPECT_TRUE(back.equal(host.to(at::kDouble)));
    EXPECT_TRUE(device.to(at::kBFloat16).cpu().equal(host.to(at::kBFloat16)));
  }
  // Views of one device tensor, as source and as target.
  const at::Tensor device = x.to(on_sim().device());
  EXPECT_TRUE(device.transpose(0, 1).cpu().equal(x.transpose(0, 1)));
  device.narrow(2, 1, 2).copy_(at::full({4, 6, 2}, -1.0f));
  at::Tensor expected = x.clone();
  expected.narrow(2, 1, 2).fill_(-1);
  EXPECT_TRUE(device.cpu().equal(expected));
  device.select(0, 1).t().copy_(device.select(0, 2).t().contiguous());
  expected.select(0, 1).copy_(expected.select(0, 2));
  EXPECT_TRUE(device.cpu().equal(expected));
}

TEST_F(OperatorsTest, APinnedCopyToTheHostIsLate) {
  const at::Tensor device = at::full({4}, 3.0f, on_sim());
  at::Tensor host = pinned({4});
  EXPECT_TRUE(host.is_pinned());
  host.zero_();
  host.copy_(device, /*non_blocking=*/true);
  EXPECT_EQ(host.sum().item<float>(), 0);  // read too early
  synchronize();
  EXPECT_EQ(host.sum().item<float>(), 12);
}

TEST_F(OperatorsTest, APinnedSourceThatIsChangedTooEarlyIsCopiedChanged) {
  at::Tensor host = pinned({4});
  host.fill_(1);
  const at::Tensor device = at::empty({4}, on_sim());
  device.copy_(host, /*non_blocking=*/true);
  host.fill_(2);
  EXPECT_EQ(device.cpu().sum().item<float>(), 8);
}

TEST_F(OperatorsTest, APinnedBufferLivesUntilItsCopyIsDone) {
  at::Tensor host = pinned({4});
  host.fill_(5);
  const at::Tensor device = at::empty({4}, on_sim());
  device.copy_(host, /*non_blocking=*/true);
  host = at::Tensor();
  EXPECT_EQ(device.cpu().sum().item<float>(), 20);
}

TEST_F(OperatorsTest, AnOrdinaryHostTensorIsWaitedFor) {
  at::Tensor host = at::ones({4});
  EXPECT_FALSE(host.is_pinned());
  const at::Tensor device = at::empty({4}, on_sim());
  device.copy_(host, /*non_blocking=*/true);
  host.fill_(2);
  EXPECT_EQ(device.cpu().sum().item<float>(), 4);
  host.copy_(device, /*non_blocking=*/true);
  EXPECT_EQ(host.sum().item<float>(), 4);
}

TEST_F(OperatorsTest, PeerCopiesAreOrderedOnBothSides) {
  const at::Tensor x = at::full({3, 4}, 2.0f, on_sim(0));
  const at::Tensor y = at::empty({4, 3}, on_sim(1));
  y.copy_(x.t(), /*non_blocking=*/true);
  x.fill_(9);  // after the copy, on its stream
  EXPECT_EQ(y.sum().item<float>(), 24);
  EXPECT_EQ(y.device().index(), 1);
  EXPECT_EQ(x.to(y.device()).to(x.device()).sum().item<float>(), 108);
}

// ---- views and sizes -----------------------------------------------------------------------------

TEST_F(OperatorsTest, ViewsShareMemory) {
  const at::Tensor x = numbers({2, 6}).to(on_sim().device());
  x.view({3, 4})[1].zero_();
  x.reshape({12}).unfold(0, 2, 5)[1].fill_(7);
  EXPECT_TRUE(x.cpu().equal(at::tensor({0., 1., 2., 3., 0., 7., 7., 0., 8., 9., 10., 11.})
                                .to(at::kFloat)
                                .reshape({2, 6})));
}

TEST_F(OperatorsTest, ResizingKeepsWhatWasThere) {
  const at::Tensor x = numbers({4}).to(on_sim().device());
  x.resize_({2, 4});
  EXPECT_TRUE(x.cpu()[0].equal(numbers({4})));
  x.resize_({3});
  EXPECT_TRUE(x.cpu().equal(numbers({3})));
  at::Tensor out = at::empty({0}, on_sim());
  at::mm_out(out, x.view({3, 1}), x.view({1, 3}));
  EXPECT_TRUE(out.cpu().equal(numbers({3, 1}).mm(numbers({1, 3}))));
}

// ---- fallback ------------------------------------------------------------------------------------

TEST_F(OperatorsTest, ATensorWithoutElementsKeepsItsShapeInPlace) {
  const at::Tensor x = at::empty({0, 8}, on_sim());
  x.clamp_(-1.0, 1.0);
  x.add_(at::ones({8}, on_sim()));
  EXPECT_EQ(x.sizes(), (std::vector<int64_t>{0, 8}));
  at::Tensor out = at::empty({0}, on_sim());  // an output, though, is resized
  at::add_out(out, at::ones({2, 3}, on_sim()), at::ones({3}, on_sim()));
  EXPECT_EQ(out.sizes(), (std::vector<int64_t>{2, 3}));
  EXPECT_TRUE(at::equal(out.cpu(), at::full({2, 3}, 2.0)));
}

TEST_F(OperatorsTest, FallbacksAreCountedByName) {
  const at::Tensor x = at::ones({2, 2}, on_sim());
  EXPECT_TRUE(fallback_counts().empty());
  at::Tensor y = x.mm(x);
  y.mul_(x);
  y.mul_(2);
  EXPECT_EQ(y.cpu().sum().item<float>(), 16);
  const auto counts = fallback_counts();
  EXPECT_EQ(counts.at("aten::mm.out"), 1);
  EXPECT_EQ(counts.count("aten::_copy_from"), 0u);
}

TEST_F(OperatorsTest, WhatACallGetsWrongIsAnErrorOfTheCallOnly) {
  const at::Tensor x = at::ones({2, 3}, on_sim());
  EXPECT_THROW(x.mm(x), c10::Error);
  EXPECT_THROW(at::nonzero_static(x, /*size=*/-1), c10::Error);
  try {
    x.mm(at::ones({3, 2}));
    FAIL() << "a host tensor was taken";
  } catch (const c10::Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("on the CPU"));
  }
  EXPECT_THROW(x.add(at::ones({2, 3}, on_sim(1))), c10::Error);
  EXPECT_EQ(x.sum().item<float>(), 6);  // the device goes on
}

TEST_F(OperatorsTest, ListsIndicesAndSeveralResults) {
  const at::Tensor host = numbers({6, 4}).flip({1});
  const at::Tensor x = host.to(on_sim().device());
  const at::Tensor index = at::tensor({4, 0, 5});
  EXPECT_TRUE(x.index({index.to(x.device())}).cpu().equal(host.index({index})));
  EXPECT_TRUE(x.index({index}).cpu().equal(host.index({index})));
  EXPECT_TRUE(at::cat({x, x}, 1).cpu().equal(at::cat({host, host}, 1)));
  const auto [values, places] = x.topk(2);
  const auto [host_values, host_places] = host.topk(2);
  EXPECT_TRUE(values.cpu().equal(host_values));
  EXPECT_TRUE(places.cpu().equal(host_places));
  std::vector<at::Tensor> list = {x.clone(), x.clone()};
  at::_foreach_mul_(list, 3);
  EXPECT_TRUE(list[1].cpu().equal(host * 3));
}

TEST_F(OperatorsTest, RandomNumbersFollowFromTheDevicesStateAsOnTheCpu) {
  at::Generator generator = Runtime::get().device(0).generator;
  generator.set_current_seed(11);
  const at::Tensor state = generator.get_state();
  const at::Tensor x = at::randn({50}, on_sim());
  at::Generator cpu = at::detail::createCPUGenerator(11);
  EXPECT_TRUE(x.cpu().equal(at::randn({50}, cpu)));
  generator.set_state(state);
  EXPECT_TRUE(at::randn({50}, on_sim()).equal(x));
  EXPECT_FALSE(at::randn({50}, on_sim()).equal(x));
}

// ---- training ------------------------------------------------------------------------------------

/// Ten steps of a two-layer network; returns its weights and last loss, on the CPU.
std::vector<at::Tensor> train(c10::Device device) {
  at::Generator random = at::detail::createCPUGenerator(3);
  const auto made = [&](c10::IntArrayRef sizes) {
    return (at::randn(sizes, random) * 0.3).to(device);
  };
  std::vector<at::Tensor> weights = {made({8, 16}), made({16}), made({16, 4})};
  for (at::Tensor& w : weights) w.requires_grad_(true);
  const at::Tensor x = made({32, 8});
  const at::Tensor target = at::randint(4, {32}, random, at::kLong).to(device);
  at::Tensor loss;
  for (int step = 0; step < 10; ++step) {
    const at::Tensor hidden = at::gelu(at::addmm(weights[1], x, weights[0]));
    loss = at::cross_entropy_loss(hidden.mm(weights[2]), target);
    const auto gradients = torch::autograd::grad({loss}, {weights.begin(), weights.end()});
    const c10::AutoGradMode no_grad(false);
    for (size_t i = 0; i < weights.size(); ++i) weights[i].sub_(gradients[i], 0.5);
  }
  std::vector<at::Tensor> result = {loss.detach().cpu()};
  for (const at::Tensor& w : weights) result.push_back(w.detach().cpu());
  return result;
}

TEST_F(OperatorsTest, ATrainingLoopIsBitEqualToTheCpuUnderEverySchedule) {
  const std::vector<at::Tensor> expected = train(c10::Device(c10::DeviceType::CPU));
  for (const Schedule schedule : {Schedule::kLate, Schedule::kEager, Schedule::kShuffled}) {
    set_schedule(schedule, 5);
    const std::vector<at::Tensor> got = train(on_sim(1).device());
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_TRUE(got[i].equal(expected[i]))
          << "schedule " << static_cast<int>(schedule) << ", " << i;
    }
  }
  EXPECT_LT(expected[0].item<float>(), std::log(4.0f));  // it has learned something
}

}  // namespace
}  // namespace trireme::device::sim
