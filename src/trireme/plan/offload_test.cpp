#include "trireme/plan/offload.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>

#include "trireme/base/error.h"
#include "trireme/model/moe_test_configs.h"
#include "trireme/model/mtp_test_specs.h"
#include "trireme/plan/instruction_names.h"
#include "trireme/plan/memory.h"
#include "trireme/plan/refused_names.h"
#include "trireme/plan/simulate.h"
#include "trireme/plan/trace_analysis.h"

namespace trireme::plan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Parts: 0 embedding, 1 and 2 layer.0, 3 and 4 layer.1, 5 and 6 layer.2, 7 and 8 layer.3, 9 head.
model::ModelSpec four_layers() {
  return model::spec_from_config(
      R"({"model_type": "llama", "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24,
          "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
          "max_position_embeddings": 64, "tie_word_embeddings": false})",
      "test");
}

Strategy one_micro_batch(const model::ModelSpec& spec, const std::vector<std::string>& offload) {
  Strategy strategy;
  strategy.sequences = 2;
  strategy.micro = 2;
  strategy.seq_len = 8;
  strategy.offload_activations = offload_from_names(spec, offload);
  return strategy;
}

TEST(Offload, StandsInTheProgramByHand) {
  const model::ModelSpec spec = four_layers();
  Strategy strategy = one_micro_batch(spec, {"layer.0", "layer.2.mlp", "layer.3"});
  const Program program = build_program(spec, strategy);
  // layer.3 is too close to the loss and stays. layer.0.attention goes after its forward, is given up before the forward of
  // layer.1.mlp, and comes back before the backward of layer.1.attention.
  std::vector<std::string> expected = {"load-batch",
                                       "forward embedding",
                                       "forward layer.0.attention",
                                       "offload layer.0.attention",
                                       "forward layer.0.mlp",
                                       "offload layer.0.mlp",
                                       "forward layer.1.attention",
                                       "forward layer.1.mlp",
                                       "forward layer.2.attention",
                                       "forward layer.2.mlp",
                                       "offload layer.2.mlp",
                                       "forward layer.3.attention",
                                       "forward layer.3.mlp",
                                       "loss head",
                                       "reload layer.2.mlp"};
  for (const char* part :
       {"layer.3.mlp", "layer.3.attention", "layer.2.mlp", "layer.2.attention", "layer.1.mlp",
        "layer.1.attention", "layer.0.mlp", "layer.0.attention"}) {
    if (part == std::string("layer.1.mlp")) expected.emplace_back("reload layer.0.mlp");
    if (part == std::string("layer.1.attention")) expected.emplace_back("reload layer.0.attention");
    expected.push_back(std::string("backward-input ") + part);
    expected.push_back(std::string("backward-weight ") + part);
  }
  expected.insert(expected.end(), {"backward-weight embedding", "grad-norm"});
  std::vector<std::string> names = names_of(spec, program);
  ASSERT_GE(names.size(), expected.size());
  names.resize(expected.size());
  EXPECT_EQ(names, expected);

  const int out = id_of(spec, program, "offload layer.0.attention");
  const int in = id_of(spec, program, "reload layer.0.attention");
  const int release = id_of(spec, program, "forward layer.1.mlp");
  const auto& copy = program.instructions[static_cast<size_t>(out)];
  EXPECT_EQ(copy.resource, Resource::kCopyOut);
  EXPECT_EQ(program.instructions[static_cast<size_t>(in)].resource, Resource::kCopyIn);
  // What the part kept, in two buffers, and its input, which the embedding made.
  EXPECT_EQ(copy.moves.size(), 3U);
  for (const int id : copy.moves) {
    const Buffer& buffer = program.buffers[static_cast<size_t>(id)];
    EXPECT_EQ(buffer.offloaded_by, out);
    EXPECT_EQ(buffer.released_before, release);
    EXPECT_EQ(buffer.reloaded_by, in);
  }
  EXPECT_THAT(copy.depends_on, ElementsAre(1, 2));
  EXPECT_THAT(program.instructions[static_cast<size_t>(release)].depends_on,
              ::testing::Contains(out));
  // The memory it comes back to is what was free when the instruction before it in the compute queue was done.
  EXPECT_THAT(program.instructions[static_cast<size_t>(in)].depends_on,
              ElementsAre(out, release, in - 1));
  EXPECT_THAT(program
                  .instructions[static_cast<size_t>(
                      id_of(spec, program, "backward-input layer.0.attention"))]
                  .depends_on,
              ::testing::Contains(in));
}

