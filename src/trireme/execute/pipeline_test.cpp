// Pipelines end with the bits of one rank, whatever their schedule.
#include <gtest/gtest.h>

#include "trireme/execute/testing/trained_ranks.h"

namespace trireme::execute {
namespace {

class PipelineStepTest : public ExecutorTest {};

TEST_F(PipelineStepTest, TwoStagesEndWithTheBitsOfOneRank) {
  for (const auto precision : {plan::Precision::kFp32, plan::Precision::kBf16}) {
    TrainingCase one{"dense", tiny(3), strategy_for(4, 4, 2, 12), {}};
    one.strategy.precision = precision;
    const Trained want = train(one, at::kCPU);
    one.strategy.parallel.pp = 2;
    for (const auto schedule : {plan::ScheduleKind::kGPipe, plan::ScheduleKind::k1F1B,
                                plan::ScheduleKind::kZeroBubbleH1}) {
      SCOPED_TRACE(fmt::format("{} {}", to_string(precision), to_string(schedule)));
      one.strategy.parallel.schedule = schedule;
      expect_same_bits(train_on_ranks(one, {at::kCPU}), want);
    }
  }
}

}  // namespace
}  // namespace trireme::execute
