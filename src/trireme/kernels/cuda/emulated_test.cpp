// The device's kernels and ops against their contracts, in the emulation: every trial of the conformance suite, with the
// threads of a block in either order.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "trireme/base/error.h"
#include "trireme/device/memory.h"
#include "trireme/kernels/aten/aten_kernels.h"
#include "trireme/kernels/conformance/conformance.h"
#include "trireme/kernels/cpu/test_tensors.h"
#include "trireme/kernels/cuda/cuda_kernels.h"
#include "trireme/kernels/cuda/emulation.h"
#include "trireme/kernels/cuda/launch.h"
#include "trireme/kernels/registry.h"

namespace trireme::kernels::gpu {
namespace {

// Before the first tensor: the workspaces are counted.
[[maybe_unused]] const bool kCounted = [] {
  device::install_cpu_allocator();
  return true;
}();

const std::vector<std::string>& emulated_ops() {
  static const std::vector<std::string> names = [] {
    register_kernels(registry(), {.name = "emulated", .device = at::kCPU, .priority = -1});
    std::vector<std::string> all;
#define X(op) all.emplace_back(#op);
    TRIREME_GPU_OPS(X)
#undef X
    return all;
  }();
  return names;
}

class EmulatedConformance
    : public ::testing::TestWithParam<std::tuple<std::string, emulation::Order>> {};

TEST_P(EmulatedConformance, KeepsTheContract) {
  const auto& [op, order] = GetParam();
  emulation::set_order(order);
  // Both ways to multiply by groups, and attention's reference whole and head by head.
  set_grouped_products(order == emulation::Order::kForward);
  set_attention_score_bytes(order == emulation::Order::kForward ? int64_t{1} << 30 : 1000);
  const auto outcomes = conformance::check(op, "emulated");
  EXPECT_FALSE(outcomes.empty());
  for (const auto& outcome : outcomes)
    EXPECT_EQ(outcome.problem, "") << op << " on " << outcome.trial;
  const auto of_workspace = std::ranges::count_if(
      outcomes, [](const auto& outcome) { return outcome.trial.starts_with("workspace"); });
  EXPECT_TRUE(of_workspace > 0 || !conformance::tries_workspace(op)) << op;
}

INSTANTIATE_TEST_SUITE_P(
    Ops, EmulatedConformance,
    ::testing::Combine(::testing::ValuesIn(emulated_ops()),
                       ::testing::Values(emulation::Order::kForward, emulation::Order::kBackward)),
    [](const auto& info) {
      return std::get<0>(info.param) +
             (std::get<1>(info.param) == emulation::Order::kForward ? "_forward" : "_backward");
    });

// --- Beyond the grid of the conformance suite: random shapes, against the reference in float64 --------------------------

/// gamma(n), as in conformance.h, with room for the functions.
double tolerance(double operations) {
  return operations * std::ldexp(1.0, -24);
}

/// The largest |got - want| / (1 + |want|).
double error_of(const at::Tensor& got, const at::Tensor& want) {
  const at::Tensor exact = want.to(at::kDouble);
  return ((got.to(at::kDouble) - exact).abs() / (exact.abs() + 1.0)).max().item<double>();
}

class RandomShapes : public ::testing::TestWithParam<int> {
 protected:
  std::mt19937 random_{static_cast<uint32_t>(GetParam())};
  int64_t between(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random_);
  }
  at::Tensor draw(at::IntArrayRef sizes) { return random_tensor(sizes, at::kFloat, random_()); }
  static at::Tensor exact(const at::Tensor& x) { return x.to(at::kDouble); }
};

TEST_P(RandomShapes, NormsBackward) {
  // Widths from a lane to more than shared memory holds; multiples of four among them.
  const int64_t width = GetParam() % 2 == 0 ? between(1, 600) : 4 * between(150, 4000);
  const int64_t rows = between(1, 40);
  const at::Tensor x = draw({rows, width});
  const at::Tensor dy = draw({rows, width});
  const at::Tensor w = draw({width});
  const at::Tensor mean = x.mean(1);
  const at::Tensor rstd = (x.var(1, false) + 1e-5).rsqrt();
  const at::Tensor dx = dy.clone();  // may be dy
  const at::Tensor dw = draw({width});
  const at::Tensor db = draw({width});
  const at::Tensor want_x = exact(dx).clone();
  const at::Tensor want_w = exact(dw).clone();
  const at::Tensor want_b = exact(db).clone();
  aten::layer_norm_backward(exact(dy), exact(x), exact(w), exact(mean), exact(rstd), want_x, false,
                            want_w, want_b, true);
  ops::layer_norm_backward(dx, x, w, mean, rstd, dx, false, dw, db, true);
  EXPECT_LE(error_of(dx, want_x), tolerance(40.0 + static_cast<double>(width)));
  EXPECT_LE(error_of(dw, want_w), tolerance(80.0 + static_cast<double>(rows)));
  EXPECT_LE(error_of(db, want_b), tolerance(80.0 + static_cast<double>(rows)));
}

TEST_P(RandomShapes, CrossEntropy) {
  const int64_t rows = between(1, 30);
  const int64_t vocab = GetParam() % 2 == 0 ? 4 * between(1, 900) : between(2, 3000);
  const at::Tensor hidden = draw({rows, 5});
  const at::Tensor weight = draw({vocab, 5});
  at::Tensor targets = at::empty({rows}, at::kLong);
  for (int64_t i = 0; i < rows; ++i)
    targets[i] = i % 7 == 3 ? kIgnoredTarget : between(0, vocab - 1);
  CrossEntropyOutputs got;
  got.d_hidden = garbage({rows, 5}, at::kFloat);
  got.d_weight = garbage({vocab, 5}, at::kFloat);
  got.losses = garbage({rows}, at::kFloat);
  CrossEntropyOutputs want;
  want.d_hidden = exact(got.d_hidden);
  want.d_weight = exact(got.d_weight);
  want.losses = exact(got.losses);
  const int64_t chunk = between(1, 30);
  const double loss = ops::linear_cross_entropy(hidden, weight, targets, 0.5, chunk, got, 0.0);
  const double sum =
      aten::linear_cross_entropy(exact(hidden), exact(weight), targets, 0.5, chunk, want, 0.0);
  const double operations = 400.0 + 4.0 * static_cast<double>(vocab);
  EXPECT_NEAR(loss, sum, tolerance(operations) * (1.0 + sum));
  EXPECT_LE(error_of(got.losses, want.losses), tolerance(operations));
  EXPECT_LE(error_of(got.d_hidden, want.d_hidden), tolerance(operations));
  EXPECT_LE(error_of(got.d_weight, want.d_weight), tolerance(operations));
}

TEST_P(RandomShapes, TokensOfATable) {
  const int64_t entries = between(1, 50);
  const int64_t width = between(1, 300) * (GetParam() % 2 == 0 ? 4 : 1);
  const int64_t count = between(1, 200);
  at::Tensor tokens = at::empty({count}, at::kLong);
  for (int64_t i = 0; i < count; ++i) tokens[i] = between(0, entries - 1);
  const at::Tensor dy = draw({count, width});
  at::Tensor gradient = draw({entries, width});
  // In row order, the sums are those of a loop in float32, bit for bit.
  const at::Tensor want = gradient.clone();
  for (int64_t i = 0; i < count; ++i) want[tokens[i].item<int64_t>()] += dy[i];
  ops::embedding_backward(tokens, dy, gradient, true);
  EXPECT_TRUE(same_bits(gradient, want));
}

TEST_P(RandomShapes, Rotations) {
  const int64_t heads = between(1, 5);
  const int64_t half = between(1, 40);
  const int64_t tokens = between(1, 20);
  const at::Tensor angles = draw({30, half});
  at::Tensor positions = at::empty({tokens}, at::kLong);
  for (int64_t i = 0; i < tokens; ++i) positions[i] = between(0, 29);
  // A slice of a wider matrix, at any alignment.
  const at::Tensor wide = draw({tokens, heads * (2 * half + 3) + 5});
  at::Tensor x =
      wide.narrow(1, between(0, 4), heads * (2 * half + 3)).unflatten(1, {heads, 2 * half + 3});
  at::Tensor want = exact(x);
  const bool inverse = between(0, 1) == 1;
  const bool interleaved = between(0, 1) == 1;
  ops::rotary_(x, positions, angles.cos(), angles.sin(), inverse, interleaved);
  aten::rotary_(want, positions, exact(angles.cos()), exact(angles.sin()), inverse, interleaved);
  EXPECT_LE(error_of(x, want), tolerance(12.0));
}

/// Through the flash path: documents, windows and sinks, values narrower than keys, queries in groups, strided tensors.
TEST_P(RandomShapes, FlashAttention) {
  const int64_t batch = between(1, 3);
  const int64_t places = between(1, 40);
  const int64_t kv_heads = between(1, 3);
  const int64_t heads = kv_heads * between(1, 3);
  const int64_t width = 8 * between(1, 4);
  const int64_t value_width = GetParam() % 2 == 0 ? width : between(1, width);
  Segments segments;
  for (int64_t b = 0; b < batch; ++b) {
    segments.push_back({0});
    for (int64_t at = between(1, 9); at < places; at += between(1, 20))
      segments.back().push_back(static_cast<int32_t>(at));
  }
  AttentionOptions o{.scale = 0.3, .segments = nullptr, .window = 0, .softcap = 0.0, .sinks = {}};
  if (between(0, 1) == 1) o.segments = &segments;
  if (between(0, 1) == 1) o.window = between(1, places);
  if (between(0, 1) == 1) o.sinks = draw({heads});
  const auto low = [&](int64_t h, int64_t d) {
    return draw({batch, places, h, d + 3}).to(at::kBFloat16).narrow(3, 0, d);
  };
  const at::Tensor q = low(heads, width);
  const at::Tensor k = low(kv_heads, width);
  const at::Tensor v = low(kv_heads, value_width);
  const at::Tensor dout = low(heads, value_width);
  at::Tensor out = garbage({batch, places, heads, value_width}, at::kBFloat16);
  const at::Tensor sums = garbage({batch, heads, places}, at::kFloat);
  ops::attention(q, k, v, o, out, sums);
  AttentionOptions exactly = o;
  if (o.sinks.defined()) exactly.sinks = exact(o.sinks);
  at::Tensor want = exact(out).clone();
  const at::Tensor want_sums = exact(sums).clone();
  aten::attention(exact(q), exact(k), exact(v), exactly, want, want_sums);
  // What is rounded to bfloat16 once or twice on the way.
  constexpr double kLow = 0x1p-7;
  EXPECT_LE(error_of(out, want), kLow);
  EXPECT_LE(error_of(sums, want_sums), tolerance(100.0));

  const auto empty = [&](const at::Tensor& x) { return garbage(x.sizes(), at::kBFloat16); };
  at::Tensor dq = empty(q);
  at::Tensor dk = empty(k);
  at::Tensor dv = empty(v);
  const at::Tensor d_sinks = o.sinks.defined() ? garbage({heads}, at::kFloat) : at::Tensor();
  ops::attention_backward(dout, q, k, v, out, sums, o, dq, dk, dv, d_sinks);
  at::Tensor want_q = exact(q).clone();
  at::Tensor want_k = exact(k).clone();
  at::Tensor want_v = exact(v).clone();
  const at::Tensor want_sinks = o.sinks.defined() ? exact(o.sinks).clone() : at::Tensor();
  aten::attention_backward(exact(dout), exact(q), exact(k), exact(v), exact(out), exact(sums),
                           exactly, want_q, want_k, want_v, want_sinks);
  EXPECT_LE(error_of(dq, want_q), kLow);
  EXPECT_LE(error_of(dk, want_k), kLow);
  EXPECT_LE(error_of(dv, want_v), kLow);
  if (o.sinks.defined()) {
    EXPECT_LE(error_of(d_sinks, want_sinks), tolerance(2000.0));
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, RandomShapes, ::testing::Range(0, 8));

TEST(EmulatedOpsTest, IdsOutsideTheTableAreSaid) {
  const at::Tensor weight = at::zeros({5, 3});
  at::Tensor out = at::zeros({3, 3});
  try {
    ops::embedding(at::tensor({1, 7, -1}, at::kLong), weight, {}, {}, out);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kData);
    EXPECT_STREQ(error.what(), "token id 7 is outside the table of 5 entries");
  }
  // What nothing counts for is no id.
  EXPECT_NO_THROW(ops::linear_cross_entropy(at::zeros({2, 3}), weight,
                                            at::tensor({4L, kIgnoredTarget}), 1.0, 2, {}, 0.0));
  EXPECT_THROW(
      ops::linear_cross_entropy(at::zeros({1, 3}), weight, at::tensor({5L}), 1.0, 2, {}, 0.0),
      Error);
}

TEST(EmulatedOpsTest, EveryOpOfTheTableIsOfferedOnce) {
  for (const std::string& op : emulated_ops()) {
    const std::vector<std::string> kernels = registry().kernels_of(op, at::kCPU);
    EXPECT_EQ(std::count(kernels.begin(), kernels.end(), "emulated"), 1) << op;
  }
}

}  // namespace
}  // namespace trireme::kernels::gpu
