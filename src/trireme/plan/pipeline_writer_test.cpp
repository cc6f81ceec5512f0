#include "trireme/plan/pipeline_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <tuple>

#include "trireme/base/error.h"
#include "trireme/plan/simulate_world.h"

namespace trireme::plan {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

// One layer a stage; embedding and head are light.
model::ModelSpec layers(int count) {
  return model::spec_from_config(
      fmt::format(R"({{"model_type": "llama", "vocab_size": 16, "hidden_size": 16,
      "intermediate_size": 24, "num_hidden_layers": {}, "num_attention_heads": 4,
      "num_key_value_heads": 2, "max_position_embeddings": 64}})",
                  count),
      "test");
}

Strategy strategy_of(ScheduleKind schedule, int64_t pp, int64_t micro_batches, int64_t dp = 1,
                     int64_t zero = 0) {
  Strategy strategy;
  strategy.lanes = 4;
  strategy.micro = 1;
  strategy.sequences = micro_batches * dp;
  strategy.seq_len = 8;
  strategy.parallel.schedule = schedule;
  strategy.parallel.pp = pp;
  strategy.parallel.dp = dp;
  strategy.parallel.zero = zero;
  const int fixed = fixed_chunks(schedule);
  strategy.parallel.chunks = fixed > 0 ? fixed : 2;
  return strategy;
}

constexpr std::array kKinds = {ScheduleKind::kGPipe,       ScheduleKind::k1F1B,
                               ScheduleKind::kInterleaved, ScheduleKind::kZeroBubbleH1,
                               ScheduleKind::kZeroBubbleV, ScheduleKind::kDualPipeV,
                               ScheduleKind::kVHalf};

std::vector<Program> programs_of(const model::ModelSpec& spec, const Strategy& strategy) {
  std::vector<Program> programs;
  for (int rank = 0; rank < static_cast<int>(strategy.parallel.world()); ++rank)
    programs.push_back(build_program(spec, strategy, rank));
  return programs;
}

// Nothing is touched before it is made or after it is freed, and what a transfer reads lives until something waited for it.
void expect_sound(const Program& program) {
  std::vector<char> alive(program.buffers.size(), 0);
  // States whose copies run on from one step into the next are there when it begins, and as many when it ends.
  for (const Buffer& buffer : program.buffers)
    alive[static_cast<size_t>(buffer.id)] = buffer.is_carried_in();
  for (const Instruction& instruction : program.instructions) {
    for (const int on : instruction.depends_on) ASSERT_LT(on, instruction.id);
    // Optimizer states come from the host and go back to it.
    const auto visits = [&](int id) {
      return program.buffers[static_cast<size_t>(id)].kind == BufferKind::kOptimizerState;
    };
    for (const int id : instruction.releases) {
      if (visits(id)) alive[static_cast<size_t>(id)] = 0;
    }
    for (const int id : instruction.moves) {
      if (visits(id) && instruction.kind == OpKind::kReload) alive[static_cast<size_t>(id)] = 1;
    }
    for (const int buffer : instruction.makes) alive[static_cast<size_t>(buffer)] = 1;
    for (const int buffer : instruction.uses) ASSERT_EQ(alive[static_cast<size_t>(buffer)], 1);
    for (const int buffer : instruction.frees) {
      ASSERT_EQ(alive[static_cast<size_t>(buffer)], 1);
      alive[static_cast<size_t>(buffer)] = 0;
    }
    if (instruction.kind == OpKind::kSend) {
      EXPECT_THAT(instruction.frees, IsEmpty());
    }
  }
  std::vector<int> left;
  for (const Buffer& buffer : program.buffers) {
    if (alive[static_cast<size_t>(buffer.id)] != 0) left.push_back(buffer.part);
  }
  std::ranges::sort(left);
  EXPECT_EQ(left, parts_carried_in(program));
}

