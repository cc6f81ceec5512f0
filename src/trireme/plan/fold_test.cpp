#include "trireme/plan/fold.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trireme/base/error.h"
#include "trireme/plan/simulate_world.h"

namespace trireme::plan {
namespace {

using ::testing::ElementsAre;

model::ModelSpec tiny() {
  return model::spec_from_config(R"({"model_type": "llama", "vocab_size": 1024, "hidden_size": 64,
      "intermediate_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4,
      "num_key_value_heads": 4, "max_position_embeddings": 64})",
                                 "test");
}

Strategy strategy_of(int64_t dp, int64_t pp, int64_t micro_batches, int64_t zero) {
  Strategy strategy;
  strategy.seq_len = 16;
  strategy.parallel.dp = dp;
  strategy.parallel.pp = pp;
  strategy.parallel.zero = zero;
  strategy.lanes = dp;
  strategy.sequences = dp * micro_batches;
  return strategy;
}

// Durations that depend on the kind and the part alone, as those of the cost model do.
std::vector<std::vector<double>> durations_of(const std::vector<Program>& programs) {
  std::vector<std::vector<double>> all;
  for (const Program& program : programs) {
    std::vector<double>& own = all.emplace_back();
    for (const Instruction& instruction : program.instructions)
      own.push_back(instruction.resource == Resource::kCompute && instruction.part >= 0
                        ? 1.0 +
                              0.125 * static_cast<double>(static_cast<int>(instruction.kind) % 4) +
                              0.0625 * (instruction.part % 3)
                        : 0.0);
  }
  return all;
}

WorldOptions options() {
  WorldOptions options;
  options.transfer = [](const Program&, const Instruction& instruction) -> TransferCost {
    return {instruction.kind == OpKind::kSend || instruction.kind == OpKind::kReceive ? 0.25 : 1.5,
            8.0};
  };
  return options;
}

double step_of(const model::ModelSpec& spec, const std::vector<Program>& programs) {
  return simulate_world(spec, programs, durations_of(programs), options()).step_s;
}

TEST(Fold, IsTheWholeWorldWhereRanksOfAStageAreAlike) {
  const model::ModelSpec spec = tiny();
  for (const int64_t dp : {1, 2, 4}) {
    for (const int64_t pp : {1, 2, 3}) {
      for (const int64_t zero : {0, 1, 2}) {
        const Strategy strategy = strategy_of(dp, pp, 4, zero);
        std::vector<Program> all;
        for (int rank = 0; rank < static_cast<int>(dp * pp); ++rank)
          all.push_back(build_program(spec, strategy, rank));
        const FoldedWorld folded = fold(spec, strategy, 4);
        ASSERT_EQ(folded.programs.size(), static_cast<size_t>(pp));
        EXPECT_DOUBLE_EQ(step_of(spec, folded.programs), step_of(spec, all))
            << "dp " << dp << " pp " << pp << " zero " << zero;
      }
    }
  }
}

// Of several stages a rank, a message comes after sums that are put off: it does not wait for them.
TEST(Fold, PutOffReductionsHoldNoMessageUp) {
  const model::ModelSpec spec = tiny();
  for (const int64_t pp : {2, 3}) {
    for (const int64_t micro_batches : {3, 5, 8}) {
      Strategy strategy = strategy_of(2, pp, micro_batches, 1);
      strategy.parallel.schedule = ScheduleKind::kInterleaved;
      strategy.parallel.chunks = 2;
      FoldedWorld world = fold(spec, strategy, micro_batches);
      const double beside = step_of(spec, world.programs);
      for (Program& program : world.programs) postpone_reductions(program);
      EXPECT_GE(step_of(spec, world.programs), beside) << pp << " ranks, " << micro_batches;
    }
  }
}

TEST(Fold, StepsGrowInStepWithMicroBatchesOnceAPipelineIsFull) {
  const model::ModelSpec spec = tiny();
  for (const int64_t pp : {1, 2, 3}) {
    const Strategy strategy = strategy_of(2, pp, 24, 1);
    const std::vector<int64_t> samples = sample_micro_batches(strategy);
    ASSERT_EQ(samples.size(), 2);
    const double first = step_of(spec, fold(spec, strategy, samples[0]).programs);
    const double second = step_of(spec, fold(spec, strategy, samples[1]).programs);
    const double each = (second - first) / static_cast<double>(samples[1] - samples[0]);
    EXPECT_NEAR(first + each * static_cast<double>(24 - samples[0]),
                step_of(spec, fold(spec, strategy, 24).programs), 1e-9);
  }
}

TEST(Fold, FewMicroBatchesAreAllSimulated) {
  EXPECT_THAT(sample_micro_batches(strategy_of(1, 4, 5, 0)), ElementsAre(5));
}

