// Ranks that share sequences: within rounding of one rank, and the same bits however else the run is laid out.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>

#include "trireme/execute/testing/deep_models.h"
#include "trireme/execute/testing/planted_faults.h"
#include "trireme/execute/testing/trained_ranks.h"
#include "trireme/plan/program_limits.h"

namespace trireme::execute {
namespace {

class ContextParallelTest : public ExecutorTest,
                            public ::testing::WithParamInterface<plan::ContextKind> {
 protected:
  static plan::Parallel shared_by(int64_t cp, int64_t dp = 1, int64_t zero = 0, int64_t pp = 1) {
    plan::Parallel parallel;
    parallel.cp = cp;
    parallel.cp_kind = GetParam();
    parallel.dp = dp;
    parallel.zero = zero;
    parallel.pp = pp;
    return parallel;
  }
};

INSTANTIATE_TEST_SUITE_P(Kinds, ContextParallelTest,
                         ::testing::Values(plan::ContextKind::kGather, plan::ContextKind::kRing),
                         [](const auto& info) { return plan::to_string(info.param); });

/// Experts that only a selection bias balances.
model::ModelSpec balanced_by_bias() {
  model::ModelSpec spec = tiny_moe("sigmoid in groups with selection bias");
  for (model::LayerSpec& layer : spec.layers) {
    if (layer.moe) layer.moe->aux_loss = 0.0;
  }
  return spec;
}

/// Every family of dense models, sinks, and experts.
std::vector<TrainingCase> families() {
  std::vector<TrainingCase> all;
  for (size_t i = 0; i < nn::testing::tiny_configs(4).size(); ++i)
    all.push_back({fmt::format("family {}", i), tiny(i), strategy_for(4, 2, 2, 16), {}});
  all.push_back({"sinks", nn::testing::with_sinks(tiny(3)), strategy_for(4, 2, 2, 16), {}});
  all.push_back({"experts", balanced_by_bias(), strategy_for(4, 2, 2, 16), {}});
  return all;
}

double relative_distance(const std::vector<at::Tensor>& got, const std::vector<at::Tensor>& want) {
  double apart = 0.0;
  double size = 0.0;
  for (size_t i = 0; i < want.size(); ++i) {
    apart += (got[i].to(at::kDouble) - want[i].to(at::kDouble)).square().sum().item<double>();
    size += want[i].to(at::kDouble).square().sum().item<double>();
  }
  return std::sqrt(apart / size);
}

// A rank's experts compute each source's rows on their own, and a source is what a rank has of a lane's sequences.
TEST_P(ContextParallelTest, SpreadExpertsEndWithTheBitsOfExpertsThatAreNot) {
  model::MoeSpec moe;
  moe.num_experts = 8;
  moe.top_k = 2;
  moe.score = model::ScoreFunction::kSigmoid;
  moe.selection_bias = true;
  moe.expert.hidden = 12;
  moe.shared_hidden = 8;
  const model::ModelSpec spec = nn::testing::with_experts(tiny(3), moe, 0);
  for (const auto precision : {plan::Precision::kFp32, plan::Precision::kBf16}) {
    TrainingCase one{"experts", spec, strategy_for(8, 4, 2, 16), {}};
    one.strategy.precision = precision;
    for (const int64_t cp : {2, 4}) {
      one.strategy.parallel = shared_by(cp);
      one.strategy.recompute.clear();
      const Trained want = train_on_ranks(one, {at::kCPU}, late());
      using Layout = std::array<int64_t, 4>;  // ep, dp, zero, pp
      for (const auto& [ep, dp, zero, pp] : std::vector<Layout>{{2, 1, 0, 1},
                                                                {4, 1, 1, 1},
                                                                {2, 2, 1, 1},
                                                                {2, 2, 3, 1},
                                                                {4, 2, 2, 1},
                                                                {4, 4, 3, 1},
                                                                {8, 2, 1, 1},
                                                                {2, 1, 2, 2}}) {
        one.strategy.parallel = shared_by(cp, dp, zero, pp);
        one.strategy.parallel.ep = ep;
        if (cp * dp % ep != 0) continue;
        one.strategy.in_turn = pp > 1 ? 0 : 1 + ep / 2 % 2;
        one.strategy.recompute = plan::recompute_from_names(one.spec, {zero == 1   ? "full"
                                                                       : zero == 2 ? "selective"
                                                                                   : "none"});
        SCOPED_TRACE(
            fmt::format("{} {}", to_string(precision), plan::describe(one.strategy.parallel)));
        ASSERT_THAT(plan::validate(one.spec, one.strategy), ::testing::IsEmpty());
        expect_same_bits(train_on_ranks(one, {at::kCPU}, late()), want);
      }
    }
  }
}

TEST_P(ContextParallelTest, EveryFamilyIsWithinRoundingOfOneRank) {
  for (TrainingCase& one : families()) {
    for (const auto precision : {plan::Precision::kFp32, plan::Precision::kBf16}) {
      one.strategy.precision = precision;
      one.strategy.parallel = {};
      const Trained want = train(one, at::kCPU);
      for (const int64_t cp : {2, 4, 8}) {
        SCOPED_TRACE(fmt::format("{} {} cp {}", one.name, to_string(precision), cp));
        one.strategy.parallel = shared_by(cp);
        ASSERT_THAT(plan::program_limits(one.spec, one.strategy), ::testing::IsEmpty());
        const Trained got = train_on_ranks(one, {at::kCPU}, late());
        // docs/reduction.md: two attentions, 2 cp + 1 roundings of each one's gradients of keys, in a ring 4 cp more of its
        // result, kappa = 4; in bf16, whose unit is 2^-8, kappa = 2.
        const double unit = std::ldexp(1.0, precision == plan::Precision::kFp32 ? -24 : -9);
        const double of_a_rank = GetParam() == plan::ContextKind::kRing ? 6.0 : 2.0;
        const double bound = 2.0 * (of_a_rank * static_cast<double>(cp) + 1.0) * 4.0 * unit;
        // Where a query's keys come at once, in their order, its attention has the bits of one rank.
        if (GetParam() == plan::ContextKind::kGather) {
          EXPECT_NEAR(got.steps[0].loss, want.steps[0].loss, 1e-14 * want.steps[0].loss);
        }
        for (size_t step = 0; step < 3; ++step) {
          EXPECT_NEAR(got.steps[step].loss, want.steps[step].loss, bound * want.steps[step].loss);
          EXPECT_NEAR(got.steps[step].grad_norm, want.steps[step].grad_norm,
                      bound * want.steps[step].grad_norm);
          EXPECT_EQ(got.steps[step].num_targets, want.steps[step].num_targets);
          EXPECT_EQ(got.steps[step].tokens, want.steps[step].tokens);
        }
        // Weights of steps 2 and 3 differ already: so do the gradients that they are at.
        EXPECT_LE(relative_distance(got.states, want.states), 3.0 * bound);
      }
    }
  }
}

TEST_P(ContextParallelTest, OtherLayoutsEndWithTheSameBits) {
  optim::OptimizerConfig muon;
  muon.kind = optim::OptimizerKind::kMuon;
  std::vector<TrainingCase> cases = {
      {"dense", tiny(3), strategy_for(4, 4, 2, 16), {}},
      {"window and norms", tiny(11), strategy_for(8, 4, 2, 16), muon},
      {"experts", balanced_by_bias(), strategy_for(4, 4, 2, 16), {}}};
  for (TrainingCase& one : cases) {
    one.strategy.whole_matrices = one.optimizer.kind == optim::OptimizerKind::kMuon;
    one.strategy.precision = one.name == "dense" ? plan::Precision::kFp32 : plan::Precision::kBf16;
    for (const int64_t cp : {2, 4}) {
      one.strategy.parallel = shared_by(cp);
      const Trained want = train_on_ranks(one, {at::kCPU}, late());
      expect_same_bits(train_on_ranks(one, {at::kCPU}), want);
      for (const int64_t dp : {1, 2, 3, 4}) {
        for (const int64_t zero : {0, 1, 2, 3}) {
          one.strategy.parallel = shared_by(cp, dp, zero);
          SCOPED_TRACE(fmt::format("{} {}", one.name, plan::describe(one.strategy.parallel)));
          expect_same_bits(train_on_ranks(one, {at::kCPU}, late()), want);
          if (zero == 0 || dp != 4) continue;
          one.strategy.parallel.shard = 2;
          expect_same_bits(train_on_ranks(one, {at::kCPU}, late()), want);
        }
      }
    }
  }
}

TEST_P(ContextParallelTest, RecomputeAndDelayChangeNoBit) {
  TrainingCase one{"norms of heads", tiny(17), strategy_for(4, 2, 2, 16), {}};
  for (const size_t family : {3, 11, 17}) {
    one.spec = tiny(family);
    one.strategy = strategy_for(4, 2, 2, 16);
    one.strategy.parallel = shared_by(2);
    const Trained want = train_on_ranks(one, {at::kCPU}, late());
    for (const char* mode : {"selective", "full"}) {
      for (const bool delayed : {false, true}) {
        one.strategy.recompute = plan::recompute_from_names(one.spec, {mode});
        one.strategy.delay_weight_gradients = delayed;
        one.strategy.parallel = shared_by(2, 2, 3);
        SCOPED_TRACE(fmt::format("family {} {} {}", family, mode, delayed));
        expect_same_bits(train_on_ranks(one, {at::kCPU}, late()), want);
      }
    }
  }
}

TEST_P(ContextParallelTest, EveryScheduleEndsWithTheSameBits) {
  TrainingCase one{"deep", deep(6), strategy_for(8, 4, 2, 16), {}};
  one.strategy.parallel = shared_by(2);
  const Trained want = train_on_ranks(one, {at::kCPU}, late());
  for (const auto schedule : kSchedules) {
    for (const auto& [dp, zero] : {std::pair{1, 0}, {2, 1}, {3, 3}, {2, 2}}) {
      one.strategy.parallel = shared_by(2, dp, zero, 2);
      one.strategy.parallel.schedule = schedule;
      const int fixed = plan::fixed_chunks(schedule);
      one.strategy.parallel.chunks = fixed > 0 ? fixed : 2;
      if (!plan::validate(one.spec, one.strategy).empty()) continue;
      SCOPED_TRACE(plan::describe(one.strategy.parallel));
      expect_same_bits(train_on_ranks(one, {at::kCPU}, late()), want);
    }
  }
}

TEST_P(ContextParallelTest, RanksOnSimulatedDevicesEndWithTheSameBits) {
  TrainingCase one{"dense", tiny(11), strategy_for(4, 4, 2, 16), {}};
  one.strategy.precision = plan::Precision::kBf16;
  one.strategy.parallel = shared_by(2);
  std::vector<at::Device> devices;
  for (const char* name : {"sim:0", "sim:1", "sim:2", "sim:3"})
    devices.push_back(device::get_device(name).torch_device());
  const Trained want = train_on_ranks(one, devices);
  for (const int64_t zero : {0, 3}) {
    one.strategy.parallel = shared_by(2, 2, zero);
    expect_same_bits(train_on_ranks(one, devices), want);
  }
}

// ---- planted faults --------------------------------------------------------------------------------

using Change = std::function<void(plan::Program&)>;

bool ends_alike(const TrainingCase& one, const Trained& want, const Change& change) {
  std::atomic<bool> alike = true;
  try {
    comm::run_ranks(
        static_cast<int>(one.strategy.parallel.world()),
        [&](comm::World& world) {
          const RankTrained got = train_rank(one, world, at::kCPU, change);
          for (size_t part = 0; part < want.weights.size(); ++part) {
            if (!at::equal(got.compute[part], want.weights[part])) alike = false;
          }
        },
        late());
  } catch (const std::exception&) {
    alike = false;
  }
  return alike;
}

plan::Instruction* exchange(plan::Program& program, bool of_gradient, int n) {
  for (plan::Instruction& instruction : program.instructions) {
    if (instruction.kind == plan::OpKind::kExchangeContext &&
        instruction.of_gradient == of_gradient && n-- == 0)
      return &instruction;
  }
  return nullptr;
}

TEST_P(ContextParallelTest, FaultsAreCaught) {
  TrainingCase one{"dense", tiny(3), strategy_for(4, 2, 2, 16), {}};
  one.strategy.parallel = shared_by(4);
  const Trained want = train_on_ranks(one, {at::kCPU}, late());
  ASSERT_TRUE(ends_alike(one, want, {}));
  const std::vector<std::pair<const char*, Change>> faults = {
      {"keys are not waited for",
       [](plan::Program& program) { forget_waits_for(program, exchange(program, false, 1)->id); }},
      {"gradients of keys are not waited for",
       [](plan::Program& program) { forget_waits_for(program, exchange(program, true, 1)->id); }},
      {"keys of another part",
       [](plan::Program& program) {
         plan::Instruction* const first = exchange(program, false, 0);
         for (int n = 1; program.rank == 1; ++n) {
           plan::Instruction* const other = exchange(program, false, n);
           if (other->part == first->part) continue;
           std::swap(first->part, other->part);
           return;
         }
       }},
      {"a rank takes itself for another",
       [](plan::Program& program) { program.context ^= program.rank < 2 ? 1 : 0; }},
      {"a leaf is added in another's place", [](plan::Program& program) {
         for (plan::Instruction& instruction : program.instructions) {
           if (instruction.kind == plan::OpKind::kReduceGradients && instruction.pieces.size() >= 4)
             std::swap(instruction.pieces[1].node, instruction.pieces[2].node);
         }
       }}};
  for (const auto& [name, change] : faults) EXPECT_FALSE(ends_alike(one, want, change)) << name;
}

}  // namespace
}  // namespace trireme::execute
