// Tensor parallel ranks whose sequences are shared as well: within both bounds of one rank, and with the same bits whatever else the
// layout is.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trireme/execute/testing/deep_models.h"
#include "trireme/execute/testing/planted_faults.h"
#include "trireme/execute/testing/tensor_models.h"
#include "trireme/execute/testing/tensor_ranks.h"
#include "trireme/plan/program_limits.h"

namespace trireme::execute {
namespace {

using plan::ContextKind;
using plan::Precision;

class TensorContextTest : public ExecutorTest, public ::testing::WithParamInterface<ContextKind> {
 protected:
  static TrainingCase case_of(const std::string& name, Precision precision, int64_t tp = 2,
                              int64_t cp = 2, int layers = 2) {
    TrainingCase one{name, tensor_model(name, layers), strategy_for(4, 4, 2, 16), {}};
    one.strategy.precision = precision;
    one.strategy.parallel.tp = tp;
    one.strategy.parallel.cp = cp;
    one.strategy.parallel.cp_kind = GetParam();
    return one;
  }

  static TensorTrained trained(const TrainingCase& one) {
    const TensorTrained got = train_on_tensor_ranks(one, {at::kCPU}, {}, late());
    EXPECT_EQ(got.different, std::vector<std::string>());
    return got;
  }