TEST(Fold, ABatchThatDoesNotDivideIsRefused) {
  Strategy strategy = strategy_of(4, 1, 2, 0);
  strategy.sequences = 10;
  EXPECT_THROW(rank_micro_batches(strategy), Error);
}

TEST(Fold, WithoutOverlapNoForwardBeginsBeforeTheNewWeightsAreThere) {
  const model::ModelSpec spec = tiny();
  for (const int64_t pp : {1, 2}) {
    FoldedWorld folded = fold(spec, strategy_of(2, pp, 4, 1), 4);
    const double beside = step_of(spec, folded.programs);
    for (Program& program : folded.programs) wait_for_gathers(program);
    const WorldSimulation world =
        simulate_world(spec, folded.programs, durations_of(folded.programs), options());
    EXPECT_GT(world.step_s, beside);
    for (size_t rank = 0; rank < folded.programs.size(); ++rank) {
      double gathered = 0.0;
      double first_forward = 1e9;
      for (const Instruction& instruction : folded.programs[rank].instructions) {
        const SimulatedInstruction& time =
            world.ranks[rank].simulation.instructions[static_cast<size_t>(instruction.id)];
        if (instruction.kind == OpKind::kGatherParameters)
          gathered = std::max(gathered, time.end_s);
        if (instruction.kind == OpKind::kForward)
          first_forward = std::min(first_forward, time.start_s);
      }
      EXPECT_GT(gathered, 0.0);
      EXPECT_GE(first_forward, gathered);
    }
  }
}

TEST(Fold, PostponedReductionsBeginAfterTheLastBackward) {
  const model::ModelSpec spec = tiny();
  const Strategy strategy = strategy_of(2, 2, 4, 1);
  FoldedWorld folded = fold(spec, strategy, 4);
  const double beside = step_of(spec, folded.programs);
  size_t before = 0;
  for (Program& program : folded.programs) {
    before += program.instructions.size();
    postpone_reductions(program);
  }
  const WorldSimulation world =
      simulate_world(spec, folded.programs, durations_of(folded.programs), options());
  EXPECT_GT(world.step_s, beside);
  size_t after = 0;
  for (size_t rank = 0; rank < folded.programs.size(); ++rank) {
    const Program& program = folded.programs[rank];
    after += program.instructions.size();
    double last_backward = 0.0;
    double first_reduction = 1e9;
    for (const Instruction& instruction : program.instructions) {
      const SimulatedInstruction& time =
          world.ranks[rank].simulation.instructions[static_cast<size_t>(instruction.id)];
      if (instruction.kind == OpKind::kBackwardWeight)
        last_backward = std::max(last_backward, time.end_s);
      if (instruction.kind == OpKind::kReduceGradients)
        first_reduction = std::min(first_reduction, time.start_s);
    }
    EXPECT_GE(first_reduction, last_backward);
  }
  EXPECT_EQ(after, before);
}

TEST(Fold, PartsAreGatheredForEveryUse) {
  const model::ModelSpec spec = tiny();
  const Strategy strategy = strategy_of(2, 1, 3, 3);
  FoldedWorld folded = fold(spec, strategy, 3);
  Program& program = folded.programs.front();
  gather_every_part(spec, program);
  int for_use = 0;
  int reductions = 0;
  for (const Instruction& instruction : program.instructions) {
    if (instruction.kind == OpKind::kGatherParameters && instruction.micro_batch >= 0) ++for_use;
    if (instruction.kind == OpKind::kReduceGradients) ++reductions;
  }
  // 14 parts, forward and backward; the head's forward is in its loss, and the embedding has no gradient of its input.
  EXPECT_GE(for_use, 3 * (13 + 13));
  EXPECT_LE(for_use, 3 * (14 + 14));
  EXPECT_EQ(reductions, 3 * 14);
  EXPECT_GT(step_of(spec, folded.programs), 0.0);
}

TEST(Fold, LayersOfStagesCanBeGiven) {
  const model::ModelSpec spec = tiny();
  Strategy strategy = strategy_of(1, 3, 3, 0);
  strategy.stage_layers = {1, 2, 3};
  const FoldedWorld folded = fold(spec, strategy, 3);
  std::vector<int> parts;
  for (const Program& program : folded.programs) {
    int count = 0;
    for (int part = 0; part < static_cast<int>(spec.parts.size()); ++part)
      count += program.has(part) ? 1 : 0;
    parts.push_back(count);
  }
  EXPECT_THAT(parts,
              ElementsAre(3, 4, 7));  // two parts a layer, the embedding first and the head last
  strategy.stage_layers = {1, 2, 4};
  EXPECT_THROW(fold(spec, strategy, 3), Error);
}

}  // namespace
}  // namespace trireme::plan