// Every instruction of the compute queue takes 2 s, copies `copy_s`, the host nothing.
Simulation timed(const Program& program, double copy_s) {
  std::vector<double> durations;
  for (const Instruction& instruction : program.instructions) {
    durations.push_back(instruction.resource == Resource::kCompute ? 2.0
                        : instruction.resource == Resource::kHost  ? 0.0
                                                                   : copy_s);
  }
  return simulate(program, durations);
}

TEST(Offload, ShortCopiesHideAndLongOnesAreWaitedFor) {
  const model::ModelSpec spec = four_layers();
  const Program plain = build_program(spec, one_micro_batch(spec, {"none"}));
  const Program program = build_program(spec, one_micro_batch(spec, {"all"}));
  const Simulation hidden = timed(program, 1.0);
  EXPECT_EQ(hidden.step_s, timed(plain, 1.0).step_s);
  EXPECT_EQ(hidden.copy_s, 12.0);  // six parts, out and in
  EXPECT_EQ(hidden.exposed_copy_s, 0.0);

  const Simulation slow = timed(program, 5.0);
  const auto start = [&](const std::string& name) {
    return slow.instructions[static_cast<size_t>(id_of(spec, program, name))].start_s;
  };
  // Copies out: layer.0.attention [4, 9), then one after the other. Forwards: embedding [0, 2), layer.0 [2, 6),
  // layer.1.attention [6, 8), then each as the part three before it is out.
  EXPECT_EQ(start("offload layer.0.attention"), 4.0);
  EXPECT_EQ(start("offload layer.0.mlp"), 9.0);
  EXPECT_EQ(start("forward layer.1.attention"), 6.0);
  EXPECT_EQ(start("forward layer.1.mlp"), 9.0);
  EXPECT_EQ(start("forward layer.2.attention"), 14.0);
  EXPECT_EQ(start("forward layer.2.mlp"), 19.0);
  EXPECT_EQ(start("forward layer.3.attention"), 24.0);
  EXPECT_EQ(start("forward layer.3.mlp"), 29.0);
  EXPECT_EQ(start("loss head"), 34.0);
  // Copies in: the first when the loss is done, at 36, the next ones with the queue of copies in.
  EXPECT_EQ(start("reload layer.2.mlp"), 36.0);
  EXPECT_EQ(start("backward-input layer.2.mlp"), 44.0);  // after layer.3's four instructions
  EXPECT_EQ(start("reload layer.2.attention"), 41.0);
  EXPECT_EQ(start("reload layer.1.mlp"), 46.0);
  EXPECT_GT(slow.exposed_copy_s, 0.0);

  // A trace of the simulation says the same.
  for (const Simulation& simulation : {hidden, slow}) {
    const TraceSummary summary = summarize(predicted_trace(spec, program, simulation));
    EXPECT_NEAR(summary.copy_s, simulation.copy_s, 1e-9);
    EXPECT_NEAR(summary.exposed_copy_s, simulation.exposed_copy_s, 1e-9);
    EXPECT_EQ(summary.comm_s, 0.0);
  }
  const Trace trace = predicted_trace(spec, program, slow);
  EXPECT_EQ(parse_chrome_json(to_chrome_json(trace), "test"), trace);
}

