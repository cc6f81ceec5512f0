// The references in float64 against the loops of kernels/ref, whose gradients are checked by finite differences: what the
// conformance suite measures kernels against stands on its own feet.
#include "trireme/kernels/aten/aten_kernels.h"

#include "trireme/base/error.h"
#include "trireme/kernels/cpu/test_tensors.h"
#include "trireme/kernels/ref/reference.h"

namespace trireme::kernels {
namespace {

/// float64 on both sides: nothing but the order of sums.
constexpr double kTolerance = 1e-12;

at::Tensor random(at::IntArrayRef sizes, uint32_t seed) {
  return random_tensor(sizes, at::kDouble, seed);
}
at::Tensor fresh(at::IntArrayRef sizes) {
  return garbage(sizes, at::kDouble);
}

TEST(AtenTest, NormsAreThoseOfTheReference) {
  const int64_t rows = 13;
  const int64_t d = 37;
  const at::Tensor x = random({rows, d}, 1);
  const at::Tensor w = random({d}, 2);
  const at::Tensor b = random({d}, 3);
  const at::Tensor dy = random({rows, d}, 4);
  at::Tensor y = fresh({rows, d});
  const at::Tensor mean = fresh({rows});
  const at::Tensor rstd = fresh({rows});
  const at::Tensor dx = fresh({rows, d});
  const at::Tensor dw = fresh({d});
  const at::Tensor db = fresh({d});
  aten::rms_norm(x, w, 1e-5, y, rstd, 0.0);
  expect_close(y, ref::rms_norm(values_of(x), values_of(w), 1e-5, rows, d), kTolerance, "y");
  auto expected = ref::rms_norm_backward(values_of(dy), values_of(x), values_of(w), 1e-5, rows, d);
  aten::rms_norm_backward(dy, x, w, rstd, dx, false, dw, false, 0.0);
  expect_close(dx, expected.dx, kTolerance, "dx");
  expect_close(dw, expected.dweight, kTolerance, "dweight");
  // An offset makes the weights larger, and sums double what they start from.
  aten::rms_norm_backward(dy, x, w - 1.0, rstd, dx, true, dw, true, 1.0);
  expect_close(dx * 0.5, expected.dx, kTolerance, "dx twice");
  expect_close(dw * 0.5, expected.dweight, kTolerance, "dweight twice");

  aten::layer_norm(x, w, b, 1e-5, y, mean, rstd);
  expect_close(y, ref::layer_norm(values_of(x), values_of(w), values_of(b), 1e-5, rows, d),
               kTolerance, "y");
  expected = ref::layer_norm_backward(values_of(dy), values_of(x), values_of(w), 1e-5, rows, d);
  aten::layer_norm_backward(dy, x, w, mean, rstd, dx, false, dw, db, false);
  expect_close(dx, expected.dx, kTolerance, "dx");
  expect_close(dw, expected.dweight, kTolerance, "dweight");
  expect_close(db, expected.dbias, kTolerance, "dbias");
}

TEST(AtenTest, ActivationsAreThoseOfTheReference) {
  const int64_t rows = 5;
  const int64_t width = 41;
  const at::Tensor gate_up = random({rows, 2 * width}, 1) * 3.0;
  const at::Tensor dy = random({rows, width}, 2);
  for (const Activation act :
       {Activation::kSilu, Activation::kGeluTanh, Activation::kGelu, Activation::kRelu}) {
    std::vector<double> value;
    std::vector<double> slope;
    for (const double x : values_of(gate_up)) {
      value.push_back(ref::activation(act, x));
      slope.push_back(ref::activation_slope(act, x));
    }
    at::Tensor y = fresh(gate_up.sizes());
    aten::activation(act, gate_up, y);
    expect_close(y, value, kTolerance, "value");
    at::Tensor dx = fresh(gate_up.sizes());
    aten::activation_backward(act, at::ones_like(gate_up), gate_up, dx);
    expect_close(dx, slope, kTolerance, "slope");

    const at::Tensor v = y.narrow(1, 0, width);
    const at::Tensor s = dx.narrow(1, 0, width);
    const at::Tensor up = gate_up.narrow(1, width, width);
    at::Tensor gated = fresh(dy.sizes());
    aten::gated_activation(act, gate_up, gated);
    expect_close(gated, values_of(v * up), kTolerance, "gated");
    at::Tensor d_gate_up = gate_up.clone();
    aten::gated_activation_backward(act, dy, d_gate_up, d_gate_up, gated);
    expect_close(d_gate_up, values_of(at::cat({dy * up * s, dy * v}, 1)), kTolerance, "in place");
    expect_close(gated, values_of(v * up), kTolerance, "gated again");
  }
}

TEST(AtenTest, RotationsAreThoseOfTheReference) {
  const at::Tensor angles = random({9, 3}, 1);
  const at::Tensor positions = at::tensor({4, 0, 8, 8, 1}, at::kLong);
  for (const bool inverse : {false, true}) {
    for (const bool interleaved : {false, true}) {
      at::Tensor x = random({5, 2, 8}, 2);
      std::vector<double> expected = values_of(x);
      ref::rotary(expected, {4, 0, 8, 8, 1}, values_of(angles.cos()), values_of(angles.sin()), 2, 8,
                  3, inverse, interleaved);
      aten::rotary_(x, positions, angles.cos(), angles.sin(), inverse, interleaved);
      expect_close(x, expected, kTolerance, "x");
    }
  }
  at::Tensor x = random({1, 2, 8}, 2);
  EXPECT_THROW(aten::rotary_(x, at::tensor({9}, at::kLong), angles, angles, false, false), Error);
}

TEST(AtenTest, AttentionIsThatOfTheReference) {
  const Segments segments = {{0, 7}, {0, 1, 12, 13}};
  for (int options = 0; options < 16; ++options) {
    ref::AttentionShape s{2, 21, 21, 6, 3, 5};
    s.value_d = 4;
    if ((options & 1) != 0) s.window = 4;
    if ((options & 2) != 0) s.softcap = 0.8;
    const bool with_sinks = (options & 4) != 0;
    const Segments* documents = (options & 8) != 0 ? &segments : nullptr;
    const at::Tensor q = random({2, 21, 6, 5}, 1);
    const at::Tensor k = random({2, 21, 3, 5}, 2);
    const at::Tensor v = random({2, 21, 3, 4}, 3);
    const at::Tensor dout = random({2, 21, 6, 4}, 4);
    AttentionOptions o{
        .scale = 0.4, .segments = documents, .window = s.window, .softcap = s.softcap, .sinks = {}};
    if (with_sinks) o.sinks = random({6}, 5);
    const auto sinks = with_sinks ? values_of(o.sinks) : std::vector<double>{};
    at::Tensor out = fresh(dout.sizes());
    const at::Tensor sums = fresh({2, 6, 21});
    aten::attention(q, k, v, o, out, sums);
    const auto forward =
        ref::attention(values_of(q), values_of(k), values_of(v), o.scale, s, documents, sinks);
    expect_close(out, forward.out, kTolerance, "out");
    expect_close(sums, forward.logsumexp, kTolerance, "logsumexp");
    at::Tensor dq = fresh(q.sizes());
    at::Tensor dk = fresh(k.sizes());
    at::Tensor dv = fresh(v.sizes());
    const at::Tensor d_sinks = with_sinks ? fresh({6}) : at::Tensor();
    aten::attention_backward(dout, q, k, v, out, sums, o, dq, dk, dv, d_sinks);
    const auto backward = ref::attention_backward(values_of(dout), values_of(q), values_of(k),
                                                  values_of(v), o.scale, s, documents, sinks);
    expect_close(dq, backward.dq, kTolerance, "dq");
    expect_close(dk, backward.dk, kTolerance, "dk");
    expect_close(dv, backward.dv, kTolerance, "dv");
    if (with_sinks) expect_close(d_sinks, backward.d_sinks, kTolerance, "d_sinks");
  }
}

TEST(AtenTest, CrossEntropyIsThatOfTheReference) {
  const at::Tensor hidden = random({11, 6}, 1);
  const at::Tensor weight = random({17, 6}, 2);
  const std::vector<int64_t> ids = {3, 0, kIgnoredTarget, 16, 5, 5, 1, kIgnoredTarget, 2, 9, 11};
  for (const double softcap : {0.0, 1.5}) {
    CrossEntropyOutputs outputs;
    outputs.d_hidden = fresh(hidden.sizes());
    outputs.d_weight = fresh(weight.sizes());
    outputs.losses = fresh({11});
    const double loss =
        aten::linear_cross_entropy(hidden, weight, at::tensor(ids), 0.7, 4, outputs, softcap);
    const auto expected =
        ref::linear_cross_entropy(values_of(hidden), values_of(weight), ids, 0.7, 6, 17, softcap);
    EXPECT_NEAR(loss, expected.loss, kTolerance * expected.loss);
    expect_close(outputs.losses, expected.losses, kTolerance, "losses");
    expect_close(outputs.d_hidden, expected.d_hidden, kTolerance, "d_hidden");
    expect_close(outputs.d_weight, expected.d_weight, kTolerance, "d_weight");
  }
  EXPECT_THROW(aten::linear_cross_entropy(hidden.narrow(0, 0, 1), weight,
                                          at::tensor({17}, at::kLong), 1.0, 4, {}, 0.0),
               Error);
}

TEST(AtenTest, AdamWIsThatOfTheReference) {
  at::Tensor weights = random({23}, 1);
  const at::Tensor gradients = random({23}, 2);
  at::Tensor m = random({23}, 3);
  at::Tensor v = random({23}, 4).square();
  const AdamWParams params{.lr = 0.01,
                           .beta1 = 0.9,
                           .beta2 = 0.95,
                           .eps = 1e-8,
                           .weight_decay = 0.1,
                           .step = 5,
                           .gradient_scale = 0.5};
  auto w_expected = values_of(weights);
  auto m_expected = values_of(m);
  auto v_expected = values_of(v);
  ref::adamw(w_expected, values_of(gradients), m_expected, v_expected, params);
  const at::Tensor low = garbage({23}, at::kBFloat16);
  aten::adamw_(weights, gradients, m, v, low, params);
  expect_close(weights, w_expected, kTolerance, "weights");
  expect_close(m, m_expected, kTolerance, "exp_avg");
  expect_close(v, v_expected, kTolerance, "exp_avg_sq");
  EXPECT_TRUE(same_bits(low, weights.to(at::kBFloat16)));
}

/// By hand: tokens 0, 1, 2 choose experts (2, 0), (2, 1), (2, 0); expert 2 may keep two.
TEST(AtenTest, RowsAreSortedAndDroppedAsWrittenDown) {
  const at::Tensor choice = at::tensor({2, 0, 2, 1, 2, 0}, at::kLong).view({3, 2});
  const at::Tensor weights = at::tensor({0.5f, 0.1f, 0.9f, 0.2f, 0.5f, 0.3f}).view({3, 2});
  const ExpertRows all = aten::sort_by_expert(choice, {}, 4, 0, false);
  EXPECT_EQ(all.offsets, (GroupOffsets{0, 2, 3, 6, 6}));
  EXPECT_TRUE(at::equal(all.tokens, at::tensor({0, 2, 1, 0, 1, 2}, at::kLong)));
  EXPECT_TRUE(at::equal(all.rows, at::tensor({3, 0, 4, 2, 5, 1}, at::kLong).view({3, 2})));
  // The earlier of the two equal weights stays.
  const ExpertRows two = aten::sort_by_expert(choice, weights, 4, 2, true);
  EXPECT_EQ(two.offsets, (GroupOffsets{0, 2, 4, 6, 8}));
  EXPECT_TRUE(at::equal(two.tokens, at::tensor({0, 2, 1, -1, 0, 1, -1, -1}, at::kLong)));
  EXPECT_TRUE(at::equal(two.rows, at::tensor({4, 0, 5, 2, -1, 1}, at::kLong).view({3, 2})));
  EXPECT_EQ(two.dropped, 1);
}

}  // namespace
}  // namespace trireme::kernels
