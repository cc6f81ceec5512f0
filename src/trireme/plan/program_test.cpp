#include "trireme/plan/program.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <map>
#include <random>
#include <set>

#include "trireme/base/error.h"
#include "trireme/model/flops.h"
#include "trireme/model/mtp_test_specs.h"
#include "trireme/plan/memory.h"
#include "trireme/plan/refused_names.h"

namespace trireme::plan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

model::ModelSpec tiny_model(bool tied, int64_t layers = 2, const char* family = "llama") {
  return model::spec_from_config(
      fmt::format(R"({{"model_type": "{}", "vocab_size": 40, "hidden_size": 16,
      "intermediate_size": 24, "num_hidden_layers": {}, "num_attention_heads": 4,
      "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": {}}})",
                  family, layers, tied),
      "test");
}

Strategy strategy_of(int64_t micro_per_lane, int64_t lanes, int64_t micro = 2,
                     int64_t seq_len = 8) {
  Strategy strategy;
  strategy.micro = micro;
  strategy.lanes = lanes;
  strategy.sequences = micro_per_lane * lanes * micro;
  strategy.seq_len = seq_len;
  return strategy;
}

Strategy random_strategy(const model::ModelSpec& spec, std::mt19937& random) {
  Strategy strategy =
      strategy_of(1 + static_cast<int64_t>(random() % 3), int64_t{1} << (random() % 5),
                  1 + static_cast<int64_t>(random() % 3), 1 + static_cast<int64_t>(random() % 32));
  strategy.precision = random() % 2 == 0 ? Precision::kFp32 : Precision::kBf16;
  strategy.delay_weight_gradients = random() % 2 == 0;
  for (size_t i = 0; i < spec.parts.size(); ++i) {
    strategy.recompute.push_back(static_cast<Recompute>(random() % 3));
  }
  return strategy;
}

bool contains(const std::vector<int>& list, int value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}

// reaches[i] holds every instruction that i waits for, directly or not.
std::vector<std::set<int>> closure(const Program& program) {
  std::vector<std::set<int>> reaches(program.instructions.size());
  for (const Instruction& instruction : program.instructions) {
    auto& mine = reaches[static_cast<size_t>(instruction.id)];
    for (const int dependency : instruction.depends_on) {
      mine.insert(dependency);
      mine.insert(reaches[static_cast<size_t>(dependency)].begin(),
                  reaches[static_cast<size_t>(dependency)].end());
    }
  }
  return reaches;
}

// The rules every program obeys whatever the strategy.
void expect_sound(const Program& program) {
  const auto reaches = closure(program);
  std::vector<int> freed(program.buffers.size(), -1);
  std::vector<int> made(program.buffers.size(), -1);
  for (size_t i = 0; i < program.instructions.size(); ++i) {
    const Instruction& instruction = program.instructions[i];
    ASSERT_EQ(instruction.id, static_cast<int>(i));
    EXPECT_TRUE(std::is_sorted(instruction.depends_on.begin(), instruction.depends_on.end()));
    for (const int dependency : instruction.depends_on) {
      EXPECT_GE(dependency, 0);
      EXPECT_LT(dependency, instruction.id);
    }
    EXPECT_GE(instruction.workspace_bytes, 0) << i;
    EXPECT_GE(instruction.flops, 0.0);
    for (const int buffer : instruction.makes) {
      EXPECT_EQ(made[static_cast<size_t>(buffer)], -1) << "made twice";
      made[static_cast<size_t>(buffer)] = instruction.id;
      EXPECT_EQ(program.buffers[static_cast<size_t>(buffer)].made_by, instruction.id);
      EXPECT_GT(program.buffers[static_cast<size_t>(buffer)].bytes, 0);
    }
    const auto ordered_after = [&](int other) {
      return other == instruction.id || reaches[i].contains(other);
    };
    for (const int buffer : instruction.uses) {
      const int maker = made[static_cast<size_t>(buffer)];
      ASSERT_GE(maker, 0) << "used before it is made";
      EXPECT_TRUE(ordered_after(maker)) << "use does not wait for make";
      EXPECT_EQ(freed[static_cast<size_t>(buffer)], -1) << "used after free";
    }
    for (const int buffer : instruction.frees) {
      ASSERT_GE(made[static_cast<size_t>(buffer)], 0);
      EXPECT_EQ(freed[static_cast<size_t>(buffer)], -1) << "freed twice";
      freed[static_cast<size_t>(buffer)] = instruction.id;
      EXPECT_EQ(program.buffers[static_cast<size_t>(buffer)].freed_after, instruction.id);
      for (const Instruction& user : program.instructions) {
        const bool touches = contains(user.uses, buffer) || contains(user.makes, buffer);
        EXPECT_TRUE(!touches || ordered_after(user.id)) << "free does not wait for a use";
      }
    }
  }
  for (const Buffer& buffer : program.buffers) {
    EXPECT_GE(freed[static_cast<size_t>(buffer.id)], 0)
        << to_string(buffer.kind) << " lives on after the step";
  }
}

