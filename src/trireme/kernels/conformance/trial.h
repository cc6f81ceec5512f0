// One call of an op, written once and run twice: by the kernel in its dtype, and by the reference in float64. Private to
// conformance/.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "trireme/kernels/plugin.h"

namespace trireme::kernels::conformance {

enum class Values {
  kNormal,    ///< of the standard normal distribution
  kTiny,      ///< around the smallest normal float32
  kInfinite,  ///< normal, one in sixteen infinite
};

/// What is varied over the trials of an op.
struct Setting {
  std::vector<int64_t> sizes;  ///< what they mean is the trial's
  int option = 0;              ///< likewise
  at::ScalarType dtype = at::kFloat;
  bool strided = false;  ///< rows lie in a wider matrix
  Values values = Values::kNormal;
  at::DeviceType device = at::kCPU;
};

/// n, l and m of conformance.h.
struct Bound {
  double operations = 1.0;
  double low_roundings = 0.0;
  at::Tensor magnitude = {};  ///< undefined: that of the result
};

struct NamedResult {
  std::string name;
  at::Tensor value;
  Bound bound;
};

/// The inputs and outputs of a call. Both runs draw the same inputs: exact in the kernel's dtype.
class Trial {
 public:
  Trial(const Setting& setting, bool reference) : setting_(setting), reference_(reference) {}

  const Setting& setting() const { return setting_; }
  int64_t size(size_t i) const { return setting_.sizes.at(i); }
  int option() const { return setting_.option; }
  bool reference() const { return reference_; }

  /// Random inputs: contiguous in the compute dtype, the same with strided rows, and contiguous float32.
  at::Tensor input(at::IntArrayRef sizes) { return compute(random(sizes)); }
  at::Tensor rows(at::IntArrayRef sizes) { return strided(compute(random(sizes))); }
  at::Tensor floats(at::IntArrayRef sizes) { return wide(random(sizes)); }
  /// 0 .. limit - 1.
  at::Tensor integers(at::IntArrayRef sizes, int64_t limit);

  /// Inputs of given values.
  at::Tensor compute(const at::Tensor& values) const { return as(values, setting_.dtype); }
  at::Tensor wide(const at::Tensor& values) const { return as(values, at::kFloat); }
  at::Tensor low(const at::Tensor& values) const { return as(values, at::kBFloat16); }
  /// The same values with rows in a wider matrix, if the setting says so. What lies between them must stay as it is.
  at::Tensor strided(const at::Tensor& tensor);

  /// Outputs, full of NaN.
  at::Tensor output(at::IntArrayRef sizes) { return compute(nans(sizes)); }
  at::Tensor output_rows(at::IntArrayRef sizes) { return strided(compute(nans(sizes))); }
  at::Tensor float_output(at::IntArrayRef sizes) { return wide(nans(sizes)); }
  at::Tensor low_output(at::IntArrayRef sizes) { return low(nans(sizes)); }

  /// Draws of a standard normal distribution in float64 on the CPU, whatever the setting's values.
  at::Tensor normal(at::IntArrayRef sizes);

  /// What the call gave.
  void result(const char* name, const at::Tensor& value, Bound bound = {});
  void result(const char* name, double value, Bound bound = {});
  void exact(const char* name, const at::Tensor& value) {
    result(name, value, {.operations = 0.0});
  }

  const std::vector<NamedResult>& results() const { return results_; }
  bool wrote_between_rows() const;

 private:
  at::Tensor random(at::IntArrayRef sizes);
  static at::Tensor nans(at::IntArrayRef sizes);
  at::Tensor as(const at::Tensor& values, at::ScalarType dtype) const;

  const Setting& setting_;
  bool reference_;
  uint64_t draws_ = 0;
  std::vector<at::Tensor> gaps_;
  std::vector<NamedResult> results_;
};

/// The trials of one op.
struct TrialTable {
  const char* op;
  std::vector<std::vector<int64_t>> sizes;
  std::vector<const char*> options = {""};
  bool strided_rows = false;
  std::vector<Values> more_values = {};  ///< beside kNormal
  void (*run)(detail::AnyFunction function, Trial& trial) = nullptr;
};

template <auto kOp, void (*kRun)(decltype(kOp), Trial&)>
void run_as(detail::AnyFunction function, Trial& trial) {
  kRun(reinterpret_cast<decltype(kOp)>(function), trial);
}
/// The op's name and the function that tries it.
#define TRIREME_TRIAL(name) run_as<&kernels::name, try_##name>

std::vector<TrialTable> dense_trials();
std::vector<TrialTable> elementwise_trials();
std::vector<TrialTable> attention_trials();
std::vector<TrialTable> expert_trials();

}  // namespace trireme::kernels::conformance
