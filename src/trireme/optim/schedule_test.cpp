#include "trireme/optim/schedule.h"

#include <gtest/gtest.h>

#include <cmath>

#include "trireme/base/error.h"

namespace trireme::optim {
namespace {

ScheduleSpec spec_of(ScheduleKind kind) {
  ScheduleSpec spec;
  spec.kind = kind;
  spec.peak = 2.0;
  spec.min_ratio = 0.1;
  spec.steps = 111;
  spec.warmup = 10;
  return spec;
}

TEST(ScheduleTest, WarmsUpLinearlyToThePeak) {
  for (const auto kind : {ScheduleKind::kCosine, ScheduleKind::kLinear, ScheduleKind::kConstant,
                          ScheduleKind::kWsd, ScheduleKind::kInverseSqrt}) {
    const ScheduleSpec spec = spec_of(kind);
    EXPECT_DOUBLE_EQ(learning_rate(spec, 0), 0.2);
    EXPECT_DOUBLE_EQ(learning_rate(spec, 4), 1.0);
    EXPECT_DOUBLE_EQ(learning_rate(spec, 9), 2.0);
  }
}

TEST(ScheduleTest, CosineHalvesInTheMiddleAndEndsAtTheMinimum) {
  const ScheduleSpec spec = spec_of(ScheduleKind::kCosine);
  EXPECT_DOUBLE_EQ(learning_rate(spec, 10), 2.0);
  EXPECT_NEAR(learning_rate(spec, 60), 0.2 + 1.8 / 2, 1e-12);
  EXPECT_NEAR(learning_rate(spec, 35), 0.2 + 1.8 * 0.5 * (1 + std::sqrt(0.5)), 1e-12);
  EXPECT_NEAR(learning_rate(spec, 110), 0.2, 1e-12);
  EXPECT_NEAR(learning_rate(spec, 1000), 0.2, 1e-12);
}

TEST(ScheduleTest, LinearFallsEvenly) {
  const ScheduleSpec spec = spec_of(ScheduleKind::kLinear);
  EXPECT_NEAR(learning_rate(spec, 35), 2.0 - 1.8 * 0.25, 1e-12);
  EXPECT_NEAR(learning_rate(spec, 110), 0.2, 1e-12);
}

TEST(ScheduleTest, InverseSqrtHalvesAtFourTimesTheWarmup) {
  const ScheduleSpec spec = spec_of(ScheduleKind::kInverseSqrt);
  EXPECT_NEAR(learning_rate(spec, 39), 1.0, 1e-12);
  ScheduleSpec cold = spec;
  cold.warmup = 0;
  EXPECT_NEAR(learning_rate(cold, 0), 2.0, 1e-12);
  EXPECT_NEAR(learning_rate(cold, 3), 1.0, 1e-12);
}

TEST(ScheduleTest, WsdStaysThenDecaysInEveryShape) {
  ScheduleSpec spec = spec_of(ScheduleKind::kWsd);
  spec.decay_steps = 20;
  for (const auto& [shape, after_quarter] : {std::pair{DecayShape::kLinear, 0.75},
                                             {DecayShape::kSqrt, 0.5},
                                             {DecayShape::kCosine, 0.5 * (1 + std::sqrt(0.5))}}) {
    spec.decay_shape = shape;
    EXPECT_DOUBLE_EQ(learning_rate(spec, 90), 2.0);
    EXPECT_LT(learning_rate(spec, 91), 2.0);
    EXPECT_NEAR(learning_rate(spec, 95), 0.2 + 1.8 * after_quarter, 1e-12);
    EXPECT_NEAR(learning_rate(spec, 110), 0.2, 1e-12);
  }
}

TEST(ScheduleTest, NeverRisesAfterWarmup) {
  for (const std::string& name : schedule_names()) {
    const ScheduleSpec spec = spec_of(schedule_from_name(name));
    EXPECT_EQ(to_string(spec.kind), name);
    for (int64_t step = spec.warmup; step < spec.steps; ++step) {
      EXPECT_LE(learning_rate(spec, step), learning_rate(spec, step - 1) + 1e-12)
          << name << " step " << step;
    }
  }
}

TEST(ScheduleTest, NamesWhatIsWrong) {
  EXPECT_TRUE(validate(spec_of(ScheduleKind::kCosine)).empty());
  ScheduleSpec spec = spec_of(ScheduleKind::kWsd);
  spec.decay_steps = 110;
  EXPECT_EQ(validate(spec).size(), 1U);
  spec = spec_of(ScheduleKind::kCosine);
  spec.peak = -1;
  spec.min_ratio = 2;
  spec.warmup = 200;
  EXPECT_EQ(validate(spec).size(), 3U);
  try {
    schedule_from_name("cosin");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kConfig);
    EXPECT_NE(error.hint().find("cosine"), std::string::npos);
  }
  EXPECT_EQ(decay_shape_from_name("sqrt"), DecayShape::kSqrt);
}

TEST(BatchRampTest, GrowsInIncrementsAndCountsWhatItUsed) {
  for (const BatchRampSpec& spec :
       {BatchRampSpec{8, 32, 8, 100}, BatchRampSpec{4, 64, 4, 37}, BatchRampSpec{0, 16, 1, 0},
        BatchRampSpec{16, 16, 8, 10}, BatchRampSpec{1, 7, 3, 2}}) {
    EXPECT_TRUE(validate(spec).empty());
    int64_t used = 0;
    int64_t before = spec.steps > 0 ? spec.start : spec.full;
    EXPECT_EQ(batch_sequences(spec, 0), before);
    for (int64_t step = 0; step < 150; ++step) {
      EXPECT_EQ(sequences_before(spec, step), used) << "step " << step;
      const int64_t now = batch_sequences(spec, step);
      EXPECT_GE(now, before);
      EXPECT_EQ((now - spec.start) % spec.increment, 0);
      before = now;
      used += now;
    }
    EXPECT_EQ(before, spec.full);
  }
  EXPECT_EQ(batch_sequences({8, 32, 8, 100}, 34), 16);
  EXPECT_EQ(batch_sequences({8, 32, 8, 100}, 33), 8);
}

TEST(BatchRampTest, NamesWhatIsWrong) {
  EXPECT_FALSE(validate(BatchRampSpec{0, 8, 1, 10}).empty());
  EXPECT_FALSE(validate(BatchRampSpec{9, 8, 1, 10}).empty());
  EXPECT_FALSE(validate(BatchRampSpec{2, 8, 4, 10}).empty());
  EXPECT_FALSE(validate(BatchRampSpec{2, 8, 0, 10}).empty());
}

}  // namespace
}  // namespace trireme::optim