TEST(Program, IsSoundForRandomStrategies) {
  std::mt19937 random(11);
  for (int round = 0; round < 60; ++round) {
    const model::ModelSpec spec = model::with_mtp(
        tiny_model(random() % 2 == 0, 1 + random() % 3, random() % 2 == 0 ? "llama" : "qwen3"),
        static_cast<int>(random() % 3), 0.3);
    const Strategy strategy = random_strategy(spec, random);
    ASSERT_THAT(validate(spec, strategy), testing::IsEmpty());
    SCOPED_TRACE(fmt::format("round {}: {} lanes, {} micro-batches", round, strategy.lanes,
                             strategy.micro_batches()));
    expect_sound(build_program(spec, strategy));
  }
}

TEST(Program, DoesEveryPartOfEveryMicroBatchOnce) {
  std::mt19937 random(12);
  for (int round = 0; round < 30; ++round) {
    const model::ModelSpec spec =
        model::with_mtp(tiny_model(random() % 2 == 0), static_cast<int>(random() % 3), 0.3);
    const Strategy strategy = random_strategy(spec, random);
    const Program program = build_program(spec, strategy);
    std::map<std::tuple<OpKind, int, int64_t>, int> count;
    for (const Instruction& instruction : program.instructions) {
      if (instruction.micro_batch >= 0) {
        ++count[{instruction.kind, instruction.part, instruction.micro_batch}];
        EXPECT_EQ(instruction.lane, instruction.micro_batch / strategy.micro_batches_per_lane());
      }
    }
    const int parts = static_cast<int>(spec.parts.size());
    std::map<std::tuple<OpKind, int, int64_t>, int> expected;
    for (int64_t m = 0; m < strategy.micro_batches(); ++m) {
      expected[{OpKind::kLoadBatch, -1, m}] = 1;
      expected[{OpKind::kForward, 0, m}] = 1;
      expected[{OpKind::kBackwardWeight, 0, m}] = 1;
      for (int part = 1; part < parts; ++part) {
        // Of a head that a module goes on from the norm is a forward of its own.
        if (!spec.is_head(part) || part + 1 < parts) expected[{OpKind::kForward, part, m}] = 1;
        if (spec.is_head(part)) {
          expected[{OpKind::kLoss, part, m}] = 1;
          continue;
        }
        expected[{OpKind::kBackwardInput, part, m}] = 1;
        expected[{OpKind::kBackwardWeight, part, m}] = 1;
        if (program.strategy.recompute[static_cast<size_t>(part)] == Recompute::kFull) {
          expected[{OpKind::kRecompute, part, m}] = 1;
        }
      }
    }
    EXPECT_EQ(count, expected);
  }
}

