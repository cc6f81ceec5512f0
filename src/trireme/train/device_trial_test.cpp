#include "trireme/train/device_trial.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "trireme/device/sim/sim.h"

namespace trireme::train {
namespace {

TEST(DeviceTrialTest, TheSimulatedAcceleratorHasTheBitsOfTheProcessor) {
  for (const TrialComparison& run : compare_training(device::get_device("sim"))) {
    EXPECT_TRUE(run.same_bits) << run.name;
    EXPECT_EQ(run.problem, "") << run.name;
    EXPECT_EQ(run.got.size(), 4U);
    // It learns: the same tokens come every step.
    EXPECT_LT(run.got.back().loss, run.got.front().loss);
  }
}

TEST(DeviceTrialTest, AWrongExponentIsOutsideOfTheBound) {
  device::Device& sim = device::get_device("sim");
  device::sim::inject_fault(
      0, {.kind = device::sim::Fault::Kind::kFlipBit, .kernel = "linear", .bit = 30});
  const auto runs = compare_training(sim);
  EXPECT_FALSE(runs.front().same_bits);
  EXPECT_NE(runs.front().problem, "");
  device::sim::recover(0);
}

TEST(DeviceTrialTest, ADeviceThatFailsIsAProblem) {
  device::Device& sim = device::get_device("sim");
  device::sim::inject_fault(0, {.kind = device::sim::Fault::Kind::kFail, .kernel = "rms_norm"});
  EXPECT_NE(compare_training(sim).front().problem.find("rms_norm"), std::string::npos);
  device::sim::recover(0);
}

TEST(DeviceTrialTest, MovedWeightsMoveTheLossByAboutAsMuch) {
  const TrialRun run = trial_runs().front();
  const double loss = run_trial(run, at::kCPU, 1).front().loss;
  EXPECT_EQ(run_trial(run, at::kCPU, 1, 0.0, 5).front().loss, loss);
  const double little = std::abs(run_trial(run, at::kCPU, 1, 1e-4, 1).front().loss - loss);
  const double more = std::abs(run_trial(run, at::kCPU, 1, 1e-3, 1).front().loss - loss);
  EXPECT_GT(more, little);
  EXPECT_LT(more, 1e-2 * loss);
}

TEST(DeviceTrialTest, SurveysWhatAStepCalls) {
  device::Device& sim = device::get_device("sim");
  for (const TrialRun& run : trial_runs()) {
    device::sim::reset_fallback_counts();
    const TrialSurvey survey = survey_trial(run, sim);
    EXPECT_TRUE(survey.missing().empty());
    EXPECT_GT(survey.step_s, survey.cpu_s);
    // Who counts fallbacks on the device itself has no other names.
    for (const device::OperatorUse& use : survey.uses) {
      if (use.where == device::OperatorUse::Where::kFallback) {
        EXPECT_TRUE(device::sim::fallback_counts().contains(use.name)) << use.name;
      }
    }
    EXPECT_TRUE(std::any_of(survey.uses.begin(), survey.uses.end(), [](const auto& use) {
      return use.name == "aten::empty.memory_format" &&
             use.where == device::OperatorUse::Where::kDevice;
    }));
  }
}

}  // namespace
}  // namespace trireme::train