TEST(PipelineWriter, RanksTogetherDoWhatOneDoesAndMessagesMeet) {
  for (const ScheduleKind kind : kKinds) {
    for (const int pp : {2, 3, 4}) {
      for (const int64_t micro_batches : {4, 8, 12}) {
        SCOPED_TRACE(
            fmt::format("{} on {} ranks, {} micro-batches", to_string(kind), pp, micro_batches));
        const Strategy strategy = strategy_of(kind, pp, micro_batches);
        const model::ModelSpec spec = layers(static_cast<int>(strategy.parallel.stages()));
        using Done = std::tuple<OpKind, int, int64_t>;
        const auto add = [](const Program& program, std::map<Done, int>& done) {
          for (const Instruction& i : program.instructions) {
            if (i.resource == Resource::kCompute && i.kind != OpKind::kGradNorm &&
                i.kind != OpKind::kSumSquares)
              ++done[{i.kind, i.part, i.kind == OpKind::kCombineLanes ? i.lane : i.micro_batch}];
          }
        };
        std::map<Done, int> alone;
        Strategy one = strategy;
        one.parallel = {};
        add(build_program(spec, one), alone);
        std::map<Done, int> together;
        // By sender, receiver: what is sent, what is received, in order.
        using Message = std::tuple<int, int64_t, bool, int64_t>;
        std::map<std::pair<int, int>, std::vector<Message>> sent;
        std::map<std::pair<int, int>, std::vector<Message>> received;
        for (const Program& program : programs_of(spec, strategy)) {
          expect_sound(program);
          add(program, together);
          std::map<std::pair<OpKind, int>, int64_t> last;
          for (const Instruction& i : program.instructions) {
            if (i.part >= 0 && i.resource == Resource::kCompute) {
              EXPECT_TRUE(program.has(i.part));
            }
            if (i.kind == OpKind::kBackwardWeight || i.kind == OpKind::kLoss) {
              const auto before = last.find({i.kind, i.part});
              EXPECT_TRUE(before == last.end() || before->second < i.micro_batch);
              last[{i.kind, i.part}] = i.micro_batch;
            }
            const auto bytes = [&](const std::vector<int>& buffers) {
              return program.buffers[static_cast<size_t>(buffers.at(0))].bytes;
            };
            if (i.kind == OpKind::kSend)
              sent[{program.rank, i.peer}].emplace_back(i.part, i.micro_batch, i.of_gradient,
                                                        bytes(i.uses));
            if (i.kind == OpKind::kReceive)
              received[{i.peer, program.rank}].emplace_back(i.part, i.micro_batch, i.of_gradient,
                                                            bytes(i.makes));
          }
        }
        EXPECT_EQ(alone, together);
        EXPECT_EQ(sent, received);
      }
    }
  }
}

// Durations that make the schedule's actions take what `cost` says, and nothing else anything. What a stage sends is ready at the end
// of its forward and of its backward-input, and a backward ends with its input's gradient.
std::vector<double> unit_durations(const model::ModelSpec& spec, const Program& program,
                                   const StageCost& cost) {
  std::vector<double> durations;
  for (const Instruction& i : program.instructions) {
    double duration = 0.0;
    const bool mlp =
        i.part >= 0 && spec.parts[static_cast<size_t>(i.part)].kind == model::PartKind::kMlp;
    const bool attention =
        i.part >= 0 && spec.parts[static_cast<size_t>(i.part)].kind == model::PartKind::kAttention;
    if (i.kind == OpKind::kForward && mlp) duration = cost.forward;
    if (i.kind == OpKind::kBackwardInput && attention) duration = cost.backward_input;
    if (i.kind == OpKind::kBackwardWeight && mlp) duration = cost.backward_weight;
    durations.push_back(duration);
  }
  return durations;
}

WorldOptions fast_links() {
  WorldOptions options;
  options.tiers = {{0, 0.0, 1e30}};
  return options;
}

