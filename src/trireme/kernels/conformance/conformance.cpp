#include "trireme/kernels/conformance/conformance.h"

#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "trireme/base/error.h"
#include "trireme/base/suggest.h"
#include "trireme/kernels/aten/aten_kernels.h"
#include "trireme/kernels/conformance/trial.h"
#include "trireme/kernels/registry.h"

namespace trireme::kernels::conformance {

namespace {

const std::vector<TrialTable>& tables() {
  static const std::vector<TrialTable> all = [] {
    std::vector<TrialTable> result;
    for (auto* make : {&dense_trials, &elementwise_trials, &attention_trials, &expert_trials}) {
      for (TrialTable& table : make()) result.push_back(std::move(table));
    }
    return result;
  }();
  return all;
}

/// The op's function of the kernel, without its type.
detail::AnyFunction function_of(const std::string& op, const std::string& kernel) {
#define X(name, dtypes) \
  if (op == #name)      \
    return reinterpret_cast<detail::AnyFunction>(registry().find_named<&kernels::name>(kernel));
  TRIREME_KERNEL_OPS(X)
#undef X
  return nullptr;
}

detail::AnyFunction reference_of(const std::string& op) {
#define X(name, dtypes) \
  if (op == #name) return reinterpret_cast<detail::AnyFunction>(&aten::name);
  TRIREME_KERNEL_OPS(X)
#undef X
  return nullptr;
}

double unit_roundoff(at::ScalarType dtype) {
  return dtype == at::kBFloat16 ? std::ldexp(1.0, -8) : std::ldexp(1.0, -24);
}

std::vector<double> values_of(const at::Tensor& tensor) {
  const at::Tensor flat = tensor.to(at::kCPU).to(at::kDouble).contiguous();
  return {flat.const_data_ptr<double>(), flat.const_data_ptr<double>() + flat.numel()};
}

/// Compares a result with the reference's; adds to the outcome.
void compare(const NamedResult& got, const NamedResult& want, at::ScalarType compute,
             Outcome& outcome) {
  const std::vector<double> values = values_of(got.value);
  const std::vector<double> expected = values_of(want.value);
  const std::vector<double> magnitudes =
      values_of(want.bound.magnitude.defined() ? want.bound.magnitude.expand_as(want.value).abs()
                                               : want.value.abs());
  if (values.size() != expected.size()) {
    outcome.problem =
        fmt::format("{} has {} elements, not {}", got.name, values.size(), expected.size());
    return;
  }
  const double u = unit_roundoff(at::kFloat);
  const double v = unit_roundoff(got.value.scalar_type());
  const double n = want.bound.operations;
  const double gamma = n * u / (1.0 - n * u);
  const double low = want.bound.low_roundings * unit_roundoff(compute);
  const double tiny = static_cast<double>(std::numeric_limits<float>::min());
  const bool exact = n == 0.0;
  for (size_t i = 0; i < values.size(); ++i) {
    const double y = expected[i];
    if (std::isnan(y) ? std::isnan(values[i]) : values[i] == y) continue;
    const double bound = exact ? 0.0 : v * std::abs(y) + (gamma + low) * magnitudes[i] + n * tiny;
    const double error = std::abs(values[i] - y);
    const double share = exact ? std::numeric_limits<double>::infinity() : error / bound;
    if (std::isfinite(share)) outcome.worst = std::max(outcome.worst, share);
    if (share <= 1.0) continue;
    if (outcome.problem.empty()) {
      outcome.problem = fmt::format("{}[{}] is {:.9g}, the reference {:.9g}; the bound is {:.3g}",
                                    got.name, i, values[i], y, bound);
    }
  }
}

std::string describe(const TrialTable& table, const Setting& setting) {
  const std::string option = table.options[static_cast<size_t>(setting.option)];
  return fmt::format("[{}]{}{}, {}{}{}", fmt::join(setting.sizes, ", "), option.empty() ? "" : " ",
                     option, setting.dtype == at::kFloat ? "float32" : "bfloat16",
                     setting.strided ? ", strided rows" : "",
                     setting.values == Values::kTiny       ? ", denormals"
                     : setting.values == Values::kInfinite ? ", infinities"
                                                           : "");
}

Outcome run(const TrialTable& table, const std::string& kernel, const Setting& setting) {
  Outcome outcome{table.op, kernel, describe(table, setting), 0.0, ""};
  Trial ours(setting, false);
  Trial reference(setting, true);
  table.run(reference_of(table.op), reference);
  try {
    table.run(function_of(table.op, kernel), ours);
  } catch (const c10::Error& error) {
    outcome.problem = fmt::format("it throws: {}", error.what_without_backtrace());
    return outcome;
  } catch (const std::exception& error) {
    outcome.problem = fmt::format("it throws: {}", error.what());
    return outcome;
  }
  for (size_t i = 0; i < reference.results().size() && outcome.problem.empty(); ++i)
    compare(ours.results()[i], reference.results()[i], setting.dtype, outcome);
  if (outcome.problem.empty() && ours.wrote_between_rows())
    outcome.problem = "it writes between the rows of a strided tensor";
  return outcome;
}

const TrialTable& table_of(const std::string& op) {
  for (const TrialTable& table : tables()) {
    if (op == table.op) return table;
  }
  op_dtypes(op);  // or says that there is no such op
  throw Error(ErrorCode::kConfig, fmt::format("{} has no conformance trials yet", op),
              suggestion("", ops_with_trials()));
}

}  // namespace

std::vector<std::string> ops_with_trials() {
  std::vector<std::string> names;
  for (const std::string& op : op_names()) {
    for (const TrialTable& table : tables()) {
      if (op == table.op) names.push_back(op);
    }
  }
  return names;
}

std::vector<Outcome> check(const std::string& op, const std::string& kernel,
                           c10::DeviceType device) {
  const TrialTable& table = table_of(op);
  function_of(op, kernel);  // or says that there is none
  const std::vector<std::string> runnable = registry().kernels_of(op, device);
  TRIREME_USER_CHECK(std::find(runnable.begin(), runnable.end(), kernel) != runnable.end(), kConfig,
                     fmt::format("there: {}", fmt::join(runnable, ", ")),
                     "the kernel '{}' of {} is not for the device {}", kernel, op,
                     c10::DeviceTypeName(device, true));
  std::vector<Values> values = {Values::kNormal};
  values.insert(values.end(), table.more_values.begin(), table.more_values.end());
  std::vector<Outcome> outcomes;
  for (const std::vector<int64_t>& sizes : table.sizes) {
    for (size_t option = 0; option < table.options.size(); ++option) {
      for (const at::ScalarType dtype : registry().dtypes_of_kernel(op, kernel)) {
        for (const bool strided : {false, true}) {
          if (strided && !table.strided_rows) continue;
          for (const Values value : values) {
            outcomes.push_back(run(
                table, kernel, {sizes, static_cast<int>(option), dtype, strided, value, device}));
          }
        }
      }
    }
  }
  const std::vector<Outcome> held = check_workspace(op, kernel, device);
  outcomes.insert(outcomes.end(), held.begin(), held.end());
  return outcomes;
}

}  // namespace trireme::kernels::conformance
