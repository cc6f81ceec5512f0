// Programs of tensor parallel ranks: what they send, what they wait for, and that all ranks mean the same.
#include "trireme/plan/tensor_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "trireme/plan/local_spec.h"
#include "trireme/plan/program_limits.h"
#include "trireme/plan/simulate_world.h"

namespace trireme::plan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int kLayers = 3;

model::ModelSpec llama(const std::string& more = "") {
  return model::spec_from_config(
      fmt::format(R"({{"model_type":"llama","vocab_size":64,"hidden_size":32,"intermediate_size":48,
          "num_hidden_layers":{},"num_attention_heads":4,"num_key_value_heads":2,
          "max_position_embeddings":64{}}})",
                  kLayers, more),
      "test");
}

Strategy strategy_of(int64_t tp) {
  Strategy strategy;
  strategy.sequences = 8;
  strategy.micro = 2;
  strategy.lanes = 4;
  strategy.seq_len = 16;
  strategy.parallel.tp = tp;
  return strategy;
}

std::vector<Program> programs_of(const model::ModelSpec& spec, const Strategy& strategy) {
  std::vector<Program> programs;
  for (int rank = 0; rank < strategy.parallel.world(); ++rank)
    programs.push_back(build_program(spec, strategy, rank));
  return programs;
}

std::map<OpKind, double> sent_by(const model::ModelSpec& spec, const Program& program) {
  std::map<OpKind, double> sent;
  for (const Instruction& instruction : program.instructions) {
    if (instruction.resource == Resource::kCommunication)
      sent[instruction.kind] += transfer_bytes(spec, program, instruction).sent;
  }
  return sent;
}

TEST(TensorWriter, SendsWhatTheoryNeeds) {
  const model::ModelSpec spec = llama();
  for (const int64_t tp : {2, 4}) {
    for (const Recompute recompute : {Recompute::kNone, Recompute::kSelective, Recompute::kFull}) {
      Strategy strategy = strategy_of(tp);
      strategy.recompute.assign(spec.parts.size(), recompute);
      const auto ranks = static_cast<double>(tp);
      // Of [N, d] in float32, all but a rank's own rows: each way once for attention, MLP, and at the model's ends.
      const double once = 4.0 * (2.0 * 16.0) * 32.0 * (ranks - 1.0) / ranks;
      const double each_way = 2.0 * 2.0 * kLayers + 2.0;
      const double again = recompute == Recompute::kNone ? 0.0 : 2.0 * kLayers;
      for (const Program& program : programs_of(spec, strategy)) {
        const std::map<OpKind, double> sent = sent_by(spec, program);
        EXPECT_EQ(sent.at(OpKind::kGatherTokens), 4.0 * (each_way + again) * once);
        EXPECT_EQ(sent.at(OpKind::kScatterSums), 4.0 * each_way * once);
        // Three floats a row of logits, to every other rank.
        EXPECT_EQ(sent.at(OpKind::kGatherRows), 4.0 * 32.0 * 12.0 * (ranks - 1.0));
      }
    }
  }
}

// Of the heads that a rank has, with the ranks of other places of the sequences; everything else is of its share of the tokens.
TEST(TensorWriter, SendsWhatTheoryNeedsWhereSequencesAreSharedToo) {
  const model::ModelSpec spec = llama();
  for (const ContextKind kind : {ContextKind::kGather, ContextKind::kRing}) {
    for (const auto& [tp, cp] : {std::pair{2, 2}, {4, 2}, {2, 4}}) {
      Strategy strategy = strategy_of(tp);
      strategy.parallel.cp = cp;
      strategy.parallel.cp_kind = kind;
      SCOPED_TRACE(describe(strategy.parallel));
      const double tokens = 2.0 * 16.0 / cp;
      const double once = 4.0 * tokens * 32.0 * (tp - 1.0) / tp;
      // Two heads of 8 features: on every rank one of them. To each other rank, forward and backward.
      const double keys = 4.0 * tokens * 2.0 * 8.0 * (cp - 1.0);
      double gradients = 0.0;
      for (const Program& program : programs_of(spec, strategy)) {
        const std::map<OpKind, double> sent = sent_by(spec, program);
        EXPECT_EQ(sent.at(OpKind::kGatherTokens), 4.0 * (4.0 * kLayers + 2.0) * once);
        EXPECT_EQ(sent.at(OpKind::kScatterSums), 4.0 * (4.0 * kLayers + 2.0) * once);
        gradients += sent.at(OpKind::kExchangeContext) - 4.0 * kLayers * 2.0 * keys;
      }
      // A key's gradients come from the ranks whose queries see it: of the pieces from the front all, of those from the back as many
      // as there are pieces behind. Of each pair of ranks one sends the other's second piece too.
      const double pieces = tp * (cp * (cp - 1.0) + cp * (cp - 1.0) / 2.0);
      EXPECT_EQ(gradients, 4.0 * kLayers * pieces * 4.0 * tokens / 2.0 * 2.0 * 8.0);
    }
  }
}

