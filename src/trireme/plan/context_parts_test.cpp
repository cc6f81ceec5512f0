// Programs of ranks that share sequences: sound, without deadlock, and what a ring sends lies beside its attention.
#include <gtest/gtest.h>

#include <algorithm>

#include "trireme/plan/simulate_world.h"

namespace trireme::plan {
namespace {

model::ModelSpec layers(int count) {
  return model::spec_from_config(
      fmt::format(R"({{"model_type": "llama", "vocab_size": 16, "hidden_size": 16,
      "intermediate_size": 24, "num_hidden_layers": {}, "num_attention_heads": 4,
      "num_key_value_heads": 2, "max_position_embeddings": 64}})",
                  count),
      "test");
}

Strategy strategy_of(ContextKind kind, int64_t cp, int64_t dp, int64_t zero, int64_t pp,
                     int64_t tp = 1) {
  Strategy strategy;
  strategy.lanes = 4;
  strategy.sequences = 8;
  strategy.seq_len = 16;
  strategy.parallel.cp = cp;
  strategy.parallel.cp_kind = kind;
  strategy.parallel.dp = dp;
  strategy.parallel.zero = zero;
  strategy.parallel.pp = pp;
  strategy.parallel.tp = tp;
  return strategy;
}

std::vector<Program> programs_of(const model::ModelSpec& spec, const Strategy& strategy) {
  std::vector<Program> programs;
  for (int rank = 0; rank < static_cast<int>(strategy.parallel.world()); ++rank)
    programs.push_back(build_program(spec, strategy, rank));
  return programs;
}

// What a transfer reads or makes is there from before it until after somebody has waited for it.
void expect_sound(const model::ModelSpec& spec, const Program& program) {
  for (const Instruction& transfer : program.instructions) {
    for (const auto* const list : {&transfer.uses, &transfer.makes}) {
      for (const int id : *list) {
        const Buffer& buffer = program.buffers[static_cast<size_t>(id)];
        EXPECT_LE(buffer.made_by, transfer.id) << describe(spec, transfer);
        EXPECT_GE(buffer.freed_after, transfer.id) << describe(spec, transfer);
        if (transfer.kind != OpKind::kExchangeContext) continue;
        const Instruction& freeing = program.instructions[static_cast<size_t>(buffer.freed_after)];
        EXPECT_NE(freeing.id, transfer.id) << describe(spec, transfer);
        EXPECT_NE(std::ranges::find(freeing.depends_on, transfer.id), freeing.depends_on.end())
            << describe(spec, freeing) << " frees what " << describe(spec, transfer) << " has";
      }
    }
  }
}

TEST(ContextParts, EveryLayoutIsSoundAndEnds) {
  const model::ModelSpec spec = layers(4);
  for (const ContextKind kind : {ContextKind::kGather, ContextKind::kRing}) {
    for (const auto recompute : {Recompute::kNone, Recompute::kFull}) {
      for (const auto& [cp, tp] : {std::pair{2, 1}, {4, 1}, {2, 2}, {4, 4}}) {
        for (const int64_t dp : {1, 2, 3}) {
          for (const int64_t zero : {0, 1, 2, 3}) {
            for (const int64_t pp : {1, 2}) {
              Strategy strategy = strategy_of(kind, cp, dp, zero, pp, tp);
              strategy.recompute.assign(spec.parts.size(), recompute);
              SCOPED_TRACE(describe(strategy.parallel));
              const std::vector<Program> programs = programs_of(spec, strategy);
              std::vector<std::vector<double>> durations;
              for (const Program& program : programs) {
                expect_sound(spec, program);
                durations.emplace_back(program.instructions.size(), 1.0);
              }
              WorldOptions options;
              options.tiers = {{0, 0.0, 1e3}};
              EXPECT_GT(simulate_world(spec, programs, durations, options).step_s, 0.0);
            }
          }
        }
      }
    }
  }
}