TEST(Program, EndsWithNormStepsAndCommit) {
  const model::ModelSpec spec = tiny_model(false);
  const Program program = build_program(spec, strategy_of(2, 4));
  const size_t parts = spec.parts.size();
  const size_t norm = program.instructions.size() - parts - 2;
  EXPECT_EQ(program.instructions[norm].kind, OpKind::kGradNorm);
  for (size_t part = 0; part < parts; ++part) {
    const Instruction& step = program.instructions[norm + 1 + part];
    EXPECT_EQ(step.kind, OpKind::kOptimizerStep);
    EXPECT_EQ(step.part, static_cast<int>(part));
    EXPECT_TRUE(contains(step.depends_on, static_cast<int>(norm)));
  }
  const Instruction& commit = program.instructions.back();
  EXPECT_EQ(commit.kind, OpKind::kCommit);
  EXPECT_EQ(commit.depends_on.size(), parts);
  // Everything of the step lies before the commit.
  EXPECT_EQ(closure(program).back().size(), program.instructions.size() - 1);
}

// The sum that a part's gradients end up as, written as an expression: lanes as their numbers, the
// order of micro-batches within a lane checked on the way.
std::map<int, std::string> combination(const Program& program) {
  std::map<std::pair<int, int64_t>, std::string> group;
  std::map<std::pair<int, int64_t>, int64_t> last_micro_batch;
  for (const Instruction& instruction : program.instructions) {
    if (instruction.kind == OpKind::kCombineLanes) {
      auto& left = group[{instruction.part, instruction.lane}];
      auto& right = group[{instruction.part, instruction.right_lane}];
      EXPECT_FALSE(left.empty());
      EXPECT_FALSE(right.empty());
      left = "(" + left + "+" + right + ")";
      right.clear();
      continue;
    }
    for (const auto* buffers : {&instruction.makes, &instruction.uses}) {
      for (const int id : *buffers) {
        const Buffer& buffer = program.buffers[static_cast<size_t>(id)];
        if (buffer.kind != BufferKind::kParameterGradient || instruction.micro_batch < 0) continue;
        EXPECT_EQ(buffer.lane, instruction.lane);
        auto& text = group[{buffer.part, buffer.lane}];
        if (text.empty()) {
          text = std::to_string(buffer.lane);
          last_micro_batch[{buffer.part, buffer.lane}] = instruction.micro_batch;
        } else {
          EXPECT_EQ(text, std::to_string(buffer.lane)) << "accumulates into a combined group";
          auto& last = last_micro_batch[{buffer.part, buffer.lane}];
          EXPECT_GE(instruction.micro_batch, last) << "accumulates out of order";
          last = instruction.micro_batch;
        }
      }
    }
  }
  std::map<int, std::string> result;
  for (const auto& [key, text] : group) {
    if (!text.empty()) {
      EXPECT_TRUE(result.emplace(key.first, text).second) << "two groups are left";
    }
  }
  return result;
}

std::string balanced_tree(int64_t first, int64_t count) {
  if (count == 1) return std::to_string(first);
  return "(" + balanced_tree(first, count / 2) + "+" + balanced_tree(first + count / 2, count / 2) +
         ")";
}

TEST(ExactReduction, IsTheBalancedTreeWhateverTheStrategy) {
  std::mt19937 random(13);
  for (int round = 0; round < 40; ++round) {
    const model::ModelSpec spec =
        model::with_mtp(tiny_model(random() % 2 == 0, 1), static_cast<int>(random() % 3), 0.3);
    const Strategy strategy = random_strategy(spec, random);
    const auto trees = combination(build_program(spec, strategy));
    ASSERT_EQ(trees.size(), spec.parts.size());
    for (const auto& [part, tree] : trees)
      EXPECT_EQ(tree, balanced_tree(0, strategy.lanes)) << part;
  }
  EXPECT_EQ(balanced_tree(0, 4), "((0+1)+(2+3))");
}