TEST(Offload, HoldsOnTheDeviceWhatIsLeftThere) {
  const model::ModelSpec spec = four_layers();
  for (const Recompute mode : {Recompute::kNone, Recompute::kFull}) {
    Strategy strategy = one_micro_batch(spec, {"all"});
    strategy.recompute.assign(spec.parts.size(), mode);
    const Program program = build_program(spec, strategy);
    const Simulation simulation = simulate_in_issue_order(program);
    // At the loss the inputs of layer.3 and of the head are there, and what layer.3 kept; six parts are on the host.
    const int64_t hidden = hidden_bytes(spec, strategy, 1);
    int64_t kept = 0;
    int64_t gone = 0;
    for (int part = 1; part <= 8 && mode == Recompute::kNone; ++part) {
      const PartBytes bytes = part_bytes(spec, strategy, part, mode);
      (part >= 7 ? kept : gone) += bytes.saved_input + bytes.saved_weight;
    }
    const int loss = id_of(spec, program, "loss head");
    const Instruction& at_loss = program.instructions[static_cast<size_t>(loss)];
    const int64_t gradients =
        parameter_gradient_bytes(spec, 9) + hidden;  // the head's and its input's
    EXPECT_EQ(simulation.instructions[static_cast<size_t>(loss)].peak_bytes,
              program.resident_bytes + batch_bytes(spec, strategy) + 3 * hidden + kept + gradients +
                  at_loss.workspace_bytes);
    EXPECT_EQ(simulation.host_peak_bytes, 6 * hidden + gone);
    strategy.offload_activations.clear();
    const Simulation plain = simulate_in_issue_order(build_program(spec, strategy));
    EXPECT_EQ(plain.host_peak_bytes, 0);
    EXPECT_LE(simulation.peak_bytes, plain.peak_bytes);
    EXPECT_EQ(simulation.memory.back().bytes, plain.memory.back().bytes);
  }
}

/// The rules of a program whose buffers move, replayed in issue order.
void expect_sound(const model::ModelSpec& spec, const Program& program) {
  enum class Place { kNowhere, kDevice, kBoth, kHost, kGone };
  std::vector<Place> place(program.buffers.size(), Place::kNowhere);
  // What the step before left is what this one leaves.
  std::multiset<int> found;
  std::multiset<int> left;
  for (const Buffer& buffer : program.buffers) {
    if (!buffer.is_carried_in()) continue;
    place[static_cast<size_t>(buffer.id)] = Place::kBoth;
    found.insert(buffer.part);
  }
  std::vector<std::set<int>> reaches(program.instructions.size());
  for (const Instruction& instruction : program.instructions) {
    SCOPED_TRACE(describe(spec, instruction));
    auto& mine = reaches[static_cast<size_t>(instruction.id)];
    for (const int dependency : instruction.depends_on) {
      ASSERT_LT(dependency, instruction.id);
      mine.insert(dependency);
      mine.insert(reaches[static_cast<size_t>(dependency)].begin(),
                  reaches[static_cast<size_t>(dependency)].end());
    }
    const auto move = [&](int id, Place from, Place to) {
      EXPECT_EQ(place[static_cast<size_t>(id)], from);
      place[static_cast<size_t>(id)] = to;
    };
    const auto buffer = [&](int id) { return program.buffers[static_cast<size_t>(id)]; };
    for (const int id : instruction.releases) {
      const bool state = buffer(id).kind == BufferKind::kOptimizerState;
      move(id, Place::kBoth, state ? Place::kGone : Place::kHost);
      EXPECT_TRUE(buffer(id).is_carried_in() || mine.contains(buffer(id).offloaded_by));
      EXPECT_EQ(buffer(id).released_before, instruction.id);
    }
    for (const int id : instruction.makes) move(id, Place::kNowhere, Place::kDevice);
    for (const int id : instruction.moves) {
      EXPECT_TRUE(is_copy(instruction.resource));
      if (instruction.kind == OpKind::kOffload) {
        move(id, Place::kDevice, Place::kBoth);
      } else {
        const bool state = buffer(id).kind == BufferKind::kOptimizerState;
        move(id, state ? Place::kNowhere : Place::kHost, Place::kDevice);
        // Its last visit is over.
        for (const Buffer& other : program.buffers) {
          if (!state || !other.is_carried_in() || other.part != buffer(id).part) continue;
          EXPECT_EQ(place[static_cast<size_t>(other.id)], Place::kGone);
        }
        EXPECT_TRUE(state || mine.contains(buffer(id).offloaded_by));
      }
    }
    for (const int id : instruction.uses) {
      // A copy out reads, as others may at the same time.
      const Place where = place[static_cast<size_t>(id)];
      EXPECT_TRUE(where == Place::kDevice || where == Place::kBoth);
      const int reload = buffer(id).reloaded_by;
      EXPECT_TRUE(reload < 0 || reload > instruction.id || mine.contains(reload));
    }
    for (const int id : instruction.frees) move(id, Place::kDevice, Place::kGone);
  }
  for (const Buffer& buffer : program.buffers) {
    const Place where = place[static_cast<size_t>(buffer.id)];
    if (where == Place::kBoth) {
      EXPECT_EQ(buffer.kind, BufferKind::kOptimizerState);
      left.insert(buffer.part);
    } else {
      EXPECT_EQ(where, Place::kGone);
    }
  }
  EXPECT_EQ(left, found);
}

