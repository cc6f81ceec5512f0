#include "trireme/kernels/cpu/flat.h"

#include <ATen/Parallel.h>

#include <cmath>

#include "trireme/kernels/cpu/test_tensors.h"
#include "trireme/kernels/ops.h"
#include "trireme/kernels/ref/reference.h"

namespace trireme::kernels {
namespace {

TEST(AdamWTest, MatchesReferenceOverManySteps) {
  const int64_t n = 1003;
  at::Tensor w = random_tensor({n}, at::kFloat, 1);
  at::Tensor m = at::zeros({n});
  at::Tensor v = at::zeros({n});
  at::Tensor low = garbage({n}, at::kBFloat16);
  auto w_ref = values_of(w);
  auto m_ref = values_of(m);
  auto v_ref = values_of(v);
  AdamWParams params;
  params.weight_decay = 0.1;
  params.gradient_scale = 0.7;
  for (int step = 1; step <= 20; ++step) {
    const at::Tensor g = random_tensor({n}, at::kFloat, static_cast<uint32_t>(100 + step), 0.01);
    params.step = step;
    params.lr = 1e-2 / step;
    adamw_(w, g, m, v, low, params);
    ref::adamw(w_ref, values_of(g), m_ref, v_ref, params);
  }
  expect_close(w, w_ref, 1e-6, "weights");
  expect_close(m, m_ref, 2e-6, "exp_avg");
  expect_close(v, v_ref, 2e-6, "exp_avg_sq");
  EXPECT_TRUE(same_bits(low, w.to(at::kBFloat16)));
}

TEST(FlatTest, SumOfSquaresIsExactEnoughAndIndependentOfThreads) {
  const int threads = at::get_num_threads();
  for (const int64_t n : {0, 1, 77, 200001}) {
    const at::Tensor x = random_tensor({n}, at::kFloat, 5);
    double expected = 0.0;
    for (const double value : values_of(x)) expected += value * value;
    at::set_num_threads(1);
    const double one = sum_of_squares(x);
    at::set_num_threads(3);
    EXPECT_EQ(sum_of_squares(x), one);
    EXPECT_NEAR(one, expected, 1e-12 * expected);
  }
  at::set_num_threads(threads);
}

TEST(FlatTest, SquaresOfABlockAreItsOwn) {
  const int threads = at::get_num_threads();
  for (const int64_t n : {0, 1, 1023, 1024, 1025, 200001}) {
    const at::Tensor x = random_tensor({n}, at::kFloat, 7);
    const int64_t blocks = (n + kSquaresBlock - 1) / kSquaresBlock;
    at::Tensor sums = garbage({blocks}, at::kDouble);
    at::set_num_threads(3);
    squares_by_block(x, sums);
    at::set_num_threads(1);
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t count = std::min(kSquaresBlock, n - b * kSquaresBlock);
      const at::Tensor block = x.narrow(0, b * kSquaresBlock, count).clone();
      double expected = 0.0;
      for (const double value : values_of(block)) expected += value * value;
      EXPECT_NEAR(sums[b].item<double>(), expected, 1e-13 * expected);
      at::Tensor alone = garbage({1}, at::kDouble);
      squares_by_block(block, alone);
      EXPECT_EQ(alone.item<double>(), sums[b].item<double>());
    }
  }
  at::set_num_threads(threads);
}

TEST(FlatTest, ScaledSumIsOneMultiplyAddOnTheFirstProduct) {
  for (const int64_t n : {0, 1, 15, 16, 17, 40001}) {
    const at::Tensor x = random_tensor({n}, at::kFloat, 1);
    const at::Tensor y = random_tensor({n}, at::kBFloat16, 2);
    const at::Tensor wide = y.to(at::kFloat);
    at::Tensor expected = at::empty({n});
    for (int64_t i = 0; i < n; ++i) {
      expected.data_ptr<float>()[i] =
          std::fma(wide.data_ptr<float>()[i], -4.775f, x.data_ptr<float>()[i] * 2.0315f);
    }
    at::Tensor out = garbage({n}, at::kFloat);
    scaled_sum(x, 2.0315, y, -4.775, out);
    EXPECT_TRUE(same_bits(out, expected)) << n;
    at::Tensor in_x = x.clone();
    scaled_sum(in_x, 2.0315, y, -4.775, in_x);
    EXPECT_TRUE(same_bits(in_x, expected)) << n;
    at::Tensor in_y = y.clone();
    scaled_sum(x, 2.0315, in_y, -4.775, in_y);
    EXPECT_TRUE(same_bits(in_y, expected.to(at::kBFloat16))) << n;
  }
}

TEST(FlatTest, AddsAndRoundsAsAtenDoes) {
  for (const int64_t n : {0, 1, 15, 16, 17, 40001}) {
    at::Tensor a = random_tensor({n}, at::kFloat, 1);
    const at::Tensor b = random_tensor({n}, at::kFloat, 2);
    const at::Tensor sum = a + b;
    add_(a, b);
    EXPECT_TRUE(same_bits(a, sum));
    at::Tensor low = garbage({n}, at::kBFloat16);
    convert(a, low);
    EXPECT_TRUE(same_bits(low, a.to(at::kBFloat16)));
    at::Tensor copy = garbage({n}, at::kFloat);
    convert(a, copy);
    EXPECT_TRUE(same_bits(copy, a));
  }
}

TEST(FlatTest, RoundsTiesAndSpecialValuesAsAtenDoes) {
  const float inf = std::numeric_limits<float>::infinity();
  const at::Tensor x =
      at::tensor({1.00390625f, 1.01171875f, -1.00390625f, 3.4e38f, inf, -inf, 0.0f, -0.0f, 1e-40f});
  at::Tensor low = garbage({x.numel()}, at::kBFloat16);
  convert(x, low);
  EXPECT_TRUE(same_bits(low, x.to(at::kBFloat16)));
  const at::Tensor bad = at::full({20}, std::nan(""), at::kFloat);
  at::Tensor bad_low = at::zeros({20}, at::kBFloat16);
  convert(bad, bad_low);
  EXPECT_TRUE(bad_low.isnan().all().item<bool>());
}

TEST(CapabilityTest, NamesTheReason) {
  EXPECT_EQ(unsupported_reason("linear", at::kBFloat16, at::kCPU), std::nullopt);
  EXPECT_EQ(unsupported_reason("adamw_", at::kFloat, at::kCPU), std::nullopt);
  EXPECT_NE(unsupported_reason("adamw_", at::kBFloat16, at::kCPU)->find("float32"),
            std::string::npos);
  EXPECT_NE(unsupported_reason("rotary_", at::kHalf, at::kCPU)->find("rotary"), std::string::npos);
  EXPECT_NE(unsupported_reason("attention", at::kDouble, at::kCPU)->find("Double"),
            std::string::npos);
}

}  // namespace
}  // namespace trireme::kernels