TEST(ExactReduction, HoldsWhatABinaryCounterNeeds) {
  for (const bool tied : {false, true}) {
    for (const bool delayed : {false, true}) {
      for (const int64_t lanes : {1, 2, 4, 8, 16, 32}) {
        const model::ModelSpec spec = model::with_mtp(tiny_model(tied, 1), delayed ? 2 : 0, 0.3);
        Strategy strategy = strategy_of(2, lanes);
        strategy.delay_weight_gradients = delayed;
        const Program program = build_program(spec, strategy);
        std::map<int, int> held;
        std::map<int, int> most;
        for (const Instruction& instruction : program.instructions) {
          for (const int id : instruction.makes) {
            const Buffer& buffer = program.buffers[static_cast<size_t>(id)];
            if (buffer.kind != BufferKind::kParameterGradient) continue;
            ++held[buffer.part];
            most[buffer.part] = std::max(most[buffer.part], held[buffer.part]);
          }
          for (const int id : instruction.frees) {
            const Buffer& buffer = program.buffers[static_cast<size_t>(id)];
            if (buffer.kind == BufferKind::kParameterGradient) --held[buffer.part];
          }
        }
        const int log2 = std::bit_width(static_cast<uint64_t>(lanes)) - 1;
        for (size_t part = 0; part < spec.parts.size(); ++part) {
          EXPECT_EQ(most[static_cast<int>(part)], log2 + 1) << lanes << " lanes, part " << part;
        }
      }
    }
  }
}

TEST(Program, DelayedWeightGradientsOnlyChangeTheOrder) {
  const model::ModelSpec spec = tiny_model(true);
  Strategy joint = strategy_of(2, 2);
  Strategy delayed = joint;
  delayed.delay_weight_gradients = true;
  const Program a = build_program(spec, joint);
  const Program b = build_program(spec, delayed);
  const auto order = [](const Program& program, int64_t micro_batch) {
    std::vector<std::pair<OpKind, int>> result;
    for (const Instruction& instruction : program.instructions) {
      const bool backward =
          instruction.kind == OpKind::kBackwardInput || instruction.kind == OpKind::kBackwardWeight;
      if (backward && instruction.micro_batch == micro_batch) {
        result.emplace_back(instruction.kind, instruction.part);
      }
    }
    return result;
  };
  using Op = std::pair<OpKind, int>;
  const OpKind input = OpKind::kBackwardInput;
  const OpKind weight = OpKind::kBackwardWeight;
  EXPECT_THAT(order(a, 1),
              ElementsAre(Op{input, 4}, Op{weight, 4}, Op{input, 3}, Op{weight, 3}, Op{input, 2},
                          Op{weight, 2}, Op{input, 1}, Op{weight, 1}, Op{weight, 0}));
  EXPECT_THAT(order(b, 1),
              ElementsAre(Op{input, 4}, Op{input, 3}, Op{input, 2}, Op{input, 1}, Op{weight, 4},
                          Op{weight, 3}, Op{weight, 2}, Op{weight, 1}, Op{weight, 0}));
  EXPECT_EQ(a.instructions.size(), b.instructions.size());
  EXPECT_EQ(combination(a), combination(b));
}

// Accumulators that several parts write to (embedding and head, with multi-token prediction) are written in one order, or
// their last bits would depend on the strategy.
TEST(Program, SharedGradientsAreWrittenInOneOrder) {
  std::mt19937 random(15);
  for (const bool tied : {false, true}) {
    const model::ModelSpec spec = model::with_mtp(tiny_model(tied), 2, 0.3);
    const auto writers = [&](const Strategy& strategy) {
      std::map<std::pair<int, int64_t>, std::vector<std::pair<int64_t, int>>> result;
      const Program program = build_program(spec, strategy);
      for (const Instruction& instruction : program.instructions) {
        if (instruction.micro_batch < 0) continue;
        for (const auto* buffers : {&instruction.makes, &instruction.uses}) {
          for (const int id : *buffers) {
            const Buffer& buffer = program.buffers[static_cast<size_t>(id)];
            if (buffer.kind == BufferKind::kParameterGradient)
              result[{buffer.part, buffer.lane}].emplace_back(instruction.micro_batch,
                                                              instruction.part);
          }
        }
      }
      return result;
    };
    Strategy strategy = strategy_of(2, 4);
    const auto want = writers(strategy);
    // Parts: 0 embedding, 1 .. 4 layers, 5 head, 6 .. 9 and 10 .. 13 the modules' input, attention, MLP and head.
    using Writer = std::pair<int64_t, int>;
    if (tied) {
      EXPECT_THAT(want.at({0, 3}),
                  ElementsAre(Writer{6, 13}, Writer{6, 10}, Writer{6, 9}, Writer{6, 6},
                              Writer{6, 5}, Writer{6, 0}, Writer{7, 13}, Writer{7, 10},
                              Writer{7, 9}, Writer{7, 6}, Writer{7, 5}, Writer{7, 0}));
    } else {
      EXPECT_THAT(want.at({0, 3}), ElementsAre(Writer{6, 10}, Writer{6, 6}, Writer{6, 0},
                                               Writer{7, 10}, Writer{7, 6}, Writer{7, 0}));
      EXPECT_THAT(want.at({5, 0}), ElementsAre(Writer{0, 13}, Writer{0, 9}, Writer{0, 5},
                                               Writer{1, 13}, Writer{1, 9}, Writer{1, 5}));
    }
    for (int round = 0; round < 10; ++round) {
      Strategy other = random_strategy(spec, random);
      strategy.recompute = other.recompute;
      strategy.delay_weight_gradients = round % 2 == 0;
      EXPECT_EQ(writers(strategy), want);
    }
  }
}

