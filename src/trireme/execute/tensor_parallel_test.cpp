// Tensor parallel ranks: within the bound of docs/parallelism.md of one rank, and with the same bits whatever else the layout is.
#include <gtest/gtest.h>

#include <cmath>

#include "trireme/execute/testing/deep_models.h"
#include "trireme/execute/testing/planted_faults.h"
#include "trireme/execute/testing/tensor_models.h"
#include "trireme/execute/testing/tensor_ranks.h"

namespace trireme::execute {
namespace {

using plan::Precision;

class TensorParallelTest : public ExecutorTest {};

TrainingCase case_of(const std::string& name, Precision precision, int layers = 2) {
  TrainingCase one{name, tensor_model(name, layers), strategy_for(4, 4, 2, 12), {}};
  one.strategy.precision = precision;
  return one;
}

TEST_F(TensorParallelTest, GradientsAreWithinTheBoundOfOneRank) {
  for (const std::string& name : tensor_model_names()) {
    for (const auto precision : {Precision::kFp32, Precision::kBf16}) {
      TrainingCase one = case_of(name, precision);
      one.steps = 1;
      const Trained want = train(one, at::kCPU);
      for (const int64_t tp : {2, 4}) {
        SCOPED_TRACE(fmt::format("{} {} tp {}", name, to_string(precision), tp));
        one.strategy.parallel.tp = tp;
        const TensorTrained got = train_on_tensor_ranks(one);
        EXPECT_EQ(got.different, std::vector<std::string>());
        const double most = tensor_bound(one, tp);
        EXPECT_LE(relative(got.steps[0].loss, want.steps[0].loss), most);
        EXPECT_LE(relative(got.steps[0].grad_norm, want.steps[0].grad_norm), most);
        EXPECT_LE(relative_error(got.states, want.states), most);
      }
    }
  }
}

TEST_F(TensorParallelTest, TheLossCurveStaysWithinTheBound) {
  for (const auto precision : {Precision::kFp32, Precision::kBf16}) {
    TrainingCase one = case_of("llama", precision);
    one.steps = 40;
    const Trained want = train(one, at::kCPU);
    one.strategy.parallel.tp = 2;
    const TensorTrained got = train_on_tensor_ranks(one);
    EXPECT_EQ(got.different, std::vector<std::string>());
    for (size_t step = 0; step < want.steps.size(); ++step) {
      // Every step adds its own.
      const double steps = static_cast<double>(step) + 1.0;
      const double most =
          tensor_bound(one, 2) * (precision == Precision::kFp32 ? steps : std::sqrt(steps));
      EXPECT_LE(relative(got.steps[step].loss, want.steps[step].loss), most) << "step " << step;
    }
  }
}

TEST_F(TensorParallelTest, OtherLayoutsOfAsManyEndWithTheSameBits) {
  for (const char* const name : {"biased", "one_kv_head", "gemma2", "latent_queries"}) {
    for (const auto precision : {Precision::kFp32, Precision::kBf16}) {
      TrainingCase one = case_of(name, precision);
      one.strategy.parallel.tp = 2;
      const TensorTrained want = train_on_tensor_ranks(one);
      EXPECT_EQ(want.different, std::vector<std::string>());
      const auto same = [&](const TrainingCase& other) {
        SCOPED_TRACE(fmt::format("{} {} {}", name, to_string(precision),
                                 plan::describe(other.strategy.parallel)));
        const TensorTrained got = train_on_tensor_ranks(other, {at::kCPU}, {}, late());
        EXPECT_EQ(got.different, std::vector<std::string>());
        expect_same_bits(got, want);
      };
      same(one);
      for (const int64_t dp : {2, 3}) {
        for (const int64_t zero : {0, 1, 2, 3}) {
          TrainingCase other = one;
          other.strategy.parallel.dp = dp;
          other.strategy.parallel.zero = zero;
          same(other);
        }
      }
      for (const char* recompute : {"full", "selective"}) {
        TrainingCase other = one;
        other.strategy.recompute = plan::recompute_from_names(other.spec, {recompute});
        other.strategy.delay_weight_gradients = recompute[0] == 'f';
        same(other);
      }
    }
  }
}

TEST_F(TensorParallelTest, MicroBatchesInTurnEndWithTheSameBits) {
  for (const char* const name : {"biased", "gemma2", "llama"}) {
    TrainingCase one = case_of(name, Precision::kBf16);
    // Three micro-batches a lane; where the head adds to the embedding's gradients, one.
    one.strategy.sequences = one.spec.tied_embeddings ? 8 : 24;
    one.strategy.parallel.tp = 2;
    const TensorTrained want = train_on_tensor_ranks(one);
    for (const auto& [recompute, in_turn] :
         {std::pair{"none", 4}, {"selective", 2}, {"full", 4}, {"none", 2}}) {
      for (const auto& [dp, zero] :
           {std::pair{1, 0}, {2, 0}, {3, 1}, {2, 2}, {3, 2}, {2, 3}, {3, 3}}) {
        TrainingCase other = one;
        other.strategy.in_turn = in_turn;
        other.strategy.recompute = plan::recompute_from_names(other.spec, {recompute});
        other.strategy.parallel.dp = dp;
        other.strategy.parallel.zero = zero;
        SCOPED_TRACE(fmt::format("{} {} recompute {}, {} in turn", name,
                                 plan::describe(other.strategy.parallel), recompute, in_turn));
        const TensorTrained got = train_on_tensor_ranks(other, {at::kCPU}, {}, late());
        EXPECT_EQ(got.different, std::vector<std::string>());
        expect_same_bits(got, want);
      }
    }
  }
}

TEST_F(TensorParallelTest, PipelinesOfThemEndWithTheSameBits) {
  TrainingCase one = case_of("llama", Precision::kBf16, 6);
  one.strategy.sequences = 16;
  one.strategy.parallel.tp = 2;
  const TensorTrained want = train_on_tensor_ranks(one);
  for (const auto schedule : kSchedules) {
    for (const auto& [dp, zero] : {std::pair{1, 0}, {2, 2}, {2, 3}}) {
      TrainingCase other = one;
      other.strategy.parallel.pp = 2;
      other.strategy.parallel.dp = dp;
      other.strategy.parallel.zero = zero;
      other.strategy.parallel.schedule = schedule;
      const int fixed = plan::fixed_chunks(schedule);
      other.strategy.parallel.chunks = fixed > 0 ? fixed : 2;
      SCOPED_TRACE(plan::describe(other.strategy.parallel));
      const TensorTrained got = train_on_tensor_ranks(other, {at::kCPU}, {}, late());
      EXPECT_EQ(got.different, std::vector<std::string>());
      expect_same_bits(got, want);
    }
  }
}

// First and last stage on one rank: both add to the embedding's gradients.
TEST_F(TensorParallelTest, PipelinesWithATiedHeadEndWithTheSameBits) {
  TrainingCase one = case_of("gemma2", Precision::kFp32, 6);
  one.strategy.parallel.tp = 2;
  const TensorTrained want = train_on_tensor_ranks(one);
  for (const auto schedule : {plan::ScheduleKind::kZeroBubbleV, plan::ScheduleKind::kDualPipeV,
                              plan::ScheduleKind::kVHalf}) {
    TrainingCase other = one;
    other.strategy.parallel.pp = 2;
    other.strategy.parallel.schedule = schedule;
    other.strategy.parallel.chunks = 2;
    SCOPED_TRACE(plan::describe(other.strategy.parallel));
    const TensorTrained got = train_on_tensor_ranks(other, {at::kCPU}, {}, late());
    EXPECT_EQ(got.different, std::vector<std::string>());
    expect_same_bits(got, want);
  }
}

TEST_F(TensorParallelTest, RanksOnSimulatedDevicesEndWithTheBitsOfTheCpu) {
  std::vector<at::Device> devices;
  for (const char* name : {"sim:0", "sim:1"})
    devices.push_back(device::get_device(name).torch_device());
  for (const char* const name : {"gpt2", "gemma2"}) {
    TrainingCase one = case_of(name, Precision::kBf16);
    one.strategy.parallel.tp = 2;
    const TensorTrained want = train_on_tensor_ranks(one);
    expect_same_bits(train_on_tensor_ranks(one, devices), want);
  }
}

// ---- faults -----------------------------------------------------------------------------------------

bool same_bits(const TensorTrained& a, const TensorTrained& b) {
  bool same = true;
  for (size_t i = 0; i < a.weights.size(); ++i)
    same = same && at::equal(a.weights[i], b.weights[i]);
  for (size_t step = 0; step < a.steps.size(); ++step)
    same = same && a.steps[step].loss == b.steps[step].loss;
  return same;
}

class PlantedTensorFault : public ExecutorTest {
 protected:
  PlantedTensorFault() : one_(case_of("qwen3", Precision::kFp32)) {
    one_.strategy.parallel.tp = 2;
    right_ = train_on_tensor_ranks(one_, {at::kCPU}, {}, late());
    EXPECT_EQ(right_.different, std::vector<std::string>());
  }
  /// Whether a program that was changed shows, in what ranks have alike or in the bits: rank 1's, or every rank's.
  bool shows(const std::function<void(plan::Program&)>& change, bool everywhere = false) {
    const TensorTrained wrong = train_on_tensor_ranks(
        one_, {at::kCPU},
        [&](int rank, plan::Program& program) {
          if (rank == 1 || everywhere) change(program);
        },
        late());
    return !wrong.different.empty() || !same_bits(wrong, right_);
  }
  TrainingCase one_;
  TensorTrained right_;
};

TEST_F(PlantedTensorFault, NoneShowsNothing) {
  EXPECT_FALSE(shows([](plan::Program&) {}));
}

// Bytes move when somebody waits for them.
TEST_F(PlantedTensorFault, AMissingWaitShows) {
  for (const auto kind : {plan::OpKind::kGatherTokens, plan::OpKind::kScatterSums,
                          plan::OpKind::kGatherRows, plan::OpKind::kShareGradients}) {
    const auto forget = [&](plan::Program& program) {
      plan::Instruction* transfer = nth(program, kind, 2);
      ASSERT_NE(transfer, nullptr);
      forget_waits_for(program, transfer->id);
    };
    EXPECT_TRUE(shows(forget, /*everywhere=*/true)) << to_string(kind);
  }
}

TEST_F(PlantedTensorFault, ARanksPartOfASumThatIsLeftOutShows) {
  // In its place the rank sends what its products read.
  EXPECT_TRUE(shows([](plan::Program& program) {
    plan::Instruction* scatter = nth(program, plan::OpKind::kScatterSums, 1);
    ASSERT_NE(scatter, nullptr);
    const auto& products = program.instructions[static_cast<size_t>(scatter->id) - 1];
    ASSERT_EQ(products.phase, 2);
    scatter->uses.front() = products.uses.front();
  }));
}

TEST_F(PlantedTensorFault, AGradientOfARankAloneShows) {
  EXPECT_TRUE(shows([](plan::Program& program) {
    plan::Instruction* add = nth(program, plan::OpKind::kAddShares, 0);
    ASSERT_NE(add, nullptr);
    std::erase_if(add->uses, [&](int id) {
      return program.buffers[static_cast<size_t>(id)].kind == plan::BufferKind::kSharedGradients;
    });
  }));
}

TEST_F(PlantedTensorFault, AParameterThatCountsTwiceInTheNormShows) {
  EXPECT_TRUE(shows([](plan::Program& program) {
    for (std::vector<plan::SquaresRange>& ranges : program.squares) {
      for (plan::SquaresRange& range : ranges) range.holders = 1;
    }
  }));
}

}  // namespace
}  // namespace trireme::execute