TEST(ContextParts, RanksThatSpreadExpertsTooAreSoundAndEnd) {
  model::ModelSpec spec = model::spec_from_config(
      R"({"model_type":"mixtral","vocab_size":64,"hidden_size":32,"intermediate_size":48,"num_hidden_layers":2,
          "num_attention_heads":4,"num_key_value_heads":4,"num_local_experts":8,"num_experts_per_tok":2,
          "max_position_embeddings":64})",
      "test");
  for (model::LayerSpec& layer : spec.layers) layer.moe->aux_loss = 0.0;
  for (const ContextKind kind : {ContextKind::kGather, ContextKind::kRing}) {
    for (const auto& [cp, dp, ep] :
         {std::tuple{2, 1, 2}, {2, 2, 2}, {2, 2, 4}, {4, 1, 2}, {4, 2, 8}, {2, 4, 4}}) {
      for (const int64_t zero : {0, 1, 2, 3}) {
        for (const int64_t in_turn : {1, 2}) {
          Strategy strategy = strategy_of(kind, cp, dp, zero, 1);
          strategy.parallel.ep = ep;
          strategy.in_turn = in_turn;
          SCOPED_TRACE(describe(strategy.parallel));
          const std::vector<Program> programs = programs_of(spec, strategy);
          std::vector<std::vector<double>> durations;
          int64_t accumulators = 0;
          for (const Program& program : programs) {
            expect_sound(spec, program);
            durations.emplace_back(program.instructions.size(), 1.0);
            for (const Instruction& instruction : program.instructions) {
              if (instruction.kind == OpKind::kBackwardWeight && program.spreads(instruction.part))
                ++accumulators;
            }
          }
          // Everybody's experts see every leaf's micro-batches of their group, once a layer.
          EXPECT_EQ(accumulators, 2 * ep * strategy.micro_batches() * cp);
          WorldOptions options;
          options.tiers = {{0, 0.0, 1e3}};
          EXPECT_GT(simulate_world(spec, programs, durations, options).step_s, 0.0);
        }
      }
    }
  }
}

// With nothing but attention to compute: a round of keys takes 0.9 of a round of attention, and so do gradients.
TEST(ContextParts, ARingIsAsLongAsItsAttentionAndTheLastGradients) {
  constexpr int kLayers = 3;
  const model::ModelSpec spec = layers(kLayers);
  for (const int64_t cp : {2, 4, 8}) {
    Strategy strategy = strategy_of(ContextKind::kRing, cp, 1, 0, 1);
    strategy.lanes = strategy.sequences = 1;
    const std::vector<Program> programs = programs_of(spec, strategy);
    std::vector<std::vector<double>> durations;
    for (const Program& program : programs) {
      std::vector<double>& of_rank = durations.emplace_back();
      for (const Instruction& instruction : program.instructions) {
        const bool attends = (instruction.kind == OpKind::kForward && instruction.phase >= 2) ||
                             (instruction.kind == OpKind::kBackwardInput &&
                              instruction.phase >= 1 && instruction.phase <= cp);
        of_rank.push_back(attends ? 1.0 : 0.0);
      }
    }
    WorldOptions options;
    options.tiers = {{0, 0.0, 1.0}};
    options.transfer = [](const Program&, const Instruction& instruction) {
      TransferCost cost;
      cost.seconds = instruction.kind == OpKind::kExchangeContext ? 0.9 : 0.0;
      return cost;
    };
    const double attention = 2.0 * static_cast<double>(cp);
    // Keys and gradients share the links of one queue: in the backward every round after the first has both.
    const double step = simulate_world(spec, programs, durations, options).step_s;
    EXPECT_GE(step, kLayers * (attention + 0.9) - 1e-9);
    const double both = 0.8 * static_cast<double>(std::max<int64_t>(cp - 2, 0));
    EXPECT_LE(step, kLayers * (attention + 0.9 + both + 0.9) + 1e-9) << "cp " << cp;
  }
}

}  // namespace
}  // namespace trireme::plan