TEST(Program, LoadsOneMicroBatchAhead) {
  const model::ModelSpec spec = tiny_model(false);
  const Program program = build_program(spec, strategy_of(5, 1));
  int held = 0;
  int most = 0;
  for (const Instruction& instruction : program.instructions) {
    for (const int id : instruction.makes) {
      if (program.buffers[static_cast<size_t>(id)].kind == BufferKind::kBatch) ++held;
    }
    most = std::max(most, held);
    for (const int id : instruction.frees) {
      if (program.buffers[static_cast<size_t>(id)].kind == BufferKind::kBatch) --held;
    }
    if (instruction.kind == OpKind::kLoadBatch) {
      EXPECT_EQ(instruction.resource, Resource::kHost);
      EXPECT_EQ(instruction.depends_on.empty(), instruction.micro_batch < 2);
    } else if (instruction.kind != OpKind::kCommit) {
      EXPECT_EQ(instruction.resource, Resource::kCompute);
    }
  }
  EXPECT_EQ(most, 2);
}

TEST(Program, CountsTheFlopsOfTheModel) {
  const model::ModelSpec spec = tiny_model(true);
  Strategy strategy = strategy_of(3, 2, 2, 16);
  const auto total = [&](const Program& program) {
    double sum = 0.0;
    for (const Instruction& instruction : program.instructions) sum += instruction.flops;
    return sum;
  };
  const double tokens = 3.0 * 2 * 2 * 16;
  EXPECT_DOUBLE_EQ(total(build_program(spec, strategy)),
                   tokens * model::flops_per_token(spec, 16).model());
  strategy.recompute = recompute_from_names(spec, {"full"});
  const std::vector<bool> recomputed = {false, true, true, true, true, false};
  EXPECT_DOUBLE_EQ(total(build_program(spec, strategy)),
                   tokens * model::flops_per_token(spec, 16, recomputed).hardware());
  const model::ModelSpec further = model::with_mtp(spec, 2, 0.3);
  strategy.recompute.clear();
  EXPECT_DOUBLE_EQ(total(build_program(further, strategy)),
                   tokens * model::flops_per_token(further, 16).model());
}

TEST(Program, TiedHeadWritesTheEmbeddingsGradientFirst) {
  const model::ModelSpec spec = tiny_model(true);
  const Program program = build_program(spec, strategy_of(1, 2));
  for (const Instruction& instruction : program.instructions) {
    if (instruction.kind != OpKind::kLoss) continue;
    std::vector<int> parts;
    for (const int id : instruction.makes) {
      const Buffer& buffer = program.buffers[static_cast<size_t>(id)];
      if (buffer.kind == BufferKind::kParameterGradient) parts.push_back(buffer.part);
    }
    EXPECT_THAT(parts, ElementsAre(5, 0));
  }
}