TEST(TensorWriter, AllRanksMeanTheSameTransfers) {
  const model::ModelSpec spec = llama(R"(,"tie_word_embeddings":false)");
  for (const auto& [tp, dp, pp, zero] : {std::tuple{2, 1, 1, 0},
                                         {4, 1, 1, 0},
                                         {2, 2, 1, 2},
                                         {2, 2, 1, 3},
                                         {2, 1, 2, 0},
                                         {2, 3, 2, 2},
                                         {4, 2, 1, 3}}) {
    Strategy strategy = strategy_of(tp);
    strategy.parallel.dp = dp;
    strategy.parallel.pp = pp;
    strategy.parallel.zero = zero;
    SCOPED_TRACE(describe(strategy.parallel));
    const std::vector<Program> programs = programs_of(spec, strategy);
    std::vector<std::vector<double>> durations;
    for (const Program& program : programs)
      durations.emplace_back(program.instructions.size(), 1e-3);
    EXPECT_NO_THROW(simulate_world(spec, programs, durations, WorldOptions{}));
  }
}

TEST(TensorWriter, WeightProductsLieBehindTheExchangeOfTheInputsGradient) {
  const model::ModelSpec spec = llama();
  const Program program = build_program(spec, strategy_of(2), 0);
  int found = 0;
  for (const Instruction& weight : program.instructions) {
    if (weight.kind != OpKind::kBackwardWeight || weight.part == 0) continue;
    const auto at = static_cast<size_t>(weight.id);
    const Instruction& before = program.instructions[at - 1];
    const Instruction& after = program.instructions[at + 1];
    EXPECT_EQ(before.kind, OpKind::kScatterSums);
    EXPECT_EQ(std::ranges::count(weight.depends_on, before.id), 0);
    EXPECT_EQ(after.kind, OpKind::kBackwardInput);
    EXPECT_EQ(after.phase, 3);
    EXPECT_EQ(std::ranges::count(after.depends_on, before.id), 1);
    ++found;
  }
  EXPECT_EQ(found, 4 * 2 * kLayers);
}

TEST(TensorWriter, WhatRanksHoldTogetherIsTheModelAndWhatTheyHoldAlike) {
  const model::ModelSpec spec = llama(R"(,"tie_word_embeddings":false)");
  for (const int64_t tp : {2, 4}) {
    int64_t together = 0;
    for (const Program& program : programs_of(spec, strategy_of(tp))) {
      const model::ModelSpec own = local_spec(spec, program.strategy.parallel, program.rank);
      together += resident_bytes(own, program.strategy, program).master_weights;
    }
    // Norms are on every rank, and with four ranks each key and value head is on two.
    int64_t alike = (2 * kLayers + 1) * 32 * (tp - 1);
    if (tp == 4) alike += kLayers * 2 * 16 * 32;
    EXPECT_EQ(together, 4 * (spec.num_parameters() + alike));
  }
}

TEST(TensorWriter, WhatThereIsNoProgramForIsRefusedByName) {
  const auto limits = [](const model::ModelSpec& spec, const auto& change) {
    Strategy strategy = strategy_of(2);
    change(strategy);
    return program_limits(spec, strategy);
  };
  const auto nothing = [](Strategy&) {};
  EXPECT_THAT(limits(llama(), nothing), IsEmpty());
  EXPECT_THAT(limits(llama(), [](Strategy& s) { s.parallel.cp = 2; }), IsEmpty());
  EXPECT_THAT(limits(llama(), [](Strategy& s) { s.whole_matrices = true; }),
              ElementsAre(HasSubstr("Muon")));
  EXPECT_THAT(limits(llama(), [](Strategy& s) { s.record = true; }),
              ElementsAre(HasSubstr("device.graphs = false")));
  EXPECT_THAT(limits(llama(), [](Strategy& s) { s.offload_activations = {0, 1, 0}; }),
              ElementsAre(HasSubstr("memory.offload_activations")));
  EXPECT_THAT(limits(llama(), [](Strategy& s) { s.offload_activations = {0, 0, 0}; }), IsEmpty());
  const model::ModelSpec tied = llama(R"(,"tie_word_embeddings":true)");
  EXPECT_THAT(limits(llama(), [](Strategy& s) { s.in_turn = 2; }), IsEmpty());
  EXPECT_THAT(limits(tied, [](Strategy& s) { s.in_turn = 2; }), IsEmpty());
  EXPECT_THAT(limits(tied,
                     [](Strategy& s) {
                       s.in_turn = 2;
                       s.lanes = 2;
                     }),
              ElementsAre(HasSubstr("batch.lanes = 4")));
  EXPECT_THAT(limits(llama(),
                     [](Strategy& s) {
                       s.in_turn = 2;
                       s.delay_weight_gradients = true;
                     }),
              ElementsAre(HasSubstr("memory.delay_weight_gradients = false")));
  EXPECT_THAT(limits(llama(), [](Strategy& s) { s.in_turn = 3; }),
              ElementsAre(HasSubstr("1, 2 or 4")));
  const model::ModelSpec olmo = model::spec_from_config(
      R"({"model_type":"olmo2","vocab_size":64,"hidden_size":32,"intermediate_size":48,"num_hidden_layers":1,
          "num_attention_heads":4,"num_key_value_heads":4,"max_position_embeddings":64})",
      "test");
  EXPECT_THAT(limits(olmo, nothing), ElementsAre(HasSubstr("norm over all heads together")));
  const model::ModelSpec experts = model::spec_from_config(
      R"({"model_type":"mixtral","vocab_size":64,"hidden_size":32,"intermediate_size":48,"num_hidden_layers":1,
          "num_attention_heads":4,"num_key_value_heads":2,"num_local_experts":4,"num_experts_per_tok":2,
          "max_position_embeddings":64})",
      "test");
  EXPECT_THAT(limits(experts, nothing), ElementsAre(HasSubstr("experts")));
}

}  // namespace
}  // namespace trireme::plan
