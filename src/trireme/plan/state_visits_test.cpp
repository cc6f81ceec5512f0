// Optimizer states that visit the device: where they are in a program, what that holds, and what of it copies hide.
#include "trireme/plan/state_visits.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "trireme/model/moe_test_configs.h"
#include "trireme/plan/instruction_names.h"
#include "trireme/plan/memory.h"
#include "trireme/plan/simulate.h"
#include "trireme/plan/trace_analysis.h"

namespace trireme::plan {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

/// A model of `layers` layers, wider than its vocabulary is long.
model::ModelSpec llama(int layers, int hidden = 16, int vocab = 40) {
  return model::spec_from_config(
      fmt::format(
          R"({{"model_type": "llama", "vocab_size": {}, "hidden_size": {}, "intermediate_size": {},
          "num_hidden_layers": {}, "num_attention_heads": 4, "num_key_value_heads": 2,
          "max_position_embeddings": 8192, "tie_word_embeddings": false}})",
          vocab, hidden, 3 * hidden, layers),
      "test");
}

Strategy on_host(int64_t sequences, int64_t micro, int64_t seq_len) {
  Strategy strategy;
  strategy.sequences = sequences;
  strategy.micro = micro;
  strategy.seq_len = seq_len;
  strategy.offload_optimizer = true;
  return strategy;
}

const Instruction& named(const model::ModelSpec& spec, const Program& program,
                         const std::string& name) {
  return program.instructions[static_cast<size_t>(id_of(spec, program, name))];
}

/// The program without its states' visits, and the peak that it has with two parts' states at a time: those of the part
/// that is stepped and of the next one.
int64_t peak_with_two_parts(const model::ModelSpec& spec, Strategy strategy) {
  strategy.offload_optimizer = false;
  const Program plain = build_program(spec, strategy);
  const Simulation simulation = simulate_in_issue_order(plain);
  const auto states = [&](int part) { return optimizer_state_bytes(spec, strategy, part); };
  std::vector<int> steps;
  int64_t all = 0;
  for (const Instruction& instruction : plain.instructions) {
    if (instruction.kind != OpKind::kOptimizerStep) continue;
    steps.push_back(instruction.id);
    all += states(instruction.part);
  }
  int64_t peak = simulation.peak_bytes - all;
  for (size_t i = 0; i < steps.size(); ++i) {
    const auto part = [&](size_t index) {
      return plain.instructions[static_cast<size_t>(steps[index])].part;
    };
    const int64_t two = states(part(i)) + (i + 1 < steps.size() ? states(part(i + 1)) : 0);
    peak = std::max(peak,
                    simulation.instructions[static_cast<size_t>(steps[i])].peak_bytes - all + two);
  }
  return peak;
}

TEST(StateVisits, NeverHoldMoreThanTwoPartsAtATimeWould) {
  std::mt19937 random(8);
  const std::vector<const char*> moe = {"deepseek_v3", "qwen2_moe", "gpt_oss"};
  int with_visits_ahead = 0;
  int with_visits_left = 0;
  for (int round = 0; round < 80; ++round) {
    const model::ModelSpec spec =
        random() % 3 == 0
            ? model::spec_from_config(model::tiny_moe(moe[random() % moe.size()]).dump(), "test")
            : llama(1 + static_cast<int>(random() % 5), 16, 20 + static_cast<int>(random() % 400));
    Strategy strategy = on_host(1, 1, 4 << (random() % 5));
    strategy.micro = 1 + static_cast<int64_t>(random() % 2);
    strategy.lanes = int64_t{1} << (random() % 3);
    strategy.sequences = strategy.micro * strategy.lanes * (1 + static_cast<int64_t>(random() % 2));
    strategy.delay_weight_gradients = random() % 2 == 0;
    strategy.recompute.assign(spec.parts.size(), static_cast<Recompute>(random() % 3));
    if (random() % 2 == 0) strategy.offload_activations = offload_from_names(spec, {"all"});
    SCOPED_TRACE(fmt::format("round {}, {}, {} tokens", round, spec.family, strategy.seq_len));
    const Program program = build_program(spec, strategy);
    const int64_t most = peak_with_two_parts(spec, strategy);
    EXPECT_LE(simulate_in_issue_order(program).peak_bytes, most);
    EXPECT_EQ(program.host_resident_bytes, 8 * spec.num_parameters());
    bool before_norm = true;
    for (const Instruction& instruction : program.instructions) {
      if (instruction.kind == OpKind::kGradNorm) before_norm = false;
      if (instruction.kind == OpKind::kReload && instruction.micro_batch < 0)
        with_visits_ahead += before_norm;
    }
    with_visits_left += !parts_carried_in(program).empty();
  }
  EXPECT_GT(with_visits_ahead, 80);
  EXPECT_GT(with_visits_left, 10);
}

