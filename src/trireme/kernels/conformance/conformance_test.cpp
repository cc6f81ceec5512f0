#include "trireme/kernels/conformance/conformance.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "trireme/base/error.h"
#include "trireme/device/device.h"
#include "trireme/kernels/cpu/cpu_kernels.h"
#include "trireme/kernels/cpu/test_products.h"
#include "trireme/kernels/registry.h"

namespace trireme::kernels::conformance {
namespace {

void expect_conformance(const std::string& op, const std::string& kernel,
                        c10::DeviceType device = c10::kCPU) {
  const std::vector<Outcome> outcomes = check(op, kernel, device);
  EXPECT_FALSE(outcomes.empty());
  for (const Outcome& outcome : outcomes)
    EXPECT_EQ(outcome.problem, "") << op << " of " << kernel << " on " << outcome.trial;
}

TEST(ConformanceTest, EveryOpHasTrials) {
  EXPECT_EQ(ops_with_trials(), op_names());
}

class KernelConformance : public ::testing::TestWithParam<std::string> {};

TEST_P(KernelConformance, OfTheProcessorsKernel) {
  expect_conformance(GetParam(), "cpu");
}
TEST_P(KernelConformance, OfTheReferenceInItsOwnDtypes) {
  expect_conformance(GetParam(), "aten");
}
TEST_P(KernelConformance, OfTheSimulatedDevicesKernel) {
  device::get_device("sim");
  expect_conformance(GetParam(), "sim", c10::kPrivateUse1);
}
TEST_P(KernelConformance, OfTheReferenceOnTheSimulatedDevice) {
  device::get_device("sim");
  expect_conformance(GetParam(), "aten", c10::kPrivateUse1);
}
INSTANTIATE_TEST_SUITE_P(Ops, KernelConformance, ::testing::ValuesIn(op_names()),
                         [](const auto& info) { return info.param; });

TEST(ConformanceTest, HoldsForEveryWayToMultiply) {
  cpu::for_every_choice([] {
    for (const char* op :
         {"linear", "linear_backward_input", "linear_backward_weight", "gram",
          "linear_cross_entropy", "attention", "attention_backward", "grouped_linear",
          "grouped_linear_backward_input", "grouped_linear_backward_weight"})
      expect_conformance(op, "cpu");
  });
}

// --- Kernels that break the contract are found --------------------------------------------------

/// Off by the rounding of the sum to bfloat16.
void low_add(at::Tensor& a, const at::Tensor& b) {
  a.copy_(a.add(b).to(at::kBFloat16));
}
/// Correct, but writes what lies between the rows.
void spilling_norm(const at::Tensor& x, const at::Tensor& weight, double eps, at::Tensor& y,
                   at::Tensor rstd, double offset) {
  cpu::rms_norm(x, weight, eps, y, rstd, offset);
  if (y.dim() == 2 && y.size(0) > 1 && y.stride(0) > y.size(1))
    y.as_strided({y.size(0) - 1, 1}, {y.stride(0), 1}, y.storage_offset() + y.size(1)).fill_(0.0);
}
/// Reads its output where it must not.
void reading_norm(const at::Tensor& x, const at::Tensor& weight, double eps, at::Tensor& y,
                  at::Tensor rstd, double offset) {
  const at::Tensor before = y.clone();
  cpu::rms_norm(x, weight, eps, y, rstd, offset);
  y.add_(before.mul(0.0));
}
/// Copies what it sums first.
void holding_bias(const at::Tensor& dy, at::Tensor& dbias, bool accumulate) {
  const at::Tensor copy = dy.clone();
  cpu::bias_gradient(copy, dbias, accumulate);
}
void throwing_norm(const at::Tensor&, const at::Tensor&, double, at::Tensor&, at::Tensor, double) {
  throw std::runtime_error("no");
}

std::string first_problem(const std::string& op, const std::string& kernel) {
  for (const Outcome& outcome : check(op, kernel)) {
    if (!outcome.problem.empty()) return outcome.problem;
  }
  return "";
}

TEST(ConformanceTest, FindsWhatIsWrong) {
  Registrar& registrar = registry();
  const auto named = [](const char* name) {
    return KernelInfo{.name = name, .device = at::kCPU, .priority = -1};
  };
  registrar.add<&kernels::add_>(named("low"), &low_add);
  registrar.add<&kernels::rms_norm>(named("spilling"), &spilling_norm);
  registrar.add<&kernels::rms_norm>(named("reading"), &reading_norm);
  registrar.add<&kernels::rms_norm>(named("throwing"), &throwing_norm);
  KernelInfo understates = named("understates");
  understates.workspace = [](const CallSizes&) { return int64_t{0}; };
  registrar.add<&kernels::bias_gradient>(understates, &holding_bias);
  KernelInfo overstates = named("overstates");
  overstates.workspace = [](const CallSizes& c) { return 40 * c.rows * c.in; };
  registrar.add<&kernels::bias_gradient>(overstates, &holding_bias);
  KernelInfo honest = named("honest");
  honest.workspace = [](const CallSizes& c) {
    // Its copy, and the sums of up to 64 blocks of rows that the processor's kernel holds.
    const int64_t copy = (c.dtype == at::kFloat ? 4 : 2) * c.rows * c.in;
    return copy + 4 * c.in * std::min<int64_t>((c.rows + 63) / 64, 64);
  };
  registrar.add<&kernels::bias_gradient>(honest, &holding_bias);
  EXPECT_NE(first_problem("bias_gradient", "understates").find("and states 0"), std::string::npos);
  EXPECT_NE(first_problem("bias_gradient", "overstates").find("refuse what fits"),
            std::string::npos);
  EXPECT_EQ(first_problem("bias_gradient", "honest"), "");
  EXPECT_FALSE(check_workspace("bias_gradient", "honest").empty());
  EXPECT_TRUE(check_workspace("bias_gradient", "cpu").empty());
  EXPECT_NE(first_problem("add_", "low").find("the bound is"), std::string::npos);
  EXPECT_NE(first_problem("rms_norm", "spilling").find("between the rows"), std::string::npos);
  EXPECT_NE(first_problem("rms_norm", "reading").find("is nan"), std::string::npos);
  EXPECT_NE(first_problem("rms_norm", "throwing").find("it throws: no"), std::string::npos);
}

TEST(ConformanceTest, SuggestsTheNearestName) {
  try {
    check("rms_nrm", "cpu");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.hint(), "did you mean 'rms_norm'?");
  }
  EXPECT_THROW(check("rms_norm", "gpu"), Error);
  EXPECT_THROW(check("rms_norm", "sim"), Error);  // with tensors of the processor
}

}  // namespace
}  // namespace trireme::kernels::conformance
