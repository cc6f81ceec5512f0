// One result whatever the layout: a few steps over ranks end with the bits of one rank.
#include <gtest/gtest.h>

#include "trireme/execute/testing/trained_ranks.h"

namespace trireme::execute {
namespace {

std::vector<TrainingCase> cases() {
  optim::OptimizerConfig muon;
  muon.kind = optim::OptimizerKind::kMuon;
  std::vector<TrainingCase> all = {
      {"dense", tiny(3), strategy_for(4, 4, 2, 12), {}},
      {"tied", tiny(7), strategy_for(4, 4, 2, 12), {}},
      {"learned positions", tiny(0), strategy_for(4, 4, 2, 12), muon},
      {"experts", tiny_moe("balanced"), strategy_for(4, 4, 2, 12), muon},
      {"selection bias",
       tiny_moe("sigmoid in groups with selection bias"),
       strategy_for(4, 4, 2, 12),
       {}},
      {"multi-token", tiny_mtp("softmax", 2), strategy_for(4, 4, 2, 12), {}},
      {"deepseek", tiny_deepseek(1), strategy_for(4, 4, 2, 12), muon},
  };
  for (TrainingCase& one : all)
    one.strategy.whole_matrices = one.optimizer.kind == optim::OptimizerKind::kMuon;
  return all;
}

TEST(ManyRanksTest, DataParallelRanksEndWithTheBitsOfOne) {
  for (TrainingCase one : cases()) {
    for (const auto precision : {plan::Precision::kFp32, plan::Precision::kBf16}) {
      one.strategy.precision = precision;
      one.strategy.parallel = {};
      const Trained want = train(one, at::kCPU);
      for (const int64_t dp : {2, 3, 4}) {
        for (const int64_t zero : {0, 1, 2, 3}) {
          SCOPED_TRACE(
              fmt::format("{} {} dp {} zero {}", one.name, to_string(precision), dp, zero));
          one.strategy.parallel.dp = dp;
          one.strategy.parallel.zero = zero;
          expect_same_bits(train_on_ranks(one, {at::kCPU}), want);
        }
      }
    }
  }
}

TEST(ManyRanksTest, BlocksOfRanksThatShareEndWithTheBitsOfOne) {
  for (TrainingCase one : cases()) {
    one.strategy.sequences *= 2;
    one.strategy.lanes = 8;
    one.strategy.parallel = {};
    one.strategy.precision = one.name == "dense" ? plan::Precision::kFp32 : plan::Precision::kBf16;
    const Trained want = train(one, at::kCPU);
    for (const auto& [dp, shard] : {std::pair{4, 2}, {8, 2}, {8, 4}}) {
      for (const int64_t zero : {1, 2, 3}) {
        one.strategy.parallel.dp = dp;
        one.strategy.parallel.shard = shard;
        one.strategy.parallel.zero = zero;
        SCOPED_TRACE(fmt::format("{} {}", one.name, plan::describe(one.strategy.parallel)));
        expect_same_bits(train_on_ranks(one, {at::kCPU}), want);
      }
    }
  }
}

// Where sums are rounded is part of what they are, and not of where they are formed.
TEST(ManyRanksTest, SumsInBf16AreThoseOfOneRank) {
  for (TrainingCase one : cases()) {
    if (one.name != "dense" && one.name != "experts") continue;
    one.strategy.sequences *= 2;
    one.strategy.lanes = 8;
    one.strategy.precision = one.name == "dense" ? plan::Precision::kBf16 : plan::Precision::kFp32;
    const Trained unrounded = train(one, at::kCPU);
    one.strategy.gradient_sums = plan::Precision::kBf16;
    const Trained want = train(one, at::kCPU);
    // 2^-8 of each of 4 roundings along a path from leaf to root, where a gradient's terms have one sign; the norm's, less.
    ASSERT_NE(want.steps.front().grad_norm, unrounded.steps.front().grad_norm)
        << "nothing was rounded";
    EXPECT_NEAR(want.steps.front().grad_norm / unrounded.steps.front().grad_norm, 1.0, 4.0 / 256.0);
    for (const auto& [dp, shard] : {std::pair{2, 0}, {3, 0}, {8, 0}, {8, 2}, {4, 2}}) {
      for (const int64_t zero : {0, 1, 2, 3}) {
        if (zero == 0 && shard > 0) continue;
        one.strategy.parallel.dp = dp;
        one.strategy.parallel.shard = shard;
        one.strategy.parallel.zero = zero;
        SCOPED_TRACE(fmt::format("{} {}", one.name, plan::describe(one.strategy.parallel)));
        expect_same_bits(train_on_ranks(one, {at::kCPU}), want);
      }
    }
  }
}

TEST(ManyRanksTest, RecomputeDelayAndSeveralMicroBatchesALaneChangeNothing) {
  TrainingCase one{"experts", tiny_moe("balanced"), strategy_for(4, 2, 2, 12), {}};
  const Trained want = train(one, at::kCPU);
  one.strategy.recompute = plan::recompute_from_names(one.spec, {"full"});
  one.strategy.delay_weight_gradients = true;
  one.strategy.parallel.dp = 2;
  for (const int64_t zero : {0, 1, 2, 3}) {
    one.strategy.parallel.zero = zero;
    expect_same_bits(train_on_ranks(one, {at::kCPU}), want);
  }
}

TEST(ManyRanksTest, RanksOnSimulatedDevicesEndWithTheBitsOfOneCpu) {
  TrainingCase one{"experts", tiny_moe("balanced"), strategy_for(4, 4, 2, 12), {}};
  for (const auto precision : {plan::Precision::kFp32, plan::Precision::kBf16}) {
    one.strategy.precision = precision;
    one.strategy.parallel = {};
    const Trained want = train(one, at::kCPU);
    std::vector<at::Device> devices;
    for (const char* name : {"sim:0", "sim:1", "sim:2"})
      devices.push_back(device::get_device(name).torch_device());
    one.strategy.parallel.dp = 3;
    for (const int64_t zero : {0, 1, 2, 3}) {
      one.strategy.parallel.zero = zero;
      expect_same_bits(train_on_ranks(one, devices), want);
    }
  }
}

}  // namespace
}  // namespace trireme::execute
