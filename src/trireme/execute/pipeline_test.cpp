// Pipelines end with the bits of one rank, whatever their schedule.
#include <gtest/gtest.h>

#include "trireme/execute/testing/deep_models.h"
#include "trireme/execute/testing/trained_ranks.h"
#include "trireme/nn/testing/tiny_models.h"
#include "trireme/plan/schedule.h"

namespace trireme::execute {
namespace {

class PipelineStepTest : public ExecutorTest {};

TEST_F(PipelineStepTest, EveryScheduleEndsWithTheBitsOfOneRank) {
  for (const bool experts : {false, true}) {
    TrainingCase one{"deep",
                     experts ? deep_moe("sigmoid in groups with selection bias", 6) : deep(6),
                     strategy_for(8, 4, 2, 12),
                     {}};
    one.strategy.precision = experts ? plan::Precision::kBf16 : plan::Precision::kFp32;
    const Trained want = train(one, at::kCPU);
    for (const auto schedule : kSchedules) {
      const int fixed = plan::fixed_chunks(schedule);
      for (const auto& [pp, dp, zero] : {std::tuple{2, 1, 0}, {4, 1, 0}, {2, 2, 2}, {2, 2, 3}}) {
        one.strategy.parallel = {};
        one.strategy.parallel.pp = pp;
        one.strategy.parallel.dp = dp;
        one.strategy.parallel.zero = zero;
        one.strategy.parallel.schedule = schedule;
        one.strategy.parallel.chunks = fixed > 0 ? fixed : 2;
        SCOPED_TRACE(fmt::format("{}, experts {}", plan::describe(one.strategy.parallel), experts));
        expect_same_bits(train_on_ranks(one, {at::kCPU}, late()), want);
      }
    }
  }
}

TEST_F(PipelineStepTest, StagesOnSimulatedDevicesEndWithTheBitsOfOneCpu) {
  TrainingCase one{"experts", deep_moe("balanced", 4), strategy_for(8, 4, 2, 12), {}};
  one.strategy.precision = plan::Precision::kBf16;
  const Trained want = train(one, at::kCPU);
  std::vector<at::Device> devices;
  for (const char* name : {"sim:0", "sim:1", "sim:2", "sim:3"})
    devices.push_back(device::get_device(name).torch_device());
  one.strategy.parallel.pp = 2;
  one.strategy.parallel.dp = 2;
  one.strategy.parallel.zero = 1;
  for (const auto schedule : {plan::ScheduleKind::k1F1B, plan::ScheduleKind::kZeroBubbleH1,
                              plan::ScheduleKind::kDualPipeV}) {
    one.strategy.parallel.schedule = schedule;
    one.strategy.parallel.chunks = plan::fixed_chunks(schedule);
    SCOPED_TRACE(to_string(schedule));
    expect_same_bits(train_on_ranks(one, devices), want);
  }
}

TEST_F(PipelineStepTest, StagesThatOffloadEndWithTheBitsOfOneCpu) {
  TrainingCase one{"experts", deep_moe("balanced", 6), strategy_for(8, 4, 2, 12), {}};
  const Trained want = train(one, at::kCPU);
  std::vector<at::Device> devices;
  for (const char* name : {"sim:0", "sim:1", "sim:2", "sim:3"})
    devices.push_back(device::get_device(name).torch_device());
  one.strategy.offload_activations = plan::offload_from_names(one.spec, {"all"});
  one.strategy.offload_optimizer = true;
  one.strategy.parallel.pp = 2;
  for (const auto schedule : {plan::ScheduleKind::k1F1B, plan::ScheduleKind::kZeroBubbleV}) {
    one.strategy.parallel.schedule = schedule;
    one.strategy.parallel.chunks = plan::fixed_chunks(schedule);
    for (const auto& [dp, zero] : {std::pair{1, 1}, {2, 2}, {2, 3}}) {
      one.strategy.parallel.dp = dp;
      one.strategy.parallel.zero = zero;
      SCOPED_TRACE(plan::describe(one.strategy.parallel));
      expect_same_bits(train_on_ranks(one, devices), want);
    }
  }
}

// First and last stage on one rank: both add to the embedding's gradients.
TEST_F(PipelineStepTest, SharedEmbeddingsEndWithTheBitsOfOneRank) {
  optim::OptimizerConfig muon;
  muon.kind = optim::OptimizerKind::kMuon;
  std::vector<TrainingCase> cases = {
      {"tied", tiny(7), strategy_for(8, 8, 2, 12), {}},
      {"multi-token", tiny_mtp("softmax", 2), strategy_for(8, 8, 2, 12), {}},
      {"both", tiny_deepseek(1), strategy_for(8, 8, 2, 12), muon}};
  for (TrainingCase& one : cases) {
    one.strategy.whole_matrices = one.optimizer.kind == optim::OptimizerKind::kMuon;
    one.strategy.precision = plan::Precision::kBf16;
    const Trained want = train(one, at::kCPU);
    for (const auto schedule : {plan::ScheduleKind::kZeroBubbleV, plan::ScheduleKind::kDualPipeV,
                                plan::ScheduleKind::kVHalf}) {
      for (const auto& [dp, zero] : {std::pair{1, 1}, {2, 2}, {2, 3}}) {
        one.strategy.parallel = {};
        one.strategy.parallel.pp = 2;
        one.strategy.parallel.dp = dp;
        one.strategy.parallel.zero = zero;
        one.strategy.parallel.schedule = schedule;
        one.strategy.parallel.chunks = 2;
        if (!plan::validate(one.spec, one.strategy).empty()) {
          ADD_FAILURE() << plan::validate(one.spec, one.strategy).front();
          continue;
        }
        SCOPED_TRACE(fmt::format("{} {}", one.name, plan::describe(one.strategy.parallel)));
        expect_same_bits(train_on_ranks(one, {at::kCPU}, late()), want);
      }
    }
  }
}

}  // namespace
}  // namespace trireme::execute
