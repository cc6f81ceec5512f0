// The reference's gradients against central differences in double.
#include "trireme/kernels/ref/reference.h"

#include <gtest/gtest.h>

#include <functional>
#include <random>

namespace trireme::kernels::ref {
namespace {

Array<double> random_array(int64_t n, uint32_t seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<double> normal;
  Array<double> values(index(n));
  for (double& value : values) value = normal(engine);
  return values;
}

double dot(const Array<double>& a, const Array<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

/// Expects d objective / d x = gradient, entry by entry.
void expect_gradient(Array<double> x, const Array<double>& gradient,
                     const std::function<double(const Array<double>&)>& objective) {
  constexpr double kStep = 1e-5;
  ASSERT_EQ(x.size(), gradient.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const double kept = x[i];
    x[i] = kept + kStep;
    const double up = objective(x);
    x[i] = kept - kStep;
    const double down = objective(x);
    x[i] = kept;
    EXPECT_NEAR((up - down) / (2 * kStep), gradient[i], 1e-7 * std::max(1.0, std::abs(gradient[i])))
        << "entry " << i;
  }
}

TEST(ReferenceTest, RmsNormGradientMatchesDifferences) {
  const int64_t rows = 3;
  const int64_t d = 5;
  const auto x = random_array(rows * d, 1);
  const auto w = random_array(d, 2);
  const auto dy = random_array(rows * d, 3);
  const auto g = rms_norm_backward(dy, x, w, 1e-5, rows, d);
  expect_gradient(x, g.dx, [&](const auto& v) { return dot(dy, rms_norm(v, w, 1e-5, rows, d)); });
  expect_gradient(w, g.dweight,
                  [&](const auto& v) { return dot(dy, rms_norm(x, v, 1e-5, rows, d)); });
}

TEST(ReferenceTest, LayerNormGradientMatchesDifferences) {
  const int64_t rows = 3;
  const int64_t d = 6;
  const auto x = random_array(rows * d, 1);
  const auto w = random_array(d, 2);
  const auto b = random_array(d, 4);
  const auto dy = random_array(rows * d, 3);
  const auto g = layer_norm_backward(dy, x, w, 1e-5, rows, d);
  expect_gradient(x, g.dx,
                  [&](const auto& v) { return dot(dy, layer_norm(v, w, b, 1e-5, rows, d)); });
  expect_gradient(w, g.dweight,
                  [&](const auto& v) { return dot(dy, layer_norm(x, v, b, 1e-5, rows, d)); });
  expect_gradient(b, g.dbias,
                  [&](const auto& v) { return dot(dy, layer_norm(x, w, v, 1e-5, rows, d)); });
}

TEST(ReferenceTest, ActivationSlopesMatchDifferences) {
  const auto x = random_array(40, 7);
  for (const auto act :
       {Activation::kSilu, Activation::kGeluTanh, Activation::kGelu, Activation::kRelu}) {
    for (const double v : x) {
      constexpr double kStep = 1e-6;
      const double difference =
          (activation(act, v + kStep) - activation(act, v - kStep)) / (2 * kStep);
      EXPECT_NEAR(activation_slope(act, v), difference, 1e-8);
    }
  }
}

TEST(ReferenceTest, AttentionGradientMatchesDifferences) {
  AttentionShape s{2, 5, 5, 4, 2, 3};
  const Segments segments = {{0, 2}, {0, 1, 4}};
  const auto sinks = random_array(s.heads, 5);
  for (const bool options : {false, true}) {
    if (options) {
      s.value_d = 2;
      s.window = 2;
      s.softcap = 0.7;
    }
    const auto q = random_array(s.batch * s.queries * s.heads * s.d, 1);
    const auto k = random_array(s.batch * s.keys * s.kv_heads * s.d, 2);
    const auto v = random_array(s.batch * s.keys * s.kv_heads * s.value_dim(), 3);
    const auto dout = random_array(s.batch * s.queries * s.heads * s.value_dim(), 4);
    const auto logits = options ? sinks : Array<double>{};
    for (const Segments* documents : {static_cast<const Segments*>(nullptr), &segments}) {
      const auto g = attention_backward(dout, q, k, v, 0.6, s, documents, logits);
      const auto value = [&](const auto& a, const auto& b, const auto& c, const auto& sink) {
        return dot(dout, attention(a, b, c, 0.6, s, documents, sink).out);
      };
      expect_gradient(q, g.dq, [&](const auto& a) { return value(a, k, v, logits); });
      expect_gradient(k, g.dk, [&](const auto& a) { return value(q, a, v, logits); });
      expect_gradient(v, g.dv, [&](const auto& a) { return value(q, k, a, logits); });
      if (options)
        expect_gradient(sinks, g.d_sinks, [&](const auto& a) { return value(q, k, v, a); });
    }
  }
}

TEST(ReferenceTest, CrossEntropyGradientMatchesDifferences) {
  const int64_t d = 4;
  const int64_t vocab = 7;
  const Array<int64_t> targets = {3, kIgnoredTarget, 6, 0};
  const auto hidden = random_array(4 * d, 1);
  const auto weight = random_array(vocab * d, 2);
  for (const double softcap : {0.0, 0.8}) {
    const auto g = linear_cross_entropy(hidden, weight, targets, 0.25, d, vocab, softcap);
    expect_gradient(hidden, g.d_hidden, [&](const auto& a) {
      return 0.25 * linear_cross_entropy(a, weight, targets, 0.25, d, vocab, softcap).loss;
    });
    expect_gradient(weight, g.d_weight, [&](const auto& a) {
      return 0.25 * linear_cross_entropy(hidden, a, targets, 0.25, d, vocab, softcap).loss;
    });
  }
}

TEST(ReferenceTest, RotaryTurnsByTheAngleAndBack) {
  const int64_t half = 2;
  const Array<int64_t> positions = {0, 3};
  Array<double> cos;
  Array<double> sin;
  for (int64_t p = 0; p < 4; ++p) {
    for (int64_t i = 0; i < half; ++i) {
      cos.push_back(std::cos(0.3 * static_cast<double>(p * (i + 1))));
      sin.push_back(std::sin(0.3 * static_cast<double>(p * (i + 1))));
    }
  }
  const auto x = random_array(2 * 1 * 5, 1);
  auto y = x;
  rotary(y, positions, cos, sin, 1, 5, half, false);
  EXPECT_EQ(y[4], x[4]);  // not rotated
  EXPECT_NEAR(y[5], x[5] * std::cos(0.9) - x[7] * std::sin(0.9), 1e-12);
  EXPECT_NEAR(y[7], x[7] * std::cos(0.9) + x[5] * std::sin(0.9), 1e-12);
  rotary(y, positions, cos, sin, 1, 5, half, true);
  for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(y[i], x[i], 1e-12);
}

}  // namespace
}  // namespace trireme::kernels::ref
