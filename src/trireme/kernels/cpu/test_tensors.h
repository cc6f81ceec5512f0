// Random tensors and comparisons for the tests of this folder.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

namespace trireme::kernels {

/// A normal random tensor whose values are exact in `dtype`.
inline at::Tensor random_tensor(at::IntArrayRef sizes, at::ScalarType dtype, uint32_t seed,
                                double scale = 1.0) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  at::Tensor tensor = at::empty(sizes, at::kFloat);
  float* data = tensor.data_ptr<float>();
  for (int64_t i = 0; i < tensor.numel(); ++i) data[i] = static_cast<float>(scale) * normal(engine);
  return tensor.to(dtype);
}

/// Garbage that a kernel must overwrite.
inline at::Tensor garbage(at::IntArrayRef sizes, at::ScalarType dtype) {
  return at::full(sizes, std::nan(""), at::TensorOptions().dtype(dtype));
}

inline std::vector<double> values_of(const at::Tensor& tensor) {
  const at::Tensor wide = tensor.to(at::kDouble).contiguous();
  return {wide.const_data_ptr<double>(), wide.const_data_ptr<double>() + wide.numel()};
}

/// |actual - expected| <= rtol * max(|expected|, largest |expected| * 1e-2 ... ) in float32 or bfloat16 terms:
/// `tolerance` is relative to the root mean square of what is expected, or to the entry where that is larger.
inline void expect_close(const at::Tensor& actual, const std::vector<double>& expected,
                         double tolerance, const char* what) {
  const std::vector<double> got = values_of(actual);
  ASSERT_EQ(got.size(), expected.size()) << what;
  double square = 0.0;
  for (const double e : expected) square += e * e;
  const double rms =
      expected.empty() ? 0.0 : std::sqrt(square / static_cast<double>(expected.size()));
  for (size_t i = 0; i < got.size(); ++i) {
    const double bound = tolerance * std::max(std::abs(expected[i]), rms);
    ASSERT_LE(std::abs(got[i] - expected[i]), bound + 1e-30)
        << what << " entry " << i << ": " << got[i] << " instead of " << expected[i];
  }
}

/// Rounding of a result to the dtype, with room for float32 accumulation.
inline double tolerance_of(at::ScalarType dtype) {
  return dtype == at::kBFloat16 ? 0.006 : 1e-5;
}

inline bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.sizes() == b.sizes() && a.scalar_type() == b.scalar_type() && at::equal(a, b);
}

}  // namespace trireme::kernels