// Activations are larger than all states together: these are there when the norm is known, and go while the next step's
// forward runs.
TEST(StateVisits, UseTheRoomThatActivationsLeave) {
  const model::ModelSpec spec = llama(2);
  const Strategy strategy = on_host(4, 2, 256);
  const Program program = build_program(spec, strategy);
  std::vector<std::string> names = names_of(spec, program);
  names.erase(names.begin(), std::ranges::find(names, "grad-norm"));
  EXPECT_THAT(names, ElementsAre("grad-norm", "optimizer-step embedding", "offload embedding",
                                 "optimizer-step layer.0.attention", "offload layer.0.attention",
                                 "optimizer-step layer.0.mlp", "offload layer.0.mlp",
                                 "optimizer-step layer.1.attention", "offload layer.1.attention",
                                 "optimizer-step layer.1.mlp", "offload layer.1.mlp",
                                 "optimizer-step head", "offload head", "commit"));
  EXPECT_THAT(parts_carried_in(program), ElementsAre(0, 1, 2, 3, 4, 5));
  EXPECT_THAT(program.instructions.back().releases, IsEmpty());

  // Every part's come once in the last micro-batch, and those of the step before are given up before that.
  std::vector<int> came;
  std::vector<int> given_up;
  for (const Instruction& instruction : program.instructions) {
    for (const int id : instruction.releases) {
      const Buffer& buffer = program.buffers[static_cast<size_t>(id)];
      EXPECT_TRUE(buffer.is_carried_in());
      EXPECT_EQ(program.instructions[static_cast<size_t>(buffer.offloaded_by)].part, buffer.part);
      given_up.push_back(buffer.part);
    }
    if (instruction.kind != OpKind::kReload) continue;
    EXPECT_THAT(given_up, Contains(instruction.part));
    came.push_back(instruction.part);
  }
  EXPECT_THAT(came, ElementsAre(0, 1, 2, 3, 4, 5));
  EXPECT_THAT(given_up, ElementsAre(0, 1, 2, 3, 4, 5));
  const Instruction& step = named(spec, program, "optimizer-step layer.0.mlp");
  EXPECT_THAT(step.depends_on, Contains(named(spec, program, "reload layer.0.mlp").id));
  EXPECT_THAT(named(spec, program, "offload layer.0.mlp").depends_on, ElementsAre(step.id));
}

// Hardly any activations: there is room for two parts, so one comes and one goes while one is stepped, as they always
// did.
TEST(StateVisits, TakeTurnsWhereThereIsNoRoom) {
  const model::ModelSpec spec = llama(3, 64, 8);
  const Program program = build_program(spec, on_host(1, 1, 8));
  std::vector<std::string> names = names_of(spec, program);
  const auto reload = std::ranges::find(names, "reload layer.2.mlp");
  const auto step = std::ranges::find(names, "optimizer-step layer.1.mlp");
  ASSERT_NE(reload, names.end());
  EXPECT_GT(reload, step);
  // What comes takes the place of what went, whose copy it waits for.
  const Instruction& comes = named(spec, program, "reload layer.2.mlp");
  ASSERT_FALSE(comes.releases.empty());
  for (const int id : comes.releases)
    EXPECT_THAT(comes.depends_on, Contains(program.buffers[static_cast<size_t>(id)].offloaded_by));
}

// ---- What is hidden ------------------------------------------------------------------------------------------------

