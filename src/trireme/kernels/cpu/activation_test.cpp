#include <limits>

#include "trireme/kernels/cpu/test_tensors.h"
#include "trireme/kernels/ops.h"
#include "trireme/kernels/ref/reference.h"

namespace trireme::kernels {
namespace {

constexpr Activation kAll[] = {Activation::kSilu, Activation::kGeluTanh, Activation::kGelu,
                               Activation::kRelu};

class ActivationTest : public ::testing::TestWithParam<at::ScalarType> {};

TEST_P(ActivationTest, MatchesReference) {
  const at::ScalarType dtype = GetParam();
  for (const Activation act : kAll) {
    for (const int64_t n : {0, 1, 15, 16, 1000, 20000}) {
      const at::Tensor x = random_tensor({n}, dtype, 1, 3.0);
      const at::Tensor dy = random_tensor({n}, dtype, 2);
      at::Tensor y = garbage({n}, dtype);
      at::Tensor dx = garbage({n}, dtype);
      activation(act, x, y);
      activation_backward(act, dy, x, dx);
      std::vector<double> expected = values_of(x);
      std::vector<double> slopes = values_of(dy);
      for (size_t i = 0; i < expected.size(); ++i) {
        slopes[i] *= ref::activation_slope(act, expected[i]);
        expected[i] = ref::activation(act, expected[i]);
      }
      expect_close(y, expected, tolerance_of(dtype), "y");
      expect_close(dx, slopes, tolerance_of(dtype), "dx");
    }
  }
}

TEST_P(ActivationTest, GatedMatchesReference) {
  const at::ScalarType dtype = GetParam();
  for (const Activation act : kAll) {
    for (const auto& [n, h] : {std::pair<int64_t, int64_t>{5, 33}, {0, 8}, {1, 1}, {70, 256}}) {
      const at::Tensor x = random_tensor({n, 2 * h}, dtype, 1);
      const at::Tensor dy = random_tensor({n, h}, dtype, 2);
      const auto in = values_of(x);
      const auto grad = values_of(dy);
      std::vector<double> y_expected(static_cast<size_t>(n * h));
      std::vector<double> dx_expected(static_cast<size_t>(2 * n * h));
      for (int64_t r = 0; r < n; ++r) {
        for (int64_t i = 0; i < h; ++i) {
          const auto at = static_cast<size_t>(r * h + i);
          const double gate = in[static_cast<size_t>(r * 2 * h + i)];
          const double up = in[static_cast<size_t>(r * 2 * h + h + i)];
          y_expected[at] = ref::activation(act, gate) * up;
          dx_expected[static_cast<size_t>(r * 2 * h + i)] =
              grad[at] * up * ref::activation_slope(act, gate);
          dx_expected[static_cast<size_t>(r * 2 * h + h + i)] =
              grad[at] * ref::activation(act, gate);
        }
      }
      at::Tensor y = garbage({n, h}, dtype);
      gated_activation(act, x, y);
      expect_close(y, y_expected, tolerance_of(dtype), "y");
      at::Tensor dx = garbage({n, 2 * h}, dtype);
      at::Tensor again = garbage({n, h}, dtype);
      gated_activation_backward(act, dy, x, dx, again);
      expect_close(dx, dx_expected, tolerance_of(dtype), "d_gate_up");
      EXPECT_TRUE(same_bits(again, y));
      at::Tensor in_place = x.clone();
      gated_activation_backward(act, dy, in_place, in_place);
      EXPECT_TRUE(same_bits(in_place, dx));
    }
  }
}

TEST_P(ActivationTest, ExtremesStayFiniteAndNanStaysNan) {
  const at::ScalarType dtype = GetParam();
  const float inf = std::numeric_limits<float>::infinity();
  const at::Tensor x = at::tensor({-1e30f, -1000.0f, -90.0f, 0.0f, 90.0f, 1000.0f}).to(dtype);
  const at::Tensor bad = at::tensor({std::nanf(""), inf}).to(dtype);
  for (const Activation act : kAll) {
    at::Tensor y = at::empty_like(x);
    activation(act, x, y);
    const auto got = values_of(y);
    const auto in = values_of(x);
    for (size_t i = 0; i < got.size(); ++i)
      EXPECT_NEAR(got[i], std::max(0.0, in[i]), 1e-6) << in[i];
    at::Tensor worse = at::empty_like(bad);
    activation(act, bad, worse);
    EXPECT_TRUE(worse[0].isnan().item<bool>());
    EXPECT_FALSE(worse[1].isfinite().item<bool>());
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, ActivationTest, ::testing::Values(at::kFloat, at::kBFloat16));

}  // namespace
}  // namespace trireme::kernels
