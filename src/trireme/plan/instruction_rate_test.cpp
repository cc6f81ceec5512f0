#include "trireme/plan/instruction_rate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "trireme/base/error.h"

namespace trireme::plan {
namespace {

const InstructionClass kMlp{"mlp", "forward", ComputeType::kFp32};

TableSeconds drawn(std::mt19937_64& random) {
  std::uniform_real_distribution<double> logarithm(-9.0, -3.0);
  return {std::exp(logarithm(random)), std::exp(logarithm(random)), std::exp(logarithm(random))};
}

double law(const InstructionRate& truth, const TableSeconds& tables) {
  return truth.fixed_s + truth.products * tables.products + truth.attention * tables.attention +
         truth.memory * tables.memory;
}

// Known numbers, drawn: without noise the fit gives them back.
TEST(InstructionRate, FindsTheNumbersThatMadeTheSeconds) {
  std::mt19937_64 random(7);
  std::uniform_real_distribution<double> factor(0.3, 3.0);
  for (int trial = 0; trial < 50; ++trial) {
    InstructionRate truth;
    truth.fixed_s = 1e-4 * factor(random);
    truth.products = factor(random);
    truth.attention = factor(random);
    truth.memory = factor(random);
    std::vector<MeasuredInstruction> measured;
    for (int i = 0; i < 40; ++i) {
      const TableSeconds tables = drawn(random);
      measured.push_back({tables, law(truth, tables), 3.0});
    }
    const InstructionRate rate = fit_rate(kMlp, measured);
    EXPECT_NEAR(rate.fixed_s / truth.fixed_s, 1.0, 0.01);
    EXPECT_NEAR(rate.products / truth.products, 1.0, 0.01);
    EXPECT_NEAR(rate.attention / truth.attention, 1.0, 0.01);
    EXPECT_NEAR(rate.memory / truth.memory, 1.0, 0.01);
    EXPECT_LT(rate.residual, 1e-3);
    const TableSeconds other = drawn(random);
    EXPECT_NEAR(rate.seconds(other) / law(truth, other), 1.0, 0.01);
  }
}

// A tenth of the spans were interrupted and took up to ten times as long; the others are off by 3 % either way.
TEST(InstructionRate, SpansThatWereInterruptedDoNotCarryIt) {
  std::mt19937_64 random(11);
  std::normal_distribution<double> noise(0.0, 0.03);
  std::uniform_real_distribution<double> uniform(0.0, 1.0);
  double worst = 0.0;
  for (int trial = 0; trial < 20; ++trial) {
    InstructionRate truth;
    truth.fixed_s = 2e-4;
    truth.products = 1.3;
    truth.attention = 0.8;
    truth.memory = 2.0;
    std::vector<MeasuredInstruction> measured;
    for (int i = 0; i < 200; ++i) {
      const TableSeconds tables = drawn(random);
      const double interrupted = uniform(random) < 0.1 ? 1.0 + 9.0 * uniform(random) : 1.0;
      measured.push_back({tables, law(truth, tables) * std::exp(noise(random)) * interrupted, 1.0});
    }
    const InstructionRate rate = fit_rate(kMlp, measured);
    for (int i = 0; i < 20; ++i) {
      const TableSeconds other = drawn(random);
      worst = std::max(worst, std::abs(rate.fitted(other) / law(truth, other) - 1.0));
    }
  }
  EXPECT_LT(worst, 0.05);
}

TEST(InstructionRate, NoNumberIsNegative) {
  // The larger, the quicker: nothing of the law explains that.
  const InstructionRate rate = fit_rate(
      kMlp, {{{1e-3, 0.0, 1e-4}, 4e-3}, {{2e-3, 0.0, 1e-4}, 3e-3}, {{4e-3, 0.0, 1e-4}, 2e-3}});
  EXPECT_GE(rate.fixed_s, 0.0);
  EXPECT_GE(rate.products, 0.0);
  EXPECT_GE(rate.attention, 0.0);
  EXPECT_GE(rate.memory, 0.0);
}

// One size tells a factor and no more: twice the work takes twice as long.
TEST(InstructionRate, OneSizeKeepsTheTablesProportions) {
  const InstructionRate rate = fit_rate(kMlp, {{{2e-3, 0.0, 1e-3}, 6e-3}});
  EXPECT_NEAR(rate.products, 2.0, 1e-3);
  EXPECT_NEAR(rate.memory, 2.0, 1e-3);
  EXPECT_NEAR(rate.seconds({4e-3, 0.0, 2e-3}), 12e-3, 1e-5);
}

TEST(InstructionRate, AMeasuredSizeIsWhatItWasAndItsNeighboursLeanToIt) {
  std::vector<MeasuredInstruction> measured;
  for (int i = 0; i < 12; ++i) {
    const double size = std::pow(2.0, i) * 1e-5;
    measured.push_back({{size, 0.0, 0.0}, size});
  }
  measured[6].seconds *= 1.5;
  const InstructionRate rate = fit_rate(kMlp, measured);
  const TableSeconds odd = measured[6].tables;
  EXPECT_DOUBLE_EQ(rate.seconds(odd), measured[6].seconds);
  EXPECT_NEAR(rate.seconds({odd.products * 1.05, 0.0, 0.0}) / (odd.products * 1.05), 1.5, 0.05);
  EXPECT_NEAR(rate.seconds(measured[9].tables) / measured[9].seconds, 1.0, 1e-9);
  // Far from all, the fit.
  EXPECT_NEAR(rate.seconds({1.0, 0.0, 0.0}), 1.0, 0.02);
}

TEST(InstructionRate, SpansOfOneSizeArePutTogether) {
  const InstructionRate rate =
      fit_rate(kMlp, {{{1e-3, 0.0, 0.0}, 2e-3, 1.0}, {{1e-3, 0.0, 0.0}, 4e-3, 3.0}});
  ASSERT_EQ(rate.measured.size(), 1u);
  EXPECT_DOUBLE_EQ(rate.measured.front().seconds, 3.5e-3);
  EXPECT_EQ(rate.measured.front().spans, 4.0);
}

TEST(InstructionRate, WorkWithoutATableIsFixed) {
  const InstructionRate rate =
      fit_rate({"-", "commit", ComputeType::kFp32}, {{{}, 5e-6}, {{}, 7e-6}});
  EXPECT_NEAR(rate.seconds({}), 6e-6, 1e-9);
}

TEST(InstructionRate, NothingMeasuredIsADefect) {
  EXPECT_THROW(fit_rate(kMlp, {}), Error);
  EXPECT_THROW(fit_rate(kMlp, {{{1e-3, 0.0, 0.0}, 0.0}}), Error);
}

}  // namespace
}  // namespace trireme::plan
