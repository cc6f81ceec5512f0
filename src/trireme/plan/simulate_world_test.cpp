#include "trireme/plan/simulate_world.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trireme/base/error.h"

namespace trireme::plan {
namespace {

using ::testing::HasSubstr;

model::ModelSpec tiny() {
  return model::spec_from_config(R"({"model_type": "llama", "vocab_size": 16, "hidden_size": 16,
      "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
      "num_key_value_heads": 2, "max_position_embeddings": 64})",
                                 "test");
}

// Programs by hand: two ranks, each computes, sends to the other and receives.
Instruction instruction(int id, OpKind kind, Resource resource, std::vector<int> depends_on) {
  Instruction made;
  made.id = id;
  made.kind = kind;
  made.resource = resource;
  made.depends_on = std::move(depends_on);
  return made;
}

Instruction transfer(int id, OpKind kind, int peer, int part, std::vector<int> depends_on) {
  Instruction made = instruction(id, kind, Resource::kCommunication, std::move(depends_on));
  made.group = 0;
  made.peer = peer;
  made.part = part;
  made.micro_batch = 0;
  (kind == OpKind::kSend ? made.uses : made.makes) = {0};
  return made;
}

Program program_of(int rank, std::vector<Instruction> instructions, int64_t bytes) {
  Program program;
  program.rank = rank;
  program.groups = {{0, 1}};
  program.instructions = std::move(instructions);
  program.buffers.push_back({0, BufferKind::kHidden, 0, 0, -1, bytes, 0, -1});
  return program;
}

Instruction compute(int id, std::vector<int> depends_on = {}) {
  return instruction(id, OpKind::kForward, Resource::kCompute, std::move(depends_on));
}

TEST(SimulateWorld, ATransferBeginsWhenBothAreThere) {
  // Rank 0 computes 2 s, sends 100 bytes, computes 5 s; rank 1 receives and then computes 1 s.
  const std::vector<Program> programs = {
      program_of(0, {compute(0), transfer(1, OpKind::kSend, 1, 0, {0}), compute(2)}, 100),
      program_of(1, {transfer(0, OpKind::kReceive, 0, 0, {}), compute(1, {0})}, 100)};
  WorldOptions options;
  options.tiers = {{0, 0.5, 50.0}};
  const WorldSimulation world =
      simulate_world(tiny(), programs, {{2.0, 0.0, 5.0}, {0.0, 1.0}}, options);
  EXPECT_EQ(world.ranks[0].simulation.instructions[1].start_s, 2.0);
  EXPECT_EQ(world.ranks[0].simulation.instructions[1].end_s, 4.5);
  EXPECT_EQ(world.ranks[1].simulation.instructions[0].start_s, 2.0);
  EXPECT_EQ(world.ranks[1].simulation.instructions[1].end_s, 5.5);
  EXPECT_EQ(world.step_s, 7.0);
  // Hidden behind rank 0's compute, exposed on rank 1.
  EXPECT_EQ(world.ranks[0].communication.total_s, 2.5);
  EXPECT_EQ(world.ranks[0].communication.exposed_s, 0.0);
  EXPECT_EQ(world.ranks[0].communication.bytes, 100.0);
  EXPECT_EQ(world.ranks[1].communication.exposed_s, 2.5);
  EXPECT_EQ(world.ranks[1].by_kind.at(OpKind::kReceive).total_s, 2.5);
  EXPECT_EQ(world.hidden_comm_share, 0.5);
  EXPECT_NEAR(world.ranks[1].bubble_share, 6.0 / 7.0, 1e-12);
  ASSERT_EQ(world.critical_path.size(), 2);
  EXPECT_EQ(world.critical_path[1].rank, 0);
  EXPECT_EQ(world.critical_path[1].instruction, 2);
}

TEST(SimulateWorld, TheCriticalPathGoesFromRankToRank) {
  const std::vector<Program> programs = {
      program_of(0, {compute(0), transfer(1, OpKind::kSend, 1, 0, {0})}, 100),
      program_of(1, {transfer(0, OpKind::kReceive, 0, 0, {}), compute(1, {0})}, 100)};
  const WorldSimulation world = simulate_world(tiny(), programs, {{2.0, 0.0}, {0.0, 1.0}}, {});
  ASSERT_EQ(world.critical_path.size(), 3);
  EXPECT_EQ(world.critical_path[0].rank, 0);
  EXPECT_EQ(world.critical_path[1].rank, 1);
  EXPECT_EQ(world.critical_path[2].rank, 1);
}