TEST(Describe, NamesPartMicroBatchAndLane) {
  const model::ModelSpec spec = tiny_model(false);
  const Program program = build_program(spec, strategy_of(2, 2));
  EXPECT_EQ(describe(spec, program.instructions[0]), "load-batch micro-batch 0 (lane 0)");
  for (const Instruction& instruction : program.instructions) {
    if (instruction.kind == OpKind::kForward && instruction.part == 2 &&
        instruction.micro_batch == 2) {
      EXPECT_EQ(describe(spec, instruction), "forward layer.0.mlp micro-batch 2 (lane 1)");
    }
    if (instruction.kind == OpKind::kCombineLanes && instruction.part == 5) {
      EXPECT_EQ(describe(spec, instruction), "combine-lanes head lane 0 += lane 1");
    }
  }
  EXPECT_EQ(describe(spec, program.instructions.back()), "commit");
}

TEST(Validate, GivesReasonsThatSayWhatToChange) {
  const model::ModelSpec spec = tiny_model(false);
  const auto reason = [&](auto change) {
    Strategy strategy = strategy_of(2, 4);  // 16 sequences, micro 2
    change(strategy);
    const auto reasons = validate(spec, strategy);
    EXPECT_THROW(build_program(spec, strategy), Error);
    return reasons.empty() ? std::string() : reasons.front();
  };
  EXPECT_THAT(validate(spec, strategy_of(2, 4)), testing::IsEmpty());
  EXPECT_THAT(reason([](Strategy& s) { s.micro = 0; }), HasSubstr("at least 1"));
  EXPECT_THAT(reason([](Strategy& s) { s.sequences = -4; }), HasSubstr("batch.sequences = -4"));
  EXPECT_THAT(reason([](Strategy& s) { s.lanes = 3; }),
              HasSubstr("batch.lanes = 3 is not a power of two: use 2 or 4"));
  EXPECT_THAT(reason([](Strategy& s) { s.sequences = 15; }),
              HasSubstr("batch.sequences = 15 is not a multiple of batch.micro = 2: use 14 or 16"));
  EXPECT_THAT(reason([](Strategy& s) { s.sequences = 18; }), HasSubstr("use 24 sequences"));
  EXPECT_THAT(reason([](Strategy& s) { s.seq_len = 65; }), HasSubstr("exceeds the model's 64"));
  EXPECT_THAT(reason([](Strategy& s) { s.loss_chunk_rows = -1; }), HasSubstr("loss_chunk_rows"));
  EXPECT_THAT(reason([](Strategy& s) { s.recompute.resize(2); }), HasSubstr("2 entries for 6"));
  EXPECT_THAT(reason([](Strategy& s) { s.optimizer_state_bytes.resize(2); }),
              HasSubstr("optimizer_state_bytes"));
}

TEST(RecomputeNames, CoverAllSpellings) {
  const model::ModelSpec spec = tiny_model(false);
  const auto none = Recompute::kNone;
  const auto some = Recompute::kSelective;
  const auto full = Recompute::kFull;
  const auto of = [&](std::vector<std::string> names) { return recompute_from_names(spec, names); };
  EXPECT_THAT(of({}), ElementsAre(none, none, none, none, none, none));
  EXPECT_THAT(of({"none"}), ElementsAre(none, none, none, none, none, none));
  EXPECT_THAT(of({"full"}), ElementsAre(none, full, full, full, full, none));
  EXPECT_THAT(of({"selective"}), ElementsAre(none, some, some, some, some, none));
  EXPECT_THAT(of({"mlp"}), ElementsAre(none, none, full, none, full, none));
  EXPECT_THAT(of({"layer.1"}), ElementsAre(none, none, none, full, full, none));
  EXPECT_THAT(of({"selective", "layer.0.mlp:full", "layer.1.attention:none"}),
              ElementsAre(none, some, full, none, some, none));
  expect_refused(of, {{"mlpp", "no part \"mlpp\"", "\"mlp\""},
                      {"layer.2.mlp", "no part \"layer.2.mlp\"", "layer."},
                      {"mlp:ful", "\"ful\" is not a mode", "full"},
                      {"head", "the head is never recomputed", "attention or mlp"},
                      {"", "no part \"\"", "none, selective or full"}});
}