TEST(Offload, IsSoundForRandomStrategiesAndLeavesTheWorkAsItIs) {
  std::mt19937 random(3);
  const std::vector<const char*> moe = {"deepseek_v3", "qwen2_moe", "gpt_oss"};
  for (int round = 0; round < 60; ++round) {
    const bool experts = random() % 2 == 0;
    const model::ModelSpec spec =
        experts
            ? model::spec_from_config(model::tiny_moe(moe[random() % moe.size()]).dump(), "test")
            : model::with_mtp(four_layers(), static_cast<int>(random() % 3), 0.3);
    Strategy strategy;
    strategy.micro = 1 + static_cast<int64_t>(random() % 2);
    strategy.lanes = int64_t{1} << (random() % 3);
    strategy.sequences = strategy.micro * strategy.lanes * (1 + static_cast<int64_t>(random() % 2));
    strategy.seq_len = 8;
    strategy.delay_weight_gradients = random() % 2 == 0;
    for (size_t i = 0; i < spec.parts.size(); ++i)
      strategy.recompute.push_back(static_cast<Recompute>(random() % 3));
    const std::vector<std::string> plain = names_of(spec, build_program(spec, strategy));
    for (size_t i = 0; i < spec.parts.size(); ++i)
      strategy.offload_activations.push_back(random() % 3 != 0);
    strategy.offload_optimizer = random() % 2 == 0;
    const Program program = build_program(spec, strategy);
    SCOPED_TRACE(fmt::format("round {}, {}", round, spec.family));
    expect_sound(spec, program);
    std::vector<std::string> work;
    for (const Instruction& instruction : program.instructions) {
      const std::string name = describe(spec, instruction);
      if (!is_copy(instruction.resource)) work.push_back(name.substr(0, name.find(" micro-batch")));
    }
    EXPECT_EQ(work, plain);
    // A step ends with what it began with, and no device can hold less than what is resident.
    const Simulation simulation = timed(program, 3.0);
    int64_t left = program.resident_bytes;
    for (const Buffer& buffer : program.buffers) left += buffer.freed_after < 0 ? buffer.bytes : 0;
    EXPECT_EQ(simulation.memory.back().bytes, left);
    for (const MemoryPoint& point : simulation.memory)
      EXPECT_GE(point.bytes, program.resident_bytes);
  }
}

