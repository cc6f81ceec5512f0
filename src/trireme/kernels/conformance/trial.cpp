#include "trireme/kernels/conformance/trial.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/scalar_tensor.h>

#include <cmath>
#include <limits>
#include <random>

namespace trireme::kernels::conformance {

namespace {

constexpr int64_t kGap = 3;  ///< elements between strided rows

}  // namespace

at::Tensor Trial::normal(at::IntArrayRef sizes) {
  std::mt19937_64 engine(7919 + ++draws_);
  std::normal_distribution<double> distribution;
  at::Tensor tensor = at::empty(sizes, at::TensorOptions().dtype(at::kDouble));
  double* data = tensor.data_ptr<double>();
  for (int64_t i = 0; i < tensor.numel(); ++i) data[i] = distribution(engine);
  return tensor;
}

at::Tensor Trial::random(at::IntArrayRef sizes) {
  const at::Tensor values = normal(sizes);
  switch (setting_.values) {
    case Values::kNormal:
      break;
    case Values::kTiny:
      return values * static_cast<double>(std::numeric_limits<float>::min());
    case Values::kInfinite: {
      double* data = values.data_ptr<double>();
      for (int64_t i = 5; i < values.numel(); i += 16)
        data[i] = std::copysign(std::numeric_limits<double>::infinity(), data[i]);
      break;
    }
  }
  return values;
}

at::Tensor Trial::integers(at::IntArrayRef sizes, int64_t limit) {
  std::mt19937_64 engine(104729 + ++draws_);
  at::Tensor tensor = at::empty(sizes, at::TensorOptions().dtype(at::kLong));
  auto* data = tensor.data_ptr<int64_t>();
  for (int64_t i = 0; i < tensor.numel(); ++i)
    data[i] = static_cast<int64_t>(engine() % static_cast<uint64_t>(limit));
  return reference_ ? tensor : tensor.to(setting_.device);
}

at::Tensor Trial::nans(at::IntArrayRef sizes) {
  return at::full(sizes, std::nan(""), at::TensorOptions().dtype(at::kDouble));
}

at::Tensor Trial::as(const at::Tensor& values, at::ScalarType dtype) const {
  const at::Tensor rounded = values.to(dtype);
  return reference_ ? rounded.to(at::kDouble) : rounded.to(setting_.device);
}

at::Tensor Trial::strided(const at::Tensor& tensor) {
  if (!setting_.strided || reference_) return tensor;
  std::vector<int64_t> sizes = tensor.sizes().vec();
  const int64_t width = sizes.back();
  sizes.back() += kGap;
  const at::Tensor wider = at::full(sizes, std::nan(""), tensor.options());
  at::Tensor view = wider.narrow(-1, 0, width);
  view.copy_(tensor);
  gaps_.push_back(wider.narrow(-1, width, kGap));
  return view;
}

void Trial::result(const char* name, const at::Tensor& value, Bound bound) {
  results_.push_back({name, value, std::move(bound)});
}

void Trial::result(const char* name, double value, Bound bound) {
  result(name, at::scalar_tensor(value, at::TensorOptions().dtype(at::kDouble)), std::move(bound));
}

bool Trial::wrote_between_rows() const {
  for (const at::Tensor& gap : gaps_) {
    if (!gap.isnan().all().item<bool>()) return true;
  }
  return false;
}

}  // namespace trireme::kernels::conformance
