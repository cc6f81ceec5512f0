#include "trireme/plan/simulate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "trireme/base/error.h"
#include "trireme/plan/local_spec.h"

namespace trireme::plan {
namespace {

using ::testing::ElementsAre;

Instruction instruction_of(int id, Resource resource, std::vector<int> depends_on) {
  Instruction instruction;
  instruction.id = id;
  instruction.kind = OpKind::kForward;
  instruction.resource = resource;
  instruction.depends_on = std::move(depends_on);
  return instruction;
}

void add_buffer(Program& program, int64_t bytes, int made_by, int freed_after) {
  const int id = static_cast<int>(program.buffers.size());
  program.buffers.push_back({id, BufferKind::kHidden, -1, -1, -1, bytes, made_by, freed_after});
  program.instructions[static_cast<size_t>(made_by)].makes.push_back(id);
  if (freed_after >= 0) program.instructions[static_cast<size_t>(freed_after)].frees.push_back(id);
}

TEST(Simulate, OverlapsQueuesAndFollowsDependencies) {
  // host:    0 [0,3)   1 [3,6)            4 [8,9)
  // compute:           2 [3,5)  3 [6,8)
  Program program;
  program.resident_bytes = 1000;
  program.instructions = {
      instruction_of(0, Resource::kHost, {}), instruction_of(1, Resource::kHost, {}),
      instruction_of(2, Resource::kCompute, {0}), instruction_of(3, Resource::kCompute, {1}),
      instruction_of(4, Resource::kHost, {3})};
  add_buffer(program, 10, 0, 2);
  add_buffer(program, 20, 1, 3);
  add_buffer(program, 5, 2, 4);
  add_buffer(program, 7, 3, -1);
  program.instructions[2].workspace_bytes = 100;
  const Simulation result = simulate(program, {3, 3, 2, 2, 1});

  EXPECT_EQ(result.step_s, 9.0);
  EXPECT_EQ(result.instructions[2].start_s, 3.0);
  EXPECT_EQ(result.instructions[3].start_s, 6.0);
  EXPECT_EQ(result.instructions[4].end_s, 9.0);
  EXPECT_EQ(result.compute_busy_s, 4.0);
  EXPECT_THAT(result.critical_path, ElementsAre(0, 1, 3, 4));
  // At 3: buffers 0 and 1, and 2 with the workspace of instruction 2.
  EXPECT_EQ(result.peak_bytes, 1000 + 10 + 20 + 5 + 100);
  EXPECT_EQ(result.peak_instruction, 2);
  EXPECT_EQ(result.instructions[2].held_bytes_after, 1000 + 20 + 5);
  EXPECT_EQ(result.instructions[3].peak_bytes, 1000 + 20 + 5 + 7);
  EXPECT_EQ(result.instructions[4].held_bytes_after, 1000 + 7);
  EXPECT_EQ(result.memory.back().bytes, 1000 + 7);
  int64_t highest = 0;
  for (size_t i = 0; i < result.memory.size(); ++i) {
    highest = std::max(highest, result.memory[i].bytes);
    EXPECT_TRUE(i == 0 || result.memory[i].time_s >= result.memory[i - 1].time_s);
  }
  EXPECT_EQ(highest, result.peak_bytes);
}

/// first (3 s); second (2 s), which gives up what the step before copied out; step (3 s); offload (4 s), which may run on;
/// last (`last_s`).
Simulation step_that_runs_on(double last_s) {
  Program program;
  program.instructions = {
      instruction_of(0, Resource::kCompute, {}), instruction_of(1, Resource::kCompute, {0}),
      instruction_of(2, Resource::kCompute, {1}), instruction_of(3, Resource::kCopyOut, {2}),
      instruction_of(4, Resource::kCompute, {2})};
  program.instructions[3].kind = OpKind::kOffload;
  program.instructions[3].moves = {0};
  program.instructions[1].releases = {1};
  for (int id = 0; id < 2; ++id)
    program.buffers.push_back({id, BufferKind::kOptimizerState, 0, -1, -1, 100, -1, -1});
  program.buffers[0].made_by = 2;
  program.instructions[2].makes = {0};
  program.buffers[0].offloaded_by = program.buffers[1].offloaded_by = 3;
  program.buffers[1].released_before = program.buffers[1].freed_after = 1;
  return simulate(program, {3, 2, 3, 4, last_s});
}

TEST(Simulate, CopiesRunOnIntoTheNextStep) {
  // compute: 0 [0,3)  1 [4,6)  2 [6,9); offload [9,13), which the next step has until 4.
  const Simulation waits = step_that_runs_on(0.0);
  EXPECT_EQ(waits.step_s, 9.0);
  EXPECT_EQ(waits.instructions[1].start_s, 4.0);
  EXPECT_EQ(waits.instructions[3].end_s, 13.0);
  EXPECT_EQ(waits.copy_s, 4.0);
  EXPECT_EQ(waits.exposed_copy_s, 1.0);
  EXPECT_EQ(waits.memory.front().bytes, 100);
  EXPECT_EQ(waits.memory.back().bytes, 100);
  EXPECT_EQ(waits.peak_bytes, 100);
  // compute: 0 [0,3)  1 [3,5)  2 [5,8)  4 [8,10); offload [8,12): half of it in each step.
  const Simulation hides = step_that_runs_on(2.0);
  EXPECT_EQ(hides.step_s, 10.0);
  EXPECT_EQ(hides.copy_s, 4.0);
  EXPECT_EQ(hides.exposed_copy_s, 0.0);
}

TEST(Simulate, AQueueRunsInOrder) {
  // Instruction 1 could start at once but stands behind 0 in the queue, which waits for the host.
  Program program;
  program.instructions = {instruction_of(0, Resource::kHost, {}),
                          instruction_of(1, Resource::kCompute, {0}),
                          instruction_of(2, Resource::kCompute, {})};
  const Simulation result = simulate(program, {5, 1, 1});
  EXPECT_EQ(result.instructions[2].start_s, 6.0);
  EXPECT_THAT(result.critical_path, ElementsAre(0, 1, 2));
}

TEST(Simulate, AgreesWithTheLongestPathOnRandomPrograms) {
  std::mt19937 random(5);
  for (int round = 0; round < 200; ++round) {
    const int count = 1 + static_cast<int>(random() % 40);
    Program program;
    std::vector<double> durations;
    for (int i = 0; i < count; ++i) {
      std::vector<int> depends_on;
      for (int j = 0; j < i; ++j) {
        if (random() % 6 == 0) depends_on.push_back(j);
      }
      program.instructions.push_back(
          instruction_of(i, random() % 2 == 0 ? Resource::kHost : Resource::kCompute, depends_on));
      durations.push_back(static_cast<double>(random() % 8));
    }
    // Longest path by relaxing every edge until nothing changes: queues are edges as well.
    std::vector<std::pair<int, int>> edges;
    for (int i = 0; i < count; ++i) {
      for (const int j : program.instructions[static_cast<size_t>(i)].depends_on)
        edges.emplace_back(j, i);
      for (int j = 0; j < i; ++j) {
        const bool same = program.instructions[static_cast<size_t>(i)].resource ==
                          program.instructions[static_cast<size_t>(j)].resource;
        if (same) edges.emplace_back(j, i);
      }
    }
    std::vector<double> start(static_cast<size_t>(count), 0.0);
    for (bool changed = true; changed;) {
      changed = false;
      for (const auto& [from, to] : edges) {
        const double end = start[static_cast<size_t>(from)] + durations[static_cast<size_t>(from)];
        if (end > start[static_cast<size_t>(to)]) {
          start[static_cast<size_t>(to)] = end;
          changed = true;
        }
      }
    }
    const Simulation result = simulate(program, durations);
    double longest = 0.0;
    for (int i = 0; i < count; ++i) {
      const auto at = static_cast<size_t>(i);
      EXPECT_EQ(result.instructions[at].start_s, start[at]);
      longest = std::max(longest, start[at] + durations[at]);
    }
    EXPECT_EQ(result.step_s, longest);
    // The critical path is a chain that fills the step without a gap.
    double sum = 0.0;
    for (const int id : result.critical_path) sum += durations[static_cast<size_t>(id)];
    EXPECT_EQ(sum, longest);
  }
}

TEST(Simulate, MemoryAgreesWithAPlainWalkOnOneQueue) {
  // With everything in one queue, memory is the running sum in issue order.
  const model::ModelSpec spec = model::spec_from_preset("llama-11m");
  for (const char* recompute : {"none", "selective", "full"}) {
    Strategy strategy;
    strategy.sequences = 8;
    strategy.micro = 2;
    strategy.lanes = 2;
    strategy.seq_len = 64;
    strategy.recompute = recompute_from_names(spec, {recompute});
    Program program = build_program(spec, strategy);
    const Simulation in_order = simulate_in_issue_order(program);
    for (Instruction& instruction : program.instructions) instruction.resource = Resource::kCompute;
    int64_t held = program.resident_bytes;
    int64_t peak = held;
    for (const Instruction& instruction : program.instructions) {
      for (const int id : instruction.makes) held += program.buffers[static_cast<size_t>(id)].bytes;
      const auto& simulated = in_order.instructions[static_cast<size_t>(instruction.id)];
      EXPECT_EQ(simulated.peak_bytes, held + instruction.workspace_bytes);
      peak = std::max(peak, held + instruction.workspace_bytes);
      for (const int id : instruction.frees) held -= program.buffers[static_cast<size_t>(id)].bytes;
      EXPECT_EQ(simulated.held_bytes_after, held);
    }
    EXPECT_EQ(in_order.peak_bytes, peak);
    EXPECT_EQ(held, program.resident_bytes);
    const std::vector<double> durations(program.instructions.size(), 1.0);
    EXPECT_EQ(simulate(program, durations).peak_bytes, peak);
    const std::vector<double> nothing(program.instructions.size(), 0.0);
    EXPECT_EQ(simulate(program, nothing).peak_bytes, peak);
  }
}

TEST(Simulate, RecomputationTradesMemoryForTime) {
  const model::ModelSpec spec = model::spec_from_preset("llama-110m");
  Strategy strategy;
  strategy.sequences = 4;
  strategy.micro = 4;
  strategy.seq_len = 1024;
  int64_t last_peak = INT64_MAX;
  double last_step = 0.0;
  for (const char* recompute : {"none", "selective", "full"}) {
    strategy.recompute = recompute_from_names(spec, {recompute});
    const Program program = build_program(spec, strategy);
    DeviceRates rates;
    rates.memory_bytes = 1e30;  // products alone
    const Simulation result = simulate(program, estimate_durations(spec, program, rates));
    EXPECT_LT(result.peak_bytes, last_peak) << recompute;
    EXPECT_GE(result.step_s, last_step * (1 - 1e-9)) << recompute;
    last_peak = result.peak_bytes;
    last_step = result.step_s;
  }
}

TEST(Simulate, EstimateChargesProductsAndAttention) {
  const model::ModelSpec spec = model::spec_from_preset("llama-11m");
  Strategy strategy;
  strategy.sequences = 1;
  strategy.seq_len = 256;
  const Program program = build_program(spec, strategy);
  DeviceRates rates;
  rates.product_flops = 1e9;
  rates.attention_flops = 1e6;
  rates.memory_bytes = 1e30;
  rates.instruction_s = 0.0;
  const std::vector<double> durations = estimate_durations(spec, program, rates);
  for (const Instruction& instruction : program.instructions) {
    if (instruction.kind == OpKind::kForward && instruction.part == 1) {
      // 4 d^2 products, 2 T a of attention a token, d = a = 384, T = 256.
      const double expected = 256 * (2.0 * 4 * 384 * 384 / 1e9 + 2.0 * 256 * 384 / 1e6);
      EXPECT_NEAR(durations[static_cast<size_t>(instruction.id)] / expected, 1.0, 1e-9);
    }
  }
}

// However many instructions an attention is cut in, they are together its share of the work.
TEST(Simulate, EstimateChargesTheShareOfRanksThatHaveAnAttentionBetweenThem) {
  const model::ModelSpec spec = model::spec_from_preset("llama-11m");
  DeviceRates rates;
  rates.product_flops = 1e9;
  rates.attention_flops = 1e6;
  rates.memory_bytes = rates.network_bytes = 1e30;
  rates.instruction_s = 0.0;
  for (const ContextKind kind : {ContextKind::kGather, ContextKind::kRing}) {
    for (const auto& [tp, cp] : {std::pair{1, 1}, {2, 1}, {1, 4}, {2, 2}, {2, 4}}) {
      Strategy strategy;
      strategy.seq_len = 256;
      strategy.parallel.tp = tp;
      strategy.parallel.cp = cp;
      strategy.parallel.cp_kind = kind;
      SCOPED_TRACE(describe(strategy.parallel));
      const Program program = build_program(spec, strategy);
      for (const model::ModelSpec& seen : {spec, local_spec(spec, strategy.parallel, 0)}) {
        const std::vector<double> durations = estimate_durations(seen, program, rates);
        double forward = 0.0;
        double backward = 0.0;
        for (const Instruction& instruction : program.instructions) {
          const double seconds = durations[static_cast<size_t>(instruction.id)];
          if (instruction.part != 1) continue;
          if (instruction.kind == OpKind::kForward) forward += seconds;
          if (instruction.kind == OpKind::kBackwardInput) backward += seconds;
        }
        const double tokens = 256.0 / tp / cp;
        const double products = tokens * 2.0 * 4 * 384 * 384 / 1e9;
        const double attention = tokens * 2.0 * 256 * 384 / 1e6;
        EXPECT_NEAR(forward / (products + attention), 1.0, 1e-9);
        EXPECT_NEAR(backward / (products + 2.0 * attention), 1.0, 1e-9);
      }
    }
  }
}

TEST(Simulate, RefusesWrongDurations) {
  const model::ModelSpec spec = model::spec_from_preset("llama-11m");
  Strategy strategy;
  strategy.seq_len = 8;
  const Program program = build_program(spec, strategy);
  EXPECT_THROW(simulate(program, {}), Error);
  EXPECT_THROW(simulate(program, std::vector<double>(program.instructions.size(), -1.0)), Error);
}

}  // namespace
}  // namespace trireme::plan