/// 990 TFLOP/s dense bfloat16 of which 60 % are reached in products (40 % in attention), 3.35 TB/s, 55 GB/s each way to the
/// host: an H100.
DeviceRates h100() {
  DeviceRates rates;
  rates.product_flops = 0.6 * 990e12;
  rates.attention_flops = 0.4 * 990e12;
  rates.memory_bytes = 3.35e12;
  rates.host_link_bytes = 55e9;
  return rates;
}

model::ModelSpec llama_8b() {
  return model::spec_from_config(
      R"({"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
          "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
          "max_position_embeddings": 8192, "tie_word_embeddings": false})",
      "test");
}

struct StepOf {
  Program program;
  Simulation simulation;
};

StepOf simulated(const model::ModelSpec& spec, const Strategy& strategy) {
  StepOf run{build_program(spec, strategy), {}};
  run.simulation = simulate(run.program, estimate_durations(spec, run.program, h100()));
  const TraceSummary summary = summarize(predicted_trace(spec, run.program, run.simulation));
  EXPECT_NEAR(summary.step_s, run.simulation.step_s, 1e-9);
  EXPECT_NEAR(summary.copy_s, run.simulation.copy_s, 1e-9);
  EXPECT_NEAR(summary.exposed_copy_s, run.simulation.exposed_copy_s, 1e-9);
  return run;
}

// What the activations of a micro-batch take is more than all states, and its backward longer than their way: all of it hides,
// and the step's peak is smaller by all states.
TEST(StateVisits, HideWhereActivationsTakeMoreThanStates) {
  const model::ModelSpec spec = llama_8b();
  Strategy strategy = on_host(32, 8, 4096);
  strategy.precision = Precision::kBf16;
  strategy.recompute = recompute_from_names(spec, {"selective"});
  const StepOf run = simulated(spec, strategy);
  strategy.offload_optimizer = false;
  const StepOf plain = simulated(spec, strategy);
  const double one_way_s = 8.0 * static_cast<double>(spec.num_parameters()) / 55e9;
  EXPECT_NEAR(run.simulation.copy_s, 2.0 * one_way_s, 0.02 * one_way_s);
  EXPECT_LE(run.simulation.exposed_copy_s, 0.1 * run.simulation.copy_s);
  EXPECT_NEAR(run.simulation.step_s / plain.simulation.step_s, 1.0, 0.002);
  EXPECT_NEAR(static_cast<double>(plain.simulation.peak_bytes - run.simulation.peak_bytes),
              8.0 * static_cast<double>(spec.num_parameters()), 1e9);
}

// With next to no activations, what there is no room for when the norm is known crosses the link after it, and no compute is
// there by then: copies take that long, and hardly longer.
TEST(StateVisits, TakeOneWayOverTheLinkWhereThereIsNoRoom) {
  const model::ModelSpec spec = llama_8b();
  Strategy strategy = on_host(16, 1, 4096);
  strategy.precision = Precision::kBf16;
  strategy.recompute = recompute_from_names(spec, {"full"});
  strategy.offload_activations = offload_from_names(spec, {"all"});
  const StepOf run = simulated(spec, strategy);
  strategy.offload_optimizer = false;
  const StepOf plain = simulated(spec, strategy);
  int64_t held = 0;
  for (const Instruction& instruction : run.program.instructions) {
    if (instruction.kind == OpKind::kGradNorm) {
      held = simulate_in_issue_order(plain.program)
                 .instructions[static_cast<size_t>(named(spec, plain.program, "grad-norm").id)]
                 .held_bytes_after;
    }
  }
  const int64_t states = 8 * spec.num_parameters();
  const int64_t room = run.simulation.peak_bytes - (held - states);
  const double least_s = static_cast<double>(states - room) / 55e9;
  const double longer_s = run.simulation.step_s - plain.simulation.step_s;
  EXPECT_GE(longer_s, 0.9 * least_s);  // steps are hidden, in part, by copies
  EXPECT_LE(longer_s, 1.15 * least_s);
  EXPECT_NEAR(run.simulation.exposed_copy_s, longer_s, 0.05 * longer_s);
}

}  // namespace
}  // namespace trireme::plan
