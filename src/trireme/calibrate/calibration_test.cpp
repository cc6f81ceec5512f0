// A machine whose numbers are known: the simulated device on its own clock. What calibration finds predicts steps that it has not seen.
#include "trireme/calibrate/calibration.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <random>
#include <set>

#include "trireme/calibrate/comparison.h"
#include "trireme/calibrate/kernel_rates.h"
#include "trireme/calibrate/link_rates.h"
#include "trireme/device/sim/sim.h"
#include "trireme/plan/profile_text.h"

namespace trireme::calibrate {
namespace {

TEST(LinkFit, FindsLatencyAndBandwidthThatWereDrawn) {
  std::mt19937_64 random(5);
  std::uniform_real_distribution<double> exponent(-1.0, 1.0);
  std::normal_distribution<double> noise(0.0, 0.01);
  for (int trial = 0; trial < 50; ++trial) {
    const double fixed = 2e-5 * std::pow(10.0, exponent(random));
    const double rate = 1e9 * std::pow(10.0, exponent(random));
    std::vector<std::pair<double, double>> points;
    for (double bytes = 1e2; bytes < 1e9; bytes *= 4.0)
      points.emplace_back(bytes, (fixed + bytes / rate) * (1.0 + noise(random)));
    const LineFit fit = fit_line(points);
    EXPECT_NEAR(fit.fixed_s / fixed, 1.0, 0.03);
    EXPECT_NEAR(fit.bytes_per_s / rate, 1.0, 0.03);
  }
  // Bytes that move at once, and calls that take nothing.
  EXPECT_NEAR(fit_line({{1e3, 1e-5}, {1e6, 1e-5}, {1e8, 1e-5}}).fixed_s, 1e-5, 1e-9);
  EXPECT_NEAR(fit_line({{1e3, 1e-6}, {1e6, 1e-3}, {1e8, 1e-1}}).bytes_per_s, 1e9, 1e4);
}

class Calibrations : public ::testing::Test {
 protected:
  void SetUp() override {
    threads_ = at::get_num_threads();
    at::set_num_threads(1);
    device::get_device("cpu");
    for (int rank = 0; rank < 2; ++rank) device::get_device(fmt::format("sim:{}", rank));
    auto profile = std::make_shared<device::sim::DeviceProfile>();
    profile->flops_per_s = {{c10::kFloat, 1e11}, {c10::kBFloat16, 2e11}};
    profile->bytes_per_s = 2e10;
    profile->host_link_bytes_per_s = 1e10;
    profile->launch_latency_s = 5e-6;
    device::sim::set_profile(profile);
    device::sim::restart_clock();
    use_.device = "sim";
    use_.links.simulated_clock = true;
    use_.links.inside_node = {2e-5, 2e9};
  }
  void TearDown() override {
    device::sim::set_profile(nullptr);
    device::sim::restart_clock();
    at::set_num_threads(threads_);
  }

  MachineUse use_;
  int threads_ = 1;
};

TEST_F(Calibrations, KernelsAreThoseOfTheClock) {
  plan::DeviceProfile profile;
  KernelRatesOptions options;
  options.rounds = 1;
  options.largest = 512;
  measure_kernels(device::get_device("sim:0"), options, profile);
  EXPECT_NEAR(profile.peak_flops.at(plan::ComputeType::kFp32) / 1e11, 1.0, 0.01);
  EXPECT_NEAR(profile.peak_flops.at(plan::ComputeType::kBf16) / 2e11, 1.0, 0.01);
  EXPECT_NEAR(profile.kernel_gap_s / 5e-6, 1.0, 0.01);
  EXPECT_NEAR(profile.host_link_bytes_per_s / 1e10, 1.0, 0.01);
  EXPECT_GT(profile.memory_bytes_per_s, 1.9e10);
}

TEST_F(Calibrations, LinksAreThoseOfTheClock) {
  const plan::LinkProfile link = measure_links(2, use_, 1);
  // A message of a device without links of its own goes to its host, over, and up again, at 10, 2 and 10 GB/s.
  const double expected = 1.0 / (1.0 / 1e10 + 1.0 / 2e9 + 1.0 / 1e10);
  EXPECT_NEAR(link.bytes_per_s * link.send_receive / expected, 1.0, 0.05);
  // And at least waits for the link's latency and a copy's launch at either end.
  EXPECT_GE(link.fixed_s, 2e-5);
  EXPECT_LE(link.fixed_s, 4.5e-5);
}

TEST_F(Calibrations, PredictStepsThatWereNotMeasuredWithinTwoPercent) {
  CalibrationOptions options;
  options.machine = use_;
  options.name = "here";
  options.rounds = options.steps = 1;
  options.largest_product = 512;
  options.precisions = {plan::Precision::kFp32};
  const Calibration calibration = calibrate(options);
  EXPECT_GT(calibration.spans, 1000);
  EXPECT_NEAR(calibration.machine.node.busy_slowdown, 1.0, 0.01);
  // As the planner will read it.
  plan::ProfileLibrary library;
  library.add(plan::profile_toml(calibration.machine, "a test", ""), "here.toml");
  std::vector<StepCase> cases = comparison_cases(2);
  std::erase_if(
      cases, [](const StepCase& one) { return one.strategy.precision != plan::Precision::kFp32; });
  EXPECT_GE(cases.size(), 20u);
  double worst = 0.0;
  for (const ComparedStep& step : compare_steps(cases, use_, library.cluster("here"), 1, {})) {
    EXPECT_LE(std::abs(step.error()), 0.02)
        << step.name << ": " << step.predicted_s << " s, measured " << step.median_s() << " s";
    EXPECT_GT(step.measured_share, 0.99) << step.name;
    worst = std::max(worst, std::abs(step.error()));
  }
  std::printf("%zu strategies, worst error %.2f %%\n", cases.size(), 100.0 * worst);
}

TEST(CalibrationCases, AreAllowedAndUnlikeThoseOfTheComparison) {
  std::set<std::pair<int64_t, int64_t>> widths;
  for (const plan::Precision precision : {plan::Precision::kFp32, plan::Precision::kBf16}) {
    for (const StepCase& one : calibration_cases(precision, 1)) {
      EXPECT_TRUE(plan::validate(one.spec, one.strategy).empty()) << one.name;
      widths.insert({one.spec.hidden, one.strategy.micro * one.strategy.seq_len});
    }
  }
  const std::vector<StepCase> compared = comparison_cases(2);
  EXPECT_GE(compared.size(), 20u);
  EXPECT_GE(comparison_cases(1).size(), 20u);
  for (const StepCase& one : compared) {
    EXPECT_TRUE(plan::validate(one.spec, one.strategy).empty()) << one.name;
    EXPECT_FALSE(widths.contains({one.spec.hidden, one.strategy.micro * one.strategy.seq_len}))
        << one.name;
  }
}

}  // namespace
}  // namespace trireme::calibrate