TEST(PipelineWriter, WaitsAsItsScheduleSays) {
  for (const ScheduleKind kind : kKinds) {
    for (const int pp : {2, 4}) {
      for (const int64_t micro_batches : {4, 16}) {
        SCOPED_TRACE(
            fmt::format("{} on {} ranks, {} micro-batches", to_string(kind), pp, micro_batches));
        const Strategy strategy = strategy_of(kind, pp, micro_batches);
        const model::ModelSpec spec = layers(static_cast<int>(strategy.parallel.stages()));
        const std::vector<Program> programs = programs_of(spec, strategy);
        std::vector<std::vector<double>> durations;
        for (const Program& program : programs)
          durations.push_back(unit_durations(spec, program, {1.0, 1.0, 1.0}));
        const WorldSimulation world = simulate_world(spec, programs, durations, fast_links());
        PipelineSchedule schedule =
            make_schedule(kind, pp, micro_batches, static_cast<int>(strategy.parallel.chunks));
        // Without experts the two of a pair follow one another.
        for (auto& order : schedule.ranks) {
          for (Action& action : order) action.with_next = false;
        }
        const ScheduleTimeline theory = run_schedule(schedule, {StageCost{}});
        EXPECT_NEAR(world.step_s, theory.makespan, 1e-9);
        EXPECT_NEAR(world.bubble_share, theory.bubble_share(), 1e-9);
      }
    }
  }
}

TEST(PipelineWriter, KeepsTheActivationsThatItsScheduleSays) {
  for (const ScheduleKind kind : kKinds) {
    for (const int pp : {2, 4}) {
      const Strategy strategy = strategy_of(kind, pp, 16);
      const model::ModelSpec spec = layers(static_cast<int>(strategy.parallel.stages()));
      const PipelineSchedule schedule =
          make_schedule(kind, pp, 16, static_cast<int>(strategy.parallel.chunks));
      const std::vector<int64_t> peaks = peak_in_flight(schedule, KeptUntil::kBackwardWeight);
      for (const Program& program : programs_of(spec, strategy)) {
        // Layers and micro-batches of which anything is kept.
        std::map<std::pair<int, int64_t>, int> kept;
        size_t most = 0;
        const auto change = [&](int id, int by) {
          const Buffer& buffer = program.buffers[static_cast<size_t>(id)];
          if (buffer.kind != BufferKind::kSaved ||
              spec.parts[static_cast<size_t>(buffer.part)].kind != model::PartKind::kMlp)
            return;
          const std::pair key{buffer.part, buffer.micro_batch};
          kept[key] += by;
          if (kept[key] == 0) kept.erase(key);
          most = std::max(most, kept.size());
        };
        for (const Instruction& i : program.instructions) {
          for (const int id : i.makes) change(id, 1);
          for (const int id : i.frees) change(id, -1);
        }
        EXPECT_EQ(static_cast<int64_t>(most), peaks[static_cast<size_t>(program.rank)])
            << to_string(kind) << " rank " << program.rank << " of " << pp;
      }
    }
  }
}

