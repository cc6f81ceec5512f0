// What is whole when, in programs of ranks that gather weights for their uses.
#include "trireme/plan/weight_gathers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "trireme/model/moe_test_configs.h"
#include "trireme/plan/shards.h"
#include "trireme/plan/simulate_world.h"

namespace trireme::plan {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

model::ModelSpec llama(bool tied) {
  return model::spec_from_config(
      fmt::format(R"({{"model_type": "llama", "vocab_size": 300, "hidden_size": 64,
      "intermediate_size": 176, "num_hidden_layers": 6, "num_attention_heads": 4,
      "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": {}}})",
                  tied),
      "test");
}

Strategy strategy_of(int64_t dp, int64_t lanes, int64_t ahead) {
  Strategy strategy;
  strategy.seq_len = 8;
  strategy.lanes = lanes;
  strategy.sequences = lanes;
  strategy.parallel.dp = dp;
  strategy.parallel.zero = 3;
  strategy.weights_ahead = ahead;
  return strategy;
}

bool reads_weights(const Instruction& instruction) {
  return instruction.kind == OpKind::kForward || instruction.kind == OpKind::kRecompute ||
         instruction.kind == OpKind::kLoss || instruction.kind == OpKind::kBackwardInput;
}

/// Walks a program as the executor does; the most parts that are whole at a time.
size_t walk(const model::ModelSpec& spec, const Program& program) {
  std::set<int> whole;
  std::set<int> waited;
  size_t most = 0;
  for (const Instruction& instruction : program.instructions) {
    for (const int id : instruction.makes) {
      const Buffer& buffer = program.buffers[static_cast<size_t>(id)];
      if (buffer.kind != BufferKind::kGatheredWeights) continue;
      EXPECT_EQ(instruction.kind, OpKind::kGatherParameters);
      EXPECT_EQ(instruction.part, buffer.part);
      EXPECT_TRUE(whole.insert(buffer.part).second)
          << "part " << buffer.part << " is whole already";
      waited.erase(buffer.part);
    }
    most = std::max(most, whole.size());
    for (const int other : instruction.depends_on) {
      const Instruction& gather = program.instructions[static_cast<size_t>(other)];
      if (gather.kind == OpKind::kGatherParameters) waited.insert(gather.part);
    }
    if (reads_weights(instruction)) {
      std::vector<int> parts = {instruction.part};
      if (instruction.kind == OpKind::kLoss && spec.tied_embeddings) parts.push_back(0);
      for (const int part : parts) {
        if (!gathers_for_use(spec, program.strategy, part) ||
            program.slices[static_cast<size_t>(part)].back() == 0)
          continue;
        EXPECT_TRUE(whole.contains(part) && waited.contains(part)) << describe(spec, instruction);
      }
    }
    for (const int id : instruction.frees) {
      const Buffer& buffer = program.buffers[static_cast<size_t>(id)];
      if (buffer.kind == BufferKind::kGatheredWeights) {
        EXPECT_EQ(whole.erase(buffer.part), 1U) << describe(spec, instruction);
      }
    }
  }
  EXPECT_TRUE(whole.empty());
  return most;
}

TEST(WeightGathers, EveryUseHasTheWholePartAndFewAreWholeAtATime) {
  for (const bool tied : {false, true}) {
    const model::ModelSpec spec = llama(tied);
    for (const int64_t ahead : {0, 1, 2}) {
      for (const bool recompute : {false, true}) {
        for (const int64_t dp : {2, 3, 4}) {
          Strategy strategy = strategy_of(dp, 8, ahead);
          if (recompute) strategy.recompute = recompute_from_names(spec, {"full"});
          for (int rank = 0; rank < dp; ++rank) {
            // A layer has two parts; the token table comes beside the head where they are tied.
            EXPECT_LE(walk(spec, build_program(spec, strategy, rank)),
                      static_cast<size_t>(2 * ahead + 1 + (tied ? 1 : 0)));
          }
        }
      }
    }
  }
}

TEST(WeightGathers, WithExpertsAndPipelinesToo) {
  Json config = model::tiny_moe("qwen2_moe");
  config["num_hidden_layers"] = 4;
  const model::ModelSpec spec = model::spec_from_config(config.dump(), "test");
  Strategy strategy = strategy_of(2, 8, 1);
  strategy.parallel.pp = 2;
  for (const auto schedule : {ScheduleKind::k1F1B, ScheduleKind::kZeroBubbleH1}) {
    strategy.parallel.schedule = schedule;
    for (int rank = 0; rank < 4; ++rank) walk(spec, build_program(spec, strategy, rank));
  }
}