  /// docs/parallelism.md of tensor parallel ranks and docs/reduction.md of those that share sequences: each adds its own.
  static double bound(const TrainingCase& one) {
    const auto cp = static_cast<double>(one.strategy.parallel.cp);
    const double unit = one.strategy.precision == Precision::kFp32 ? 0x1.0p-24 : 0x1.0p-9;
    const double of_a_rank = GetParam() == ContextKind::kRing ? 6.0 : 2.0;
    const auto attentions = static_cast<double>(one.spec.layers.size());
    return tensor_bound(one, one.strategy.parallel.tp) +
           attentions * (of_a_rank * cp + 1.0) * 4.0 * unit;
  }
};

INSTANTIATE_TEST_SUITE_P(Kinds, TensorContextTest,
                         ::testing::Values(ContextKind::kGather, ContextKind::kRing),
                         [](const auto& info) { return plan::to_string(info.param); });

TEST_P(TensorContextTest, GradientsAreWithinBothBoundsOfOneRank) {
  for (const std::string& name : tensor_model_names()) {
    if (name.starts_with("latent")) continue;  // refused
    for (const auto precision : {Precision::kFp32, Precision::kBf16}) {
      TrainingCase alone{name, tensor_model(name), strategy_for(4, 4, 2, 16), {}};
      alone.strategy.precision = precision;
      alone.steps = 1;
      const Trained want = train(alone, at::kCPU);
      for (const auto& [tp, cp] : {std::pair{2, 2}, {4, 2}, {2, 4}}) {
        SCOPED_TRACE(fmt::format("{} {} tp {} cp {}", name, to_string(precision), tp, cp));
        TrainingCase one = case_of(name, precision, tp, cp);
        one.steps = 1;
        const TensorTrained got = trained(one);
        const double most = bound(one);
        EXPECT_LE(relative(got.steps[0].loss, want.steps[0].loss), most);
        EXPECT_LE(relative(got.steps[0].grad_norm, want.steps[0].grad_norm), most);
        EXPECT_LE(relative_error(got.states, want.states), most);
        EXPECT_EQ(got.steps[0].num_targets, want.steps[0].num_targets);
        EXPECT_EQ(got.steps[0].tokens, want.steps[0].tokens);
      }
    }
  }
}

TEST_P(TensorContextTest, TheLossCurveStaysWithinTheBound) {
  for (const auto precision : {Precision::kFp32, Precision::kBf16}) {
    TrainingCase one = case_of("llama", precision);
    one.steps = 40;
    TrainingCase alone = one;
    alone.strategy.parallel = {};
    const Trained want = train(alone, at::kCPU);
    const TensorTrained got = trained(one);
    for (size_t step = 0; step < want.steps.size(); ++step) {
      // Every step adds its own.
      const double steps = static_cast<double>(step) + 1.0;
      const double most = bound(one) * (precision == Precision::kFp32 ? steps : std::sqrt(steps));
      EXPECT_LE(relative(got.steps[step].loss, want.steps[step].loss), most) << "step " << step;
    }
  }
}

TEST_P(TensorContextTest, OtherLayoutsOfAsManyEndWithTheSameBits) {
  for (const auto& [name, precision] : {std::pair{"biased", Precision::kFp32},
                                        {"one_kv_head", Precision::kBf16},
                                        {"gemma2", Precision::kBf16},
                                        {"qwen3", Precision::kFp32}}) {
    const TrainingCase one = case_of(name, precision);
    const TensorTrained want = trained(one);
    const auto same = [&](const TrainingCase& other) {
      SCOPED_TRACE(fmt::format("{} {}", name, plan::describe(other.strategy.parallel)));
      expect_same_bits(trained(other), want);
    };
    same(one);
    for (const auto& [dp, zero, shard] : {std::tuple{2, 0, 0},
                                          {2, 1, 0},
                                          {3, 1, 0},
                                          {2, 2, 0},
                                          {3, 2, 0},
                                          {2, 3, 0},
                                          {3, 3, 0},
                                          {4, 1, 2},
                                          {4, 3, 2}}) {
      TrainingCase other = one;
      other.strategy.parallel.dp = dp;
      other.strategy.parallel.zero = zero;
      other.strategy.parallel.shard = shard;
      same(other);
    }
    for (const char* recompute : {"full", "selective"}) {
      for (const int64_t zero : {0, 3}) {
        TrainingCase other = one;
        other.strategy.recompute = plan::recompute_from_names(other.spec, {recompute});
        other.strategy.delay_weight_gradients = (recompute[0] == 'f') == (zero == 0);
        other.strategy.parallel.dp = zero > 0 ? 2 : 1;
        other.strategy.parallel.zero = zero;
        same(other);
      }
    }
  }
}

TEST_P(TensorContextTest, MicroBatchesInTurnEndWithTheSameBits) {
  for (const char* name : {"biased", "llama"}) {
    TrainingCase one = case_of(name, Precision::kBf16);
    // Three micro-batches a lane; where the head adds to the embedding's gradients, one.
    one.strategy.sequences = one.spec.tied_embeddings ? 8 : 24;
    const TensorTrained want = trained(one);
    for (const auto& [recompute, in_turn, dp, zero] : {std::tuple{"none", 4, 1, 0},
                                                       {"selective", 2, 2, 2},
                                                       {"full", 4, 2, 3},
                                                       {"none", 2, 3, 1},
                                                       {"none", 4, 3, 0},
                                                       {"selective", 4, 3, 2},
                                                       {"full", 2, 3, 3}}) {
      TrainingCase other = one;
      other.strategy.in_turn = in_turn;
      other.strategy.recompute = plan::recompute_from_names(other.spec, {recompute});
      other.strategy.parallel.dp = dp;
      other.strategy.parallel.zero = zero;
      SCOPED_TRACE(fmt::format("{} {}, recompute {}, {} in turn", name,
                               plan::describe(other.strategy.parallel), recompute, in_turn));
      expect_same_bits(trained(other), want);
    }
  }
}

TEST_P(TensorContextTest, EveryScheduleEndsWithTheSameBits) {
  TrainingCase one = case_of("llama", Precision::kBf16, 2, 2, 6);
  one.strategy.sequences = 16;
  const TensorTrained want = trained(one);
  int drawn = 0;
  for (const auto schedule : kSchedules) {
    TrainingCase other = one;
    other.strategy.parallel.pp = 2;
    const std::vector<std::pair<int, int>> layouts = {{1, 0}, {2, 2}, {2, 3}, {2, 1}};
    std::tie(other.strategy.parallel.dp, other.strategy.parallel.zero) = layouts.at(drawn++ % 4);
    other.strategy.parallel.schedule = schedule;
    const int fixed = plan::fixed_chunks(schedule);
    other.strategy.parallel.chunks = fixed > 0 ? fixed : 2;
    SCOPED_TRACE(plan::describe(other.strategy.parallel));
    expect_same_bits(trained(other), want);
  }
}

TEST_P(TensorContextTest, RanksOnSimulatedDevicesEndWithTheBitsOfTheCpu) {
  std::vector<at::Device> devices;
  for (const char* name : {"sim:0", "sim:1", "sim:2", "sim:3"})
    devices.push_back(device::get_device(name).torch_device());
  const TrainingCase one = case_of("gemma2", Precision::kBf16);
  expect_same_bits(train_on_tensor_ranks(one, devices), trained(one));
}

/// A layout, and what relieves memory, of ranks that share both.
TrainingCase drawn(std::mt19937_64& random, ContextKind kind) {
  const auto pick = [&](const auto& values) { return values[random() % values.size()]; };
  while (true) {
    const std::vector<std::string> names = {"gpt2",   "llama", "biased",     "qwen3",
                                            "gemma2", "sinks", "one_kv_head"};
    const std::string name = pick(names);
    TrainingCase one{name,
                     tensor_model(name, pick(std::vector<int>{2, 4})),
                     strategy_for(1, 1, 2, pick(std::vector<int64_t>{16, 32})),
                     {}};
    plan::Strategy& strategy = one.strategy;
    strategy.lanes = pick(std::vector<int64_t>{2, 4, 8});
    strategy.micro = pick(std::vector<int64_t>{1, 2});
    strategy.sequences = strategy.micro * strategy.lanes * pick(std::vector<int64_t>{1, 1, 2});
    strategy.precision = pick(std::vector{Precision::kFp32, Precision::kBf16});
    strategy.recompute = plan::recompute_from_names(
        one.spec, {pick(std::vector<std::string>{"none", "selective", "full", "attention"})});
    strategy.delay_weight_gradients = pick(std::vector<int>{0, 1}) != 0;
    strategy.weights_ahead = pick(std::vector<int64_t>{0, 1, 2});
    plan::Parallel& parallel = strategy.parallel;
    parallel.cp_kind = kind;
    parallel.tp = pick(std::vector<int64_t>{2, 2, 4});
    parallel.cp = pick(std::vector<int64_t>{2, 2, 4});
    parallel.dp = pick(std::vector<int64_t>{1, 2, 3, 4});
    parallel.zero = pick(std::vector<int64_t>{0, 1, 2, 3});
    if (parallel.dp == 4 && parallel.zero > 0) parallel.shard = pick(std::vector<int64_t>{0, 2});
    parallel.pp = pick(std::vector<int64_t>{1, 2});
    if (parallel.pp > 1) {
      parallel.schedule = kSchedules[random() % kSchedules.size()];
      const int fixed = plan::fixed_chunks(parallel.schedule);
      parallel.chunks = fixed > 0 ? fixed : 2;
    } else {
      strategy.in_turn = pick(std::vector<int64_t>{1, 2, 4});
    }
    if (parallel.world() <= parallel.tp * parallel.cp || parallel.world() > 16 ||
        !plan::validate(one.spec, strategy).empty() ||
        !plan::program_limits(one.spec, strategy).empty())
      continue;
    return one;
  }
}

TEST_P(TensorContextTest, DrawnLayoutsEndWithTheBitsOfTheirShares) {
  std::mt19937_64 random(11);
  for (int draw = 0; draw < 25; ++draw) {
    const TrainingCase one = drawn(random, GetParam());
    TrainingCase plain = one;
    plain.strategy = strategy_for(one.strategy.micro_batches(), one.strategy.lanes,
                                  one.strategy.micro, one.strategy.seq_len);
    plain.strategy.precision = one.strategy.precision;
    plain.strategy.parallel.tp = one.strategy.parallel.tp;
    plain.strategy.parallel.cp = one.strategy.parallel.cp;
    plain.strategy.parallel.cp_kind = GetParam();
    SCOPED_TRACE(fmt::format("draw {}: {} {} {} in turn {}", draw, one.name,
                             to_string(one.strategy.precision),
                             plan::describe(one.strategy.parallel), one.strategy.in_turn));
    expect_same_bits(trained(one), trained(plain));
  }
}

// ---- faults -----------------------------------------------------------------------------------------

TEST_P(TensorContextTest, FaultsShow) {
  const TrainingCase one = case_of("qwen3", Precision::kFp32);
  const TensorTrained right = trained(one);
  const auto shows = [&](const std::function<void(int rank, plan::Program&)>& change) {
    try {
      const TensorTrained wrong = train_on_tensor_ranks(one, {at::kCPU}, change, late());
      bool same = wrong.different.empty();
      for (size_t i = 0; i < right.weights.size(); ++i)
        same = same && at::equal(wrong.weights[i], right.weights[i]);
      return !same;
    } catch (const std::exception&) {
      return true;
    }
  };
  EXPECT_FALSE(shows({}));
  for (const auto kind : {plan::OpKind::kExchangeContext, plan::OpKind::kGatherTokens,
                          plan::OpKind::kScatterSums, plan::OpKind::kShareGradients}) {
    EXPECT_TRUE(shows([&](int, plan::Program& program) {
      plan::Instruction* const transfer = nth(program, kind, 2);
      ASSERT_NE(transfer, nullptr);
      forget_waits_for(program, transfer->id);
    })) << to_string(kind)
        << " is not waited for";
  }
  EXPECT_TRUE(shows([](int rank, plan::Program& program) { program.context ^= rank < 2 ? 1 : 0; }))
      << "ranks take themselves for others";
  EXPECT_TRUE(shows([](int, plan::Program& program) {
    for (plan::Instruction& instruction : program.instructions) {
      if (instruction.kind == plan::OpKind::kReduceGradients && instruction.pieces.size() >= 2)
        std::swap(instruction.pieces[0].node, instruction.pieces[1].node);
    }
  })) << "a leaf is added in another's place";
}

}  // namespace
}  // namespace trireme::execute