TEST(LossChunk, NeverCoversTheMicroBatch) {
  model::ModelSpec spec = tiny_model(false);
  Strategy strategy = strategy_of(1, 1, 1, 64);
  EXPECT_EQ(choose_loss_chunk_rows(spec, strategy), 32);
  spec = model::spec_from_preset("gpt2-124m");
  strategy = strategy_of(1, 1, 4, 1024);
  const int64_t rows = choose_loss_chunk_rows(spec, strategy);
  EXPECT_EQ(rows, 128);  // 8 Mi elements / 50257, down to a multiple of 64
  EXPECT_EQ(build_program(spec, strategy).strategy.loss_chunk_rows, rows);
  strategy.loss_chunk_rows = 1 << 20;
  EXPECT_EQ(build_program(spec, strategy).strategy.loss_chunk_rows, 4096);
}

TEST(Memory, OfGpt2ByHand) {
  const model::ModelSpec spec = model::spec_from_preset("gpt2-124m");
  Strategy strategy = strategy_of(1, 1, 4, 1024);
  const int64_t n = 4 * 1024;
  EXPECT_EQ(batch_bytes(spec, strategy), 3 * 8 * n);
  EXPECT_EQ(hidden_bytes(spec, strategy, 1), 4 * n * 768);
  EXPECT_EQ(resident_bytes(spec, strategy).total(), 12 * 124439808);
  // Attention keeps the norm's statistics, qkv and the log-sum-exp until backward-input; the normed
  // input and the attention's output until backward-weight.
  const PartBytes attention = part_bytes(spec, strategy, 1, Recompute::kNone);
  EXPECT_EQ(attention.saved_input, 8 * n + 4 * n * 3 * 768 + 4 * n * 12);
  EXPECT_EQ(attention.saved_weight, 4 * n * 2 * 768);
  EXPECT_EQ(attention.delayed, 4 * n * 3 * 768 + 8 * 768);
  const PartBytes mlp = part_bytes(spec, strategy, 2, Recompute::kNone);
  EXPECT_EQ(mlp.saved_input, 8 * n);
  EXPECT_EQ(mlp.saved_weight, 4 * n * (768 + 2 * 3072));
  EXPECT_EQ(parameter_gradient_bytes(spec, 2), 4 * (2 * 768 + 2 * 768 * 3072 + 3072 + 768));

  strategy.precision = Precision::kBf16;
  EXPECT_EQ(hidden_bytes(spec, strategy, 1), 2 * n * 768);
  EXPECT_EQ(resident_bytes(spec, strategy).total(), 14 * 124439808);
  strategy.optimizer_state_bytes.assign(spec.parts.size(), 0);
  EXPECT_EQ(resident_bytes(spec, strategy).total(), 6 * 124439808);
}

TEST(Memory, RecomputationHoldsLess) {
  for (const char* preset : {"gpt2-124m", "llama-110m", "qwen3-0.6b"}) {
    const model::ModelSpec spec = model::spec_from_preset(preset);
    const Strategy strategy = strategy_of(1, 1, 4, 1024);
    for (const int part : {1, 2}) {
      const auto held = [&](Recompute mode) {
        const PartBytes bytes = part_bytes(spec, strategy, part, mode);
        return bytes.saved_input + bytes.saved_weight;
      };
      EXPECT_LT(held(Recompute::kSelective), held(Recompute::kNone)) << preset << part;
      EXPECT_EQ(held(Recompute::kFull), held(Recompute::kNone)) << preset << part;
    }
  }
}

TEST(Memory, RotaryTablesAreShared) {
  const model::ModelSpec spec = model::spec_from_preset("llama-11m");
  // Cosines and sines of 32 frequencies at 256 positions, float32.
  EXPECT_EQ(resident_bytes(spec, strategy_of(1, 1, 1, 256)).tables, 2 * 32 * 256 * 4);
}

}  // namespace
}  // namespace trireme::plan