// A Llama of 8 billion parameters in bfloat16, sequences of 4096, at an H100's rates: 990 TFLOP/s dense of which 60 % are
// reached in products (40 % in attention), 3.35 TB/s, 55 GB/s to the host and as many from it.
TEST(Offload, HidesAtTheRatesOfAnAccelerator) {
  const model::ModelSpec spec = model::spec_from_config(
      R"({"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
          "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
          "max_position_embeddings": 8192, "tie_word_embeddings": false})",
      "test");
  DeviceRates rates;
  rates.product_flops = 0.6 * 990e12;
  rates.attention_flops = 0.4 * 990e12;
  rates.memory_bytes = 3.35e12;
  rates.host_link_bytes = 55e9;
  Strategy strategy;
  strategy.sequences = 4;
  strategy.seq_len = 4096;
  strategy.precision = Precision::kBf16;
  const auto simulated = [&](const char* recompute, const char* offload) {
    strategy.recompute = recompute_from_names(spec, {recompute});
    strategy.offload_activations = offload_from_names(spec, {offload});
    const Program program = build_program(spec, strategy);
    return simulate(program, estimate_durations(spec, program, rates));
  };
  for (const auto& [recompute, offload] :
       {std::pair{"full", "all"}, std::pair{"none", "attention"}}) {
    const Simulation plain = simulated(recompute, "none");
    const Simulation moved = simulated(recompute, offload);
    EXPECT_GT(moved.copy_s, 0.0);
    EXPECT_LE(moved.exposed_copy_s, 0.1 * moved.copy_s) << offload;
    EXPECT_NEAR(moved.step_s / plain.step_s, 1.0, 0.01) << offload;
    EXPECT_LT(moved.peak_bytes + (int64_t{1} << 30), plain.peak_bytes) << offload;
  }
  // A layer keeps about 4.5 h of attention's and 3 F + 2 h of the MLP's elements a token, 17 h = 139 kB: 2.5 us on the link. Its
  // 218 million parameters take 0.7 us forward and twice that backward: all of it cannot hide.
  const Simulation everything = simulated("none", "all");
  EXPECT_GT(everything.exposed_copy_s, 0.3 * everything.copy_s);
}

TEST(OffloadNames, CoverAllSpellings) {
  const model::ModelSpec spec = four_layers();
  const auto of = [&](std::vector<std::string> names) { return offload_from_names(spec, names); };
  EXPECT_THAT(of({}), ElementsAre(0, 0, 0, 0, 0, 0, 0, 0, 0, 0));
  EXPECT_THAT(of({"none"}), ElementsAre(0, 0, 0, 0, 0, 0, 0, 0, 0, 0));
  EXPECT_THAT(of({"all"}), ElementsAre(0, 1, 1, 1, 1, 1, 1, 1, 1, 0));
  EXPECT_THAT(of({"mlp"}), ElementsAre(0, 0, 1, 0, 1, 0, 1, 0, 1, 0));
  EXPECT_THAT(of({"layer.1", "layer.3.attention"}), ElementsAre(0, 0, 0, 1, 1, 0, 0, 1, 0, 0));
  EXPECT_THAT(of({"all", "none"}), ElementsAre(0, 0, 0, 0, 0, 0, 0, 0, 0, 0));
  expect_refused(of, {{"mpl", "entry \"mpl\": the model has no such part", "\"mlp\""},
                      {"layer.9.mlp", "\"layer.9.mlp\"", "layer."},
                      {"head", "the head keeps nothing", "parts of layers"},
                      {"embedding", "the embedding keeps nothing", "parts of layers"}});
  Strategy strategy = one_micro_batch(spec, {"all"});
  strategy.offload_activations.pop_back();
  EXPECT_THAT(validate(spec, strategy), ElementsAre(HasSubstr("9 entries for 10 parts")));
}

}  // namespace
}  // namespace trireme::plan