// Each part for its forward and its backward but those around the loss, which stay, and the embedding, whose backward reads nothing.
TEST(WeightGathers, AreTwoAPartAndMicroBatch) {
  const model::ModelSpec spec = llama(false);
  const Program program = build_program(spec, strategy_of(2, 2, 1));
  std::vector<int> gathers(spec.parts.size());
  double bytes = 0.0;
  for (const Instruction& instruction : program.instructions) {
    if (instruction.kind != OpKind::kGatherParameters) continue;
    ++gathers[static_cast<size_t>(instruction.part)];
    bytes += transfer_bytes(spec, program, instruction).received;
  }
  const size_t head = spec.parts.size() - 1;
  EXPECT_EQ(gathers[0], 1);
  EXPECT_EQ(gathers[head], 1);
  EXPECT_EQ(gathers[head - 1], 1);  // its backward is right behind the loss
  for (size_t part = 1; part + 1 < head; ++part) EXPECT_EQ(gathers[part], 2) << part;
  double expected = 0.0;  // what others have of each part, float32
  for (size_t part = 0; part <= head; ++part) {
    const std::vector<int64_t>& bounds = program.slices[part];
    expected += 4.0 * gathers[part] * static_cast<double>(bounds.back() - bounds[1]);
  }
  EXPECT_EQ(bytes, expected);
}

// A rank that has a lane less than others gives what it owns, and gives up what it need not have: nothing is computed for that.
TEST(WeightGathers, LanesOfOthersAreServed) {
  const model::ModelSpec spec = llama(false);
  std::vector<int> gathers;
  std::vector<int> releases;
  for (int rank = 0; rank < 3; ++rank) {
    const Program program = build_program(spec, strategy_of(3, 4, 1), rank);
    EXPECT_EQ(program.lanes.size(), rank == 0 ? 2U : 1U);
    const auto count = [&](OpKind kind) {
      return static_cast<int>(std::ranges::count(program.instructions, kind, &Instruction::kind));
    };
    EXPECT_EQ(count(OpKind::kLoss), rank == 0 ? 2 : 1);
    EXPECT_EQ(count(OpKind::kLoadBatch), rank == 0 ? 2 : 1);
    gathers.push_back(count(OpKind::kGatherParameters));
    releases.push_back(count(OpKind::kReleaseParameters));
  }
  EXPECT_THAT(gathers, Each(gathers.front()));
  EXPECT_EQ(releases[0], 0);
  EXPECT_GT(releases[1], 0);
  EXPECT_EQ(releases[1], releases[2]);
}

TEST(WeightGathers, RecordedWorkIsRefusedBeside) {
  Strategy strategy = strategy_of(2, 2, 1);
  strategy.record = true;
  const std::vector<std::string> reasons = validate(llama(false), strategy);
  ASSERT_FALSE(reasons.empty());
  EXPECT_THAT(reasons.front(), HasSubstr("parallel.zero = 3"));
  EXPECT_THAT(reasons.front(), HasSubstr("use parallel.zero = 2"));
}

// Of lanes that a rank does not have nothing is left but transfers and releases: no buffer of theirs.
TEST(WeightGathers, NothingOfAbsentLanesIsHeld) {
  const model::ModelSpec spec = llama(false);
  for (const int64_t pp : {1, 2}) {
    for (const int64_t dp : {3, 5}) {
      for (const int64_t zero : {0, 1, 2, 3}) {
        Strategy strategy = strategy_of(dp, 8, 1);
        strategy.parallel.zero = zero;
        strategy.parallel.pp = pp;
        for (int rank = 0; rank < static_cast<int>(dp * pp); ++rank) {
          const Program program = build_program(spec, strategy, rank);
          for (const int64_t lane : program.lanes) EXPECT_LT(lane, strategy.lanes);
          for (const Buffer& buffer : program.buffers) {
            EXPECT_LT(buffer.lane, strategy.lanes);
            EXPECT_LT(buffer.micro_batch, strategy.sequences);
            const auto maker = static_cast<size_t>(buffer.made_by);
            EXPECT_THAT(program.instructions[maker].makes, ::testing::Contains(buffer.id))
                << to_string(buffer.kind) << " of part " << buffer.part << ", rank " << rank;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace trireme::plan
