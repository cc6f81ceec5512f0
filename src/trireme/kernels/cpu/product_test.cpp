#include "trireme/kernels/cpu/product.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <random>

#include "trireme/kernels/cpu/processor.h"
#include "trireme/kernels/cpu/test_products.h"
#include "trireme/kernels/cpu/test_tensors.h"
#include "trireme/kernels/ops.h"
#include "trireme/kernels/ref/reference.h"

namespace trireme::kernels {
namespace {

using cpu::FloatProduct;
using cpu::for_every_choice;

void expect_products(at::ScalarType dtype, int64_t n, int64_t in, int64_t out) {
  const at::Tensor x = random_tensor({n, in}, dtype, 1);
  const at::Tensor w = random_tensor({out, in}, dtype, 2);
  const at::Tensor b = random_tensor({out}, dtype, 3);
  const at::Tensor residual = random_tensor({n, out}, dtype, 4);
  const at::Tensor dy = random_tensor({n, out}, dtype, 5);
  const double tolerance = tolerance_of(dtype);

  auto expected = ref::matmul_nt(values_of(x), values_of(w), n, out, in);
  at::Tensor y = garbage({n, out}, dtype);
  linear(x, w, std::nullopt, std::nullopt, y);
  expect_close(y, expected, tolerance, "x w^T");
  if (dtype == at::kBFloat16) {
    at::Tensor wide = garbage({n, out}, at::kFloat);
    linear(x, w, std::nullopt, std::nullopt, wide);
    expect_close(wide, expected, 1e-5, "x w^T in float32");
  }
  const auto bias_values = values_of(b);
  for (size_t i = 0; i < expected.size(); ++i)
    expected[i] += bias_values[i % static_cast<size_t>(out)];
  linear(x, w, b, std::nullopt, y);
  expect_close(y, expected, tolerance, "x w^T + b");
  const auto residual_values = values_of(residual);
  for (size_t i = 0; i < expected.size(); ++i) expected[i] += residual_values[i];
  linear(x, w, b, residual, y);
  expect_close(y, expected, tolerance, "x w^T + b + residual");
  at::Tensor in_place = residual.clone();
  linear(x, w, b, in_place, in_place);
  EXPECT_TRUE(same_bits(in_place, y));
  for (size_t i = 0; i < expected.size(); ++i)
    expected[i] -= bias_values[i % static_cast<size_t>(out)];
  in_place = residual.clone();
  linear(x, w, std::nullopt, in_place, in_place);
  expect_close(in_place, expected, tolerance, "x w^T + residual in place");

  const auto wt = ref::transposed(values_of(w), out, in);
  auto dx_expected = ref::matmul_nt(values_of(dy), wt, n, in, out);
  at::Tensor dx = garbage({n, in}, dtype);
  linear_backward_input(dy, w, dx);
  expect_close(dx, dx_expected, tolerance, "dx");
  at::Tensor dx_sum = x.clone();
  linear_backward_input(dy, w, dx_sum, true);
  const auto x_values = values_of(x);
  for (size_t i = 0; i < dx_expected.size(); ++i) dx_expected[i] += x_values[i];
  expect_close(dx_sum, dx_expected, tolerance, "dx accumulated");

  auto dw_expected = ref::matmul_nt(ref::transposed(values_of(dy), n, out),
                                    ref::transposed(values_of(x), n, in), out, in, n);
  at::Tensor dw = garbage({out, in}, at::kFloat);
  linear_backward_weight(dy, x, dw, false);
  expect_close(dw, dw_expected, 1e-5, "dw");
  linear_backward_weight(dy, x, dw, true);
  for (double& value : dw_expected) value *= 2;
  expect_close(dw, dw_expected, 1e-5, "dw accumulated");

  std::vector<double> db_expected(static_cast<size_t>(out), 0.0);
  const auto dy_values = values_of(dy);
  for (size_t i = 0; i < dy_values.size(); ++i)
    db_expected[i % static_cast<size_t>(out)] += dy_values[i];
  at::Tensor db = garbage({out}, at::kFloat);
  bias_gradient(dy, db, false);
  expect_close(db, db_expected, 1e-5, "db");
}

TEST(ProductTest, MatchesTheReferenceInEveryWay) {
  for_every_choice([] {
    for (const auto dtype : {at::kFloat, at::kBFloat16}) {
      expect_products(dtype, 9, 33, 17);
      expect_products(dtype, 1, 1, 1);
      expect_products(dtype, 3, 8, 6);
      expect_products(dtype, 130, 64, 96);
      expect_products(dtype, 0, 4, 6);
      expect_products(dtype, 700, 24, 40);   // more than one panel of rows
      expect_products(dtype, 20, 800, 65);   // more than one inner block, a column past a tile
      expect_products(dtype, 600, 20, 800);  // and for the gradients
    }
  });
}

TEST(ProductTest, AGramMatrixIsTheWholeProductAndOfPanelsBitForBit) {
  const int threads = at::get_num_threads();
  std::mt19937 random(29);
  std::vector<std::pair<int64_t, int64_t>> shapes = {{1, 1},   {3, 8},     {64, 64},
                                                     {65, 33}, {256, 352}, {129, 1600}};
  for (int round = 0; round < 6; ++round)
    shapes.emplace_back(1 + random() % 300, 1 + random() % 300);
  for (const auto& [n, in] : shapes) {
    SCOPED_TRACE(fmt::format("{} x {}", n, in));
    const at::Tensor wider = random_tensor({n, in + 3}, at::kBFloat16, 1);
    const at::Tensor x =
        n % 2 == 0 ? wider.narrow(1, 0, in) : random_tensor({n, in}, at::kBFloat16, 2);
    const auto expected = ref::matmul_nt(values_of(x), values_of(x), n, n, in);
    for_every_choice([&] {
      at::Tensor whole = garbage({n, n}, at::kFloat);
      linear(x, x, std::nullopt, std::nullopt, whole);
      for (const int count : {1, 2, 3}) {
        at::set_num_threads(count);
        at::Tensor y = garbage({n, n}, at::kFloat);
        gram(x, y);
        expect_close(y, expected, 1e-5, "x x^T");
        if (cpu::product_choice().bfloat16 != cpu::Bf16Product::kPanels) continue;
        EXPECT_TRUE(same_bits(y, whole)) << count << " threads";
        EXPECT_TRUE(same_bits(y, y.t().contiguous())) << "not symmetric";
      }
      at::set_num_threads(threads);
    });
  }
}

TEST(ProductTest, MatchesTheReferenceOnRandomShapes) {
  std::mt19937 random(17);
  const auto pick = [&](int64_t most) {
    return 1 + static_cast<int64_t>(random() % static_cast<uint64_t>(most));
  };
  for (int round = 0; round < 8; ++round) {
    const int64_t n = pick(120);
    const int64_t in = pick(120);
    const int64_t out = pick(120);
    SCOPED_TRACE(fmt::format("{} x {} -> {}", n, in, out));
    for_every_choice([&] {
      expect_products(at::kFloat, n, in, out);
      expect_products(at::kBFloat16, n, in, out);
    });
  }
}

TEST(ProductTest, TakesColumnSlicesOfFusedMatrices) {
  const at::Tensor x = random_tensor({20, 12}, at::kFloat, 1);
  const at::Tensor w = random_tensor({6, 12}, at::kFloat, 2);
  at::Tensor fused = garbage({20, 18}, at::kFloat);
  at::Tensor slice = fused.narrow(1, 6, 6);
  linear(x, w, std::nullopt, std::nullopt, slice);
  at::Tensor whole = garbage({20, 6}, at::kFloat);
  linear(x, w, std::nullopt, std::nullopt, whole);
  EXPECT_TRUE(same_bits(slice.contiguous(), whole));
  at::Tensor dx_slice = garbage({20, 12}, at::kFloat);
  at::Tensor dx = garbage({20, 12}, at::kFloat);
  linear_backward_input(slice, w, dx_slice);
  linear_backward_input(whole, w, dx);
  EXPECT_TRUE(same_bits(dx_slice, dx));
}

void expect_independent_rows(at::ScalarType dtype, int64_t in, int64_t out) {
  const int64_t n = 600;
  const at::Tensor x = random_tensor({n, in}, dtype, 1);
  const at::Tensor w = random_tensor({out, in}, dtype, 2);
  const at::Tensor b = random_tensor({out}, dtype, 3);
  at::Tensor all = garbage({n, out}, dtype);
  at::Tensor all_bias = garbage({n, out}, dtype);
  at::Tensor all_dx = garbage({n, in}, dtype);
  linear(x, w, std::nullopt, std::nullopt, all);
  linear(x, w, b, std::nullopt, all_bias);
  linear_backward_input(all, w, all_dx);
  for (const int64_t m : {1, 2, 3, 5, 7, 8, 13, 16, 31, 64, 257, 521}) {
    const at::Tensor rows = x.narrow(0, 40, m);
    at::Tensor y = garbage({m, out}, dtype);
    linear(rows, w, std::nullopt, std::nullopt, y);
    EXPECT_TRUE(same_bits(y, all.narrow(0, 40, m))) << m << " rows, " << in << " to " << out;
    linear(rows, w, b, std::nullopt, y);
    EXPECT_TRUE(same_bits(y, all_bias.narrow(0, 40, m)))
        << m << " rows with bias, " << in << " to " << out;
    at::Tensor dx = garbage({m, in}, dtype);
    linear_backward_input(all.narrow(0, 40, m), w, dx);
    EXPECT_TRUE(same_bits(dx, all_dx.narrow(0, 40, m)))
        << m << " rows of dx, " << in << " to " << out;
  }
}

/// What the exact reduction and generation lean on: a row's bits do not depend on the rows beside it.
TEST(ProductTest, RowsDoNotDependOnTheirNumber) {
  const int threads = at::get_num_threads();
  at::set_num_threads(1);  // many small products; the next test compares thread counts
  for_every_choice([] {
    for (const auto& [in, out] :
         {std::pair<int64_t, int64_t>{64, 48}, {96, 100}, {384, 384}, {2000, 24}, {1000, 300}}) {
      // Widened products lean on MKL's AVX-512 blocking, which only Intel's processors get.
      if (cpu::processor().intel || cpu::product_choice().float32 == FloatProduct::kPanels) {
        expect_independent_rows(at::kFloat, in, out);
        expect_independent_rows(at::kBFloat16, in, out);
      }
    }
  });
  at::set_num_threads(threads);
}

TEST(ProductTest, DoesNotDependOnThreads) {
  const int threads = at::get_num_threads();
  for_every_choice([] {
    if (!cpu::processor().intel && cpu::product_choice().float32 == FloatProduct::kMkl) return;
    for (const auto dtype : {at::kFloat, at::kBFloat16}) {
      for (const auto& [n, in, out] : {std::tuple<int64_t, int64_t, int64_t>{2048, 48, 32},
                                       {2500, 384, 200},
                                       {9, 3000, 40},
                                       {1100, 400, 400}}) {
        const at::Tensor x = random_tensor({n, in}, dtype, 1);
        const at::Tensor w = random_tensor({out, in}, dtype, 2);
        std::vector<at::Tensor> results;
        for (const int count : {1, 2, 3}) {
          at::set_num_threads(count);
          at::Tensor y = garbage({n, out}, dtype);
          at::Tensor dx = garbage({n, in}, dtype);
          at::Tensor dw = garbage({out, in}, at::kFloat);
          at::Tensor db = garbage({out}, at::kFloat);
          linear(x, w, std::nullopt, std::nullopt, y);
          linear_backward_input(y, w, dx);
          linear_backward_weight(y, x, dw, false);
          bias_gradient(y, db, false);
          results.push_back(at::cat({y.reshape({-1}).to(at::kFloat),
                                     dx.reshape({-1}).to(at::kFloat), dw.reshape({-1}), db}));
        }
        EXPECT_TRUE(same_bits(results[0], results[1])) << n << " rows";
        EXPECT_TRUE(same_bits(results[0], results[2])) << n << " rows";
      }
    }
  });
  at::set_num_threads(threads);
}

}  // namespace
}  // namespace trireme::kernels
