#include "trireme/device/operators/operator_survey.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <map>

#include "trireme/device/device.h"
#include "trireme/device/sim/sim.h"

namespace trireme::device {
namespace {

using Where = OperatorUse::Where;

std::map<std::string, OperatorUse> by_name(const OperatorSurvey& survey) {
  std::map<std::string, OperatorUse> result;
  for (const OperatorUse& use : survey.uses()) result[use.name] = use;
  return result;
}

TEST(OperatorSurveyTest, KnowsWhoRunsAnOperator) {
  get_device("sim");
  constexpr auto kSim = c10::DeviceType::PrivateUse1;
  EXPECT_EQ(where_operator_runs("aten::fill_.Scalar", kSim), Where::kDevice);
  EXPECT_EQ(where_operator_runs("aten::linear", kSim), Where::kComposite);
  EXPECT_EQ(where_operator_runs("aten::mm.out", kSim), Where::kFallback);
  EXPECT_EQ(where_operator_runs("aten::mm.out", c10::DeviceType::CPU), Where::kDevice);
  EXPECT_EQ(where_operator_runs("aten::no_such_operator", kSim), Where::kMissing);
}

TEST(OperatorSurveyTest, CountsWhatTheDeviceItselfCounts) {
  const at::TensorOptions here = at::TensorOptions().device(get_device("sim").torch_device());
  sim::reset_fallback_counts();
  const OperatorSurvey survey(c10::DeviceType::PrivateUse1);
  at::Tensor x = at::ones({8, 8}, here);
  for (int i = 0; i < 3; ++i) x = at::linear(x, x).relu();
  x.add_(1).sum(0).cpu();
  at::ones({8, 8}).exp();  // the CPU's own business
  std::map<std::string, int64_t> counts;
  for (const auto& [name, use] : by_name(survey)) {
    if (use.where == Where::kFallback) counts[name] = use.calls;
  }
  EXPECT_FALSE(counts.empty());
  EXPECT_EQ(counts, sim::fallback_counts());
}

TEST(OperatorSurveyTest, AddsUpBytesAndTimeOfWhatRunsOnTheCpu) {
  const at::TensorOptions here = at::TensorOptions().device(get_device("sim").torch_device());
  const at::Tensor x = at::ones({16, 4}, here);
  const OperatorSurvey survey(c10::DeviceType::PrivateUse1);
  at::Tensor y = at::empty({16, 4}, here);
  at::exp_out(y, x);
  const auto uses = by_name(survey);
  ASSERT_TRUE(uses.contains("aten::exp.out"));
  // Argument, the result as an argument, and the result: 64 floats each.
  EXPECT_EQ(uses.at("aten::exp.out").bytes, 3 * 64 * 4);
  EXPECT_GT(uses.at("aten::exp.out").seconds, 0);
  EXPECT_EQ(survey.uses().front().name, "aten::exp.out");
  EXPECT_EQ(uses.at("aten::empty.memory_format").where, Where::kDevice);
  EXPECT_EQ(uses.at("aten::empty.memory_format").seconds, 0);
}

}  // namespace
}  // namespace trireme::device
