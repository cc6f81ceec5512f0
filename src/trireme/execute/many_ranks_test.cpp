// One result whatever the layout: a few steps over ranks end with the bits of one rank.
#include <gtest/gtest.h>

#include "trireme/execute/testing/tensor_models.h"
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

/// Over so many ranks, in blocks that share states (0: all of them do), at every stage that there is.
void expect_same_over(const std::vector<std::pair<int64_t, int64_t>>& ranks_and_blocks,
                      TrainingCase one, const Trained& want) {
  for (const auto& [dp, shard] : ranks_and_blocks) {
    for (const int64_t zero : {0, 1, 2, 3}) {
      if (zero == 0 && shard > 0) continue;
      one.strategy.parallel.dp = dp;
      one.strategy.parallel.shard = shard;
      one.strategy.parallel.zero = zero;
      SCOPED_TRACE(fmt::format("{} {} {}", one.name, to_string(one.strategy.precision),
                               plan::describe(one.strategy.parallel)));
      expect_same_bits(train_on_ranks(one, {at::kCPU}), want);
    }
  }
}

TEST(ManyRanksTest, DataParallelRanksEndWithTheBitsOfOne) {
  for (TrainingCase one : cases()) {
    for (const auto precision : {plan::Precision::kFp32, plan::Precision::kBf16}) {
      one.strategy.precision = precision;
      one.strategy.parallel = {};
      const Trained want = train(one, at::kCPU);
      expect_same_over({{2, 0}, {3, 0}, {4, 0}}, one, want);
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
    expect_same_over({{4, 2}, {8, 2}, {8, 4}}, one, want);
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
    expect_same_over({{2, 0}, {3, 0}, {8, 0}, {8, 2}, {4, 2}}, one, want);
  }
}

// The order of n additions of n lanes' gradients is the transport's: relative to the sum of their magnitudes they differ by
// 2 n 2^-24, and what follows from that in three steps by as much a step.
TEST(ManyRanksTest, SumsOfTheTransportAreThoseOfOneRankButForRounding) {
  std::vector<TrainingCase> all = cases();
  all.push_back(
      {"split", tensor_model(tensor_model_names().front()), strategy_for(4, 4, 2, 12), {}});
  for (TrainingCase one : all) {
    const bool has_experts = one.name == "experts";
    const bool is_split = one.name == "split";
    if (one.name != "dense" && !has_experts && !is_split) continue;
    one.strategy.sequences *= 4;
    one.strategy.lanes = 8;
    const Trained want = train(one, at::kCPU);
    one.strategy.parallel.reduction = plan::Reduction::kFast;
    using Layout = std::array<int64_t, 5>;  // dp, shard, pp, tp, ep
    for (const auto& [dp, shard, pp, tp, ep] : std::vector<Layout>{{2, 0, 1, 1, 1},
                                                                   {3, 0, 1, 1, 1},
                                                                   {4, 2, 1, 1, 1},
                                                                   {2, 0, 2, 1, 1},
                                                                   {3, 0, 2, 1, 1},
                                                                   {2, 0, 1, 2, 1},
                                                                   {4, 0, 1, 1, 2}}) {
      if ((tp > 1) != is_split || (ep > 1 && !has_experts)) continue;
      for (const int64_t zero : {0, 1, 2, 3}) {
        plan::Parallel& parallel = one.strategy.parallel;
        if (zero == 0 && shard > 0) continue;
        parallel.dp = dp;
        parallel.shard = shard;
        parallel.pp = pp;
        parallel.tp = tp;
        parallel.ep = ep;
        parallel.zero = zero;
        SCOPED_TRACE(fmt::format("{} {}", one.name, plan::describe(parallel)));
        const auto problems = plan::validate(one.spec, one.strategy);
        ASSERT_TRUE(problems.empty()) << problems.front();
        std::vector<StepResult> steps;
        comm::run_ranks(static_cast<int>(parallel.world()), [&](comm::World& world) {
          RankTrained trained = train_rank(one, world, at::kCPU);
          if (world.rank() == 0) steps = std::move(trained.steps);
        });
        for (size_t step = 0; step < want.steps.size(); ++step) {
          const StepResult& got = steps[step];
          EXPECT_NEAR(got.loss, want.steps[step].loss, 1e-5 * want.steps[step].loss);
          EXPECT_NEAR(got.grad_norm, want.steps[step].grad_norm, 1e-4 * want.steps[step].grad_norm);
        }
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