TEST(PipelineWriter, RunsOverDataParallelRanksWithoutDeadlock) {
  for (const ScheduleKind kind : kKinds) {
    for (const int dp : {1, 2, 3, 4}) {
      for (const int zero : {0, 1, 2}) {
        SCOPED_TRACE(fmt::format("{}, dp {}, zero {}", to_string(kind), dp, zero));
        Strategy strategy = strategy_of(kind, 2, 16, 1, zero);
        strategy.parallel.dp = dp;
        const model::ModelSpec spec = layers(static_cast<int>(strategy.parallel.stages()));
        if (dp == 3 && strategy.parallel.chunks > 1) {
          EXPECT_THAT(validate(spec, strategy).at(0), HasSubstr("does not divide batch.lanes"));
          continue;
        }
        ASSERT_THAT(validate(spec, strategy), IsEmpty());
        const std::vector<Program> programs = programs_of(spec, strategy);
        std::vector<std::vector<double>> durations;
        double reduced = 0.0;
        for (const Program& program : programs) {
          expect_sound(program);
          durations.push_back(unit_durations(spec, program, StageCost{}));
        }
        WorldOptions options = fast_links();
        options.host_computes = zero == 1;
        const WorldSimulation world = simulate_world(spec, programs, durations, options);
        for (const SimulatedRank& rank : world.ranks) {
          const auto found = rank.by_kind.find(OpKind::kReduceGradients);
          if (found != rank.by_kind.end()) reduced += found->second.bytes;
        }
        // All but the sender's own slice of a sum leaves it: of every lane with ZeRO 2, else of all lanes of a rank, which make
        // one node of the tree here.
        double expected = 0.0;
        for (const std::vector<int64_t>& bounds : programs.front().slices) {
          for (int64_t sum = 0; sum < (zero == 2 ? strategy.lanes : dp); ++sum) {
            const auto from = static_cast<size_t>(sum % dp);
            expected += 4.0 * static_cast<double>(bounds.back() - bounds[from + 1] + bounds[from]);
          }
        }
        EXPECT_EQ(reduced, expected);
      }
    }
  }
}

TEST(PipelineWriter, OffloadsAndRecomputesInItsStages) {
  for (const ScheduleKind kind : {ScheduleKind::k1F1B, ScheduleKind::kZeroBubbleV}) {
    Strategy strategy = strategy_of(kind, 2, 8);
    const model::ModelSpec spec = layers(12);
    strategy.offload_activations = offload_from_names(spec, {"all"});
    strategy.offload_optimizer = true;
    strategy.recompute = recompute_from_names(spec, {"layer.1", "layer.7"});
    const std::vector<Program> programs = programs_of(spec, strategy);
    std::vector<std::vector<double>> durations;
    int copies = 0;
    for (const Program& program : programs) {
      expect_sound(program);
      for (const Instruction& i : program.instructions) {
        if (i.kind != OpKind::kOffload || i.micro_batch < 0) continue;
        ++copies;
        // What is copied out comes back before its backward, and is there by then.
        for (const int id : i.moves) {
          const Buffer& buffer = program.buffers[static_cast<size_t>(id)];
          EXPECT_GT(buffer.released_before, i.id);
          EXPECT_GT(buffer.reloaded_by, buffer.released_before);
          EXPECT_GE(buffer.freed_after, buffer.reloaded_by);
        }
      }
      durations.push_back(unit_durations(spec, program, StageCost{}));
      for (const Instruction& i : program.instructions) {
        if (is_copy(i.resource)) durations.back()[static_cast<size_t>(i.id)] = 0.1;
      }
    }
    EXPECT_GT(copies, 0);
    const WorldSimulation world = simulate_world(spec, programs, durations, fast_links());
    for (const SimulatedRank& rank : world.ranks) EXPECT_GT(rank.simulation.host_peak_bytes, 0);
  }
}

TEST(PipelineWriter, RanksHoldTheirPartsAlone) {
  const Strategy strategy = strategy_of(ScheduleKind::kZeroBubbleV, 2, 4);
  const model::ModelSpec spec = layers(4);
  int64_t all = 0;
  std::set<int> parts;
  for (const Program& program : programs_of(spec, strategy)) {
    all += program.resident_bytes;
    for (int part = 0; part < static_cast<int>(spec.parts.size()); ++part) {
      if (program.has(part)) {
        EXPECT_TRUE(parts.insert(part).second);
      }
    }
  }
  EXPECT_EQ(parts.size(), spec.parts.size());
  // Weights and two states in float32 once; both ranks have the rotary table, of 8 positions and 2 angles.
  EXPECT_EQ(all, 12 * spec.num_parameters() + 2 * 2 * 64);
}

}  // namespace
}  // namespace trireme::plan
