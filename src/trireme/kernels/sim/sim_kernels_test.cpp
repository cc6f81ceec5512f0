// What ops cost the simulated device, against operations counted by hand. That they compute what the processor does is
// conformance's and the step's to test.
#include "trireme/kernels/sim/sim_kernels.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "trireme/device/device.h"
#include "trireme/device/sim/sim.h"

namespace trireme::kernels {
namespace {

class SimCostTest : public ::testing::Test {
 protected:
  SimCostTest() : device_(device::get_device("sim").torch_device()) {
    // One operation a second, and nothing else takes time.
    auto profile = std::make_shared<device::sim::DeviceProfile>();
    profile->flops_per_s = {{at::kFloat, 1.0}, {at::kBFloat16, 2.0}};
    device::sim::set_profile(profile);
  }
  ~SimCostTest() override { device::sim::set_profile(nullptr); }

  at::Tensor ones(at::IntArrayRef sizes, at::ScalarType dtype = at::kFloat) const {
    return at::ones(sizes, at::TensorOptions().dtype(dtype).device(device_));
  }
  template <class Body>
  double seconds_of(Body body) const {
    device::sim::restart_clock();
    body();
    return device::sim::simulated_seconds(device_.index());
  }

 private:
  at::Device device_;
};

TEST_F(SimCostTest, ProductsTakeTwoOperationsATerm) {
  at::Tensor y = ones({5, 7});
  const double product = 2 * 5 * 3 * 7;
  EXPECT_EQ(seconds_of([&] { linear(ones({5, 3}), ones({7, 3}), {}, {}, y); }), product);
  at::Tensor dx = ones({5, 3});
  EXPECT_EQ(seconds_of([&] { linear_backward_input(ones({5, 7}), ones({7, 3}), dx); }), product);
  at::Tensor dw = ones({7, 3});
  EXPECT_EQ(seconds_of([&] { linear_backward_weight(ones({5, 7}), ones({5, 3}), dw, false); }),
            product);
  at::Tensor low = ones({5, 7}, at::kBFloat16);
  EXPECT_EQ(seconds_of([&] {
              linear(ones({5, 3}, at::kBFloat16), ones({7, 3}, at::kBFloat16), {}, {}, low);
            }),
            product / 2);
}

TEST_F(SimCostTest, AttentionTakesTwoProductsForwardAndFiveBackward) {
  // Two queries and keys of two heads: 2 * 2 * 2 pairs of 4 dimensions, values of 6.
  const at::Tensor q = ones({1, 2, 2, 4});
  const at::Tensor v = ones({1, 2, 2, 6});
  AttentionOptions options;
  options.scale = 0.5;
  at::Tensor out = ones({1, 2, 2, 6});
  const at::Tensor logsumexp = ones({1, 2, 2});
  EXPECT_EQ(seconds_of([&] { attention(q, q, v, options, out, logsumexp); }), 2 * 8 * (4 + 6));
  at::Tensor dq = ones({1, 2, 2, 4});
  at::Tensor dk = ones({1, 2, 2, 4});
  at::Tensor dv = ones({1, 2, 2, 6});
  EXPECT_EQ(
      seconds_of([&] { attention_backward(out, q, q, v, out, logsumexp, options, dq, dk, dv); }),
      2 * 8 * (3 * 4 + 2 * 6));
}

TEST_F(SimCostTest, ExpertsCountEveryRowOnce) {
  const std::vector<at::Tensor> weights = {ones({2, 4, 3}), ones({2, 5, 3})};
  const GroupOffsets offsets = {0, 1, 6};
  const double products = 2 * 6 * (4 + 5) * 3;
  at::Tensor y = ones({6, 9});
  EXPECT_EQ(seconds_of([&] { grouped_linear(ones({6, 3}), weights, offsets, false, y); }),
            products);
  at::Tensor dx = ones({6, 3});
  EXPECT_EQ(seconds_of([&] { grouped_linear_backward_input(y, weights, offsets, dx); }), products);
  EXPECT_EQ(seconds_of([&] { grouped_linear_backward_weight(y, dx, offsets, weights, false); }),
            products);
}

TEST_F(SimCostTest, TheHeadPaysForWhatItIsAsked) {
  const at::Tensor hidden = ones({4, 3});
  const at::Tensor weight = ones({8, 3});
  const at::Tensor targets = at::zeros({4}, hidden.options().dtype(at::kLong));
  const double logits = 2 * 4 * 3 * 8;
  EXPECT_EQ(seconds_of([&] { linear_cross_entropy(hidden, weight, targets, 1.0, 4, {}); }), logits);
  CrossEntropyOutputs both;
  both.d_hidden = ones({4, 3});
  both.d_weight = ones({8, 3});
  EXPECT_EQ(seconds_of([&] { linear_cross_entropy(hidden, weight, targets, 1.0, 4, both); }),
            3 * logits);
}

}  // namespace
}  // namespace trireme::kernels