TEST(SimulateWorld, AHostThatComputesIssuesTransfersInTurn) {
  // The send needs nothing of the second computation, and waits for it if that runs in the host's thread.
  const std::vector<Program> programs = {
      program_of(0, {compute(0), compute(1), transfer(2, OpKind::kSend, 1, 0, {0})}, 100),
      program_of(1, {transfer(0, OpKind::kReceive, 0, 0, {})}, 100)};
  WorldOptions options;
  options.tiers = {{0, 0.0, 1e30}};
  const std::vector<std::vector<double>> durations = {{1.0, 3.0, 0.0}, {0.0}};
  EXPECT_EQ(simulate_world(tiny(), programs, durations, options)
                .ranks[0]
                .simulation.instructions[2]
                .start_s,
            1.0);
  options.host_computes = true;
  EXPECT_EQ(simulate_world(tiny(), programs, durations, options)
                .ranks[0]
                .simulation.instructions[2]
                .start_s,
            4.0);
}

TEST(SimulateWorld, InnerLinksServeBlocksOfRanks) {
  const model::ModelSpec spec = tiny();
  Strategy strategy;
  strategy.lanes = 4;
  strategy.sequences = 4;
  strategy.seq_len = 8;
  strategy.parallel.dp = 2;
  strategy.parallel.pp = 2;
  strategy.parallel.zero = 1;
  std::vector<Program> programs;
  std::vector<std::vector<double>> durations;
  for (int rank = 0; rank < 4; ++rank) {
    programs.push_back(build_program(spec, strategy, rank));
    durations.emplace_back(programs.back().instructions.size(), 0.0);
  }
  // Data parallel pairs are inside a node, pipelines across: every message takes the outer link's latency.
  WorldOptions options;
  options.tiers = {{2, 0.0, 1e30}, {0, 7.0, 1e30}};
  const WorldSimulation world = simulate_world(spec, programs, durations, options);
  for (size_t rank = 0; rank < 4; ++rank) {
    for (const Instruction& i : programs[rank].instructions) {
      if (i.resource != Resource::kCommunication) continue;
      const SimulatedInstruction& timing =
          world.ranks[rank].simulation.instructions[static_cast<size_t>(i.id)];
      const bool inside = i.kind == OpKind::kReduceGradients || i.kind == OpKind::kGatherParameters;
      EXPECT_NEAR(timing.end_s - timing.start_s, inside ? 0.0 : 7.0, 1e-9) << describe(spec, i);
    }
    EXPECT_EQ(world.ranks[rank].simulation.compute_busy_s, 0.0);
    EXPECT_EQ(world.ranks[rank].bubble_share, 1.0);
  }
  EXPECT_EQ(world.hidden_comm_share, 0.0);
}

TEST(SimulateWorld, RanksThatWaitForEverAreNamed) {
  const auto error_of = [](const std::vector<Program>& programs) -> std::string {
    std::vector<std::vector<double>> durations;
    for (const Program& program : programs)
      durations.emplace_back(program.instructions.size(), 1.0);
    try {
      simulate_world(tiny(), programs, durations, {});
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  // Both want to receive before they send.
  EXPECT_THAT(
      error_of(
          {program_of(
               0, {transfer(0, OpKind::kReceive, 1, 1, {}), transfer(1, OpKind::kSend, 1, 2, {0})},
               8),
           program_of(
               1, {transfer(0, OpKind::kReceive, 0, 2, {}), transfer(1, OpKind::kSend, 0, 1, {0})},
               8)}),
      HasSubstr("rank 0 at receive layer.0.attention micro-batch 0"));
  // What one sends is not what the other expects.
  EXPECT_THAT(error_of({program_of(0, {transfer(0, OpKind::kSend, 1, 1, {})}, 8),
                        program_of(1, {transfer(0, OpKind::kReceive, 0, 2, {})}, 8)}),
              HasSubstr("rank 1 with receive layer.0.mlp"));
}

}  // namespace
}  // namespace trireme::plan
