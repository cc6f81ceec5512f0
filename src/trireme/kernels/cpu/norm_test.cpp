#include <ATen/Parallel.h>

#include "trireme/kernels/cpu/test_tensors.h"
#include "trireme/kernels/ops.h"
#include "trireme/kernels/ref/reference.h"

namespace trireme::kernels {
namespace {

struct NormCase {
  at::ScalarType dtype;
  int64_t rows;
  int64_t d;
};

class NormTest : public ::testing::TestWithParam<NormCase> {};

TEST_P(NormTest, RmsNormMatchesReference) {
  const auto [dtype, rows, d] = GetParam();
  const double eps = 1e-5;
  const at::Tensor x = random_tensor({rows, d}, dtype, 1);
  const at::Tensor w = random_tensor({d}, dtype, 2);
  const at::Tensor dy = random_tensor({rows, d}, dtype, 3);
  at::Tensor y = garbage({rows, d}, dtype);
  at::Tensor rstd = garbage({rows}, at::kFloat);
  rms_norm(x, w, eps, y, rstd);
  expect_close(y, ref::rms_norm(values_of(x), values_of(w), eps, rows, d), tolerance_of(dtype),
               "y");

  const auto expected =
      ref::rms_norm_backward(values_of(dy), values_of(x), values_of(w), eps, rows, d);
  at::Tensor dx = garbage({rows, d}, dtype);
  at::Tensor dw = garbage({d}, at::kFloat);
  rms_norm_backward(dy, x, w, rstd, dx, false, dw, false);
  // One element: its gradient is the rounding error of a difference of equals.
  if (d > 1) expect_close(dx, expected.dx, tolerance_of(dtype), "dx");
  expect_close(dw, expected.dweight, 2e-5, "dweight");

  // With an offset the weights are larger by it.
  at::Tensor y_offset = garbage({rows, d}, dtype);
  rms_norm(x, w, eps, y_offset, {}, 1.0);
  auto larger = values_of(w);
  for (double& value : larger) value += 1.0;
  expect_close(y_offset, ref::rms_norm(values_of(x), larger, eps, rows, d), tolerance_of(dtype),
               "y with an offset");
  const auto offset_expected =
      ref::rms_norm_backward(values_of(dy), values_of(x), larger, eps, rows, d);
  at::Tensor dx_offset = garbage({rows, d}, dtype);
  rms_norm_backward(dy, x, w, rstd, dx_offset, false, {}, false, 1.0);
  if (d > 1) expect_close(dx_offset, offset_expected.dx, tolerance_of(dtype), "dx with an offset");

  // Each gradient alone, the residual branch, and accumulation.
  at::Tensor dx_alone = garbage({rows, d}, dtype);
  rms_norm_backward(dy, x, w, rstd, dx_alone, false, {}, false);
  EXPECT_TRUE(same_bits(dx_alone, dx));
  at::Tensor dw_alone = garbage({d}, at::kFloat);
  rms_norm_backward(dy, x, w, rstd, {}, false, dw_alone, false);
  EXPECT_TRUE(same_bits(dw_alone, dw));
  const at::Tensor residual = random_tensor({rows, d}, dtype, 4);
  at::Tensor added = residual.clone();
  at::Tensor dw_twice = dw.clone();
  rms_norm_backward(dy, x, w, rstd, added, true, dw_twice, true);
  auto sum = expected.dx;
  const auto base = values_of(residual);
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += base[i];
  expect_close(added, sum, tolerance_of(dtype), "residual + dx");
  EXPECT_TRUE(same_bits(dw_twice, dw * 2));
}

TEST_P(NormTest, LayerNormMatchesReference) {
  const auto [dtype, rows, d] = GetParam();
  const double eps = 1e-5;
  const at::Tensor x = random_tensor({rows, d}, dtype, 1);
  const at::Tensor w = random_tensor({d}, dtype, 2);
  const at::Tensor b = random_tensor({d}, dtype, 5);
  const at::Tensor dy = random_tensor({rows, d}, dtype, 3);
  at::Tensor y = garbage({rows, d}, dtype);
  at::Tensor mean = garbage({rows}, at::kFloat);
  at::Tensor rstd = garbage({rows}, at::kFloat);
  layer_norm(x, w, b, eps, y, mean, rstd);
  expect_close(y, ref::layer_norm(values_of(x), values_of(w), values_of(b), eps, rows, d),
               tolerance_of(dtype), "y");

  const auto expected =
      ref::layer_norm_backward(values_of(dy), values_of(x), values_of(w), eps, rows, d);
  at::Tensor dx = garbage({rows, d}, dtype);
  at::Tensor dw = garbage({d}, at::kFloat);
  at::Tensor db = garbage({d}, at::kFloat);
  layer_norm_backward(dy, x, w, mean, rstd, dx, false, dw, db, false);
  if (d > 1) expect_close(dx, expected.dx, tolerance_of(dtype) * 2, "dx");
  if (d > 1) expect_close(dw, expected.dweight, 2e-5, "dweight");
  expect_close(db, expected.dbias, 2e-5, "dbias");
  at::Tensor db_twice = db.clone();
  layer_norm_backward(dy, x, w, mean, rstd, {}, false, {}, db_twice, true);
  EXPECT_TRUE(same_bits(db_twice, db * 2));
}

TEST_P(NormTest, DoesNotDependOnThreads) {
  const auto [dtype, rows, d] = GetParam();
  const at::Tensor x = random_tensor({rows, d}, dtype, 1);
  const at::Tensor w = random_tensor({d}, dtype, 2);
  const at::Tensor dy = random_tensor({rows, d}, dtype, 3);
  const int threads = at::get_num_threads();
  std::vector<at::Tensor> results;
  for (const int count : {1, 2, 3}) {
    at::set_num_threads(count);
    at::Tensor y = garbage({rows, d}, dtype);
    at::Tensor rstd = garbage({rows}, at::kFloat);
    at::Tensor dx = garbage({rows, d}, dtype);
    at::Tensor dw = garbage({d}, at::kFloat);
    rms_norm(x, w, 1e-6, y, rstd);
    rms_norm_backward(dy, x, w, rstd, dx, false, dw, false);
    results.push_back(
        at::cat({y.reshape({-1}).to(at::kFloat), dx.reshape({-1}).to(at::kFloat), dw}));
  }
  at::set_num_threads(threads);
  EXPECT_TRUE(same_bits(results[0], results[1]));
  EXPECT_TRUE(same_bits(results[0], results[2]));
}

INSTANTIATE_TEST_SUITE_P(Shapes, NormTest,
                         ::testing::Values(NormCase{at::kFloat, 7, 33}, NormCase{at::kFloat, 1, 1},
                                           NormCase{at::kFloat, 0, 16},
                                           NormCase{at::kFloat, 300, 384},
                                           NormCase{at::kFloat, 5, 1},
                                           NormCase{at::kBFloat16, 7, 33},
                                           NormCase{at::kBFloat16, 131, 64}));

TEST(NormViewTest, NormalisesHeadsOfAFusedMatrixWhereTheyLie) {
  const int64_t n = 9;
  const int64_t heads = 3;
  const int64_t d = 8;
  const at::Tensor fused = random_tensor({n, 5 * d}, at::kFloat, 1);
  const at::Tensor w = random_tensor({d}, at::kFloat, 2);
  const at::Tensor view = fused.narrow(1, d, heads * d).view({n, heads, d});
  at::Tensor out = garbage({n, 5 * d}, at::kFloat);
  at::Tensor out_view = out.narrow(1, d, heads * d).view({n, heads, d});
  at::Tensor rstd = garbage({n, heads}, at::kFloat);
  rms_norm(view, w, 1e-6, out_view, rstd);
  at::Tensor plain = garbage({n * heads, d}, at::kFloat);
  rms_norm(view.reshape({n * heads, d}), w, 1e-6, plain, garbage({n * heads}, at::kFloat));
  EXPECT_TRUE(same_bits(out_view.reshape({n * heads, d}), plain));
  EXPECT_TRUE(out.narrow(1, 0, d).isnan().all().item<bool>());
}

}  // namespace
}  // namespace trireme::kernels
