// ZeRO 3: weights that come for their use. What ranks hold, and what a fault in a program does to the result.
#include <gtest/gtest.h>

#include <atomic>
#include <numeric>

#include "trireme/execute/kernel_workspace.h"
#include "trireme/execute/testing/planted_faults.h"
#include "trireme/execute/testing/trained_ranks.h"
#include "trireme/nn/testing/tiny_models.h"
#include "trireme/plan/simulate.h"

namespace trireme::execute {
namespace {

/// Bytes move when they are waited for: what is not waited for is not there.
comm::LocalOptions late() {
  comm::LocalOptions options;
  options.late = true;
  return options;
}

model::ModelSpec deep(int layers) {
  Json config = nn::testing::model_json(nn::testing::tiny_configs(4).at(3));
  config["num_hidden_layers"] = layers;
  return model::spec_from_config(config.dump(), "deep.json");
}

class GatheredWeightsTest : public ExecutorTest {
 protected:
  GatheredWeightsTest() {
    one_.strategy.parallel.dp = 4;
    one_.strategy.parallel.zero = 3;
  }

  /// Whether all ranks end with the weights of one rank, with their programs as `change` leaves them.
  bool ends_alike(const std::function<void(plan::Program&)>& change) {
    TrainingCase alone = one_;
    alone.strategy.parallel = {};
    if (want_.weights.empty()) want_ = train(alone, at::kCPU);
    std::atomic<bool> alike = true;
    comm::run_ranks(
        static_cast<int>(one_.strategy.parallel.world()),
        [&](comm::World& world) {
          const RankTrained got = train_rank(one_, world, at::kCPU, change);
          for (size_t part = 0; part < want_.weights.size(); ++part) {
            if (!at::equal(got.compute[part], want_.weights[part])) alike = false;
          }
        },
        late());
    return alike;
  }

  std::string error_of(const std::function<void(plan::Program&)>& change) {
    try {
      ends_alike(change);
    } catch (const std::exception& error) {
      return error.what();
    }
    return "";
  }

  TrainingCase one_{"deep", deep(4), strategy_for(8, 8, 2, 12), {}};
  Trained want_;
};

/// The n-th gather of a part: for its forward, then for its backward.
plan::Instruction& nth_gather(plan::Program& program, int part, int n) {
  for (plan::Instruction& instruction : program.instructions) {
    if (instruction.kind == plan::OpKind::kGatherParameters && instruction.part == part && n-- == 0)
      return instruction;
  }
  throw std::runtime_error("no such gather");
}

/// Instruction `first` moves behind `last`; what waits for them does not change.
void move_behind(plan::Program& program, int first, int last) {
  std::vector<int> order(program.instructions.size());
  std::iota(order.begin(), order.end(), 0);
  std::rotate(order.begin() + first, order.begin() + first + 1, order.begin() + last + 1);
  std::vector<int> id_of(order.size());
  std::vector<plan::Instruction> all;
  for (size_t i = 0; i < order.size(); ++i) {
    id_of[static_cast<size_t>(order[i])] = static_cast<int>(i);
    all.push_back(program.instructions[static_cast<size_t>(order[i])]);
  }
  for (plan::Instruction& instruction : all) {
    instruction.id = id_of[static_cast<size_t>(instruction.id)];
    for (int& id : instruction.depends_on) id = id_of[static_cast<size_t>(id)];
  }
  program.instructions = std::move(all);
}

constexpr int kSecondAttention = 3;  // embedding, attention, MLP, attention ...

TEST_F(GatheredWeightsTest, AFaultInTheProgramChangesTheResult) {
  EXPECT_TRUE(ends_alike({}));
  for (const int use : {0, 1}) {
    EXPECT_FALSE(ends_alike([&](plan::Program& program) {  // for the forward, then the backward
      forget_waits_for(program, nth_gather(program, kSecondAttention, use).id);
    })) << use;
    // There is room and nobody fills it: what is in it is what was there before.
    EXPECT_FALSE(ends_alike([&](plan::Program& program) {
      nth_gather(program, kSecondAttention, use).kind = plan::OpKind::kReleaseParameters;
    })) << use;
  }
  // An owner takes two ranks' lanes for one another's: a swapped node of the tree.
  EXPECT_FALSE(ends_alike([](plan::Program& program) {
    if (program.rank != 0) return;
    for (plan::Instruction& instruction : program.instructions) {
      if (instruction.kind != plan::OpKind::kReduceGradients &&
          instruction.kind != plan::OpKind::kCombinePieces)
        continue;
      if (instruction.part == kSecondAttention)
        std::swap(instruction.pieces[1].node, instruction.pieces[2].node);
    }
  }));
  // A rank's slices of one layer would go to where those of another belong: the ranks' transfers differ.
  const std::string what = error_of([](plan::Program& program) {
    if (program.rank != 1) return;
    std::vector<int> reductions;
    for (const plan::Instruction& instruction : program.instructions) {
      if (instruction.kind == plan::OpKind::kReduceGradients &&
          program.slices[static_cast<size_t>(instruction.part)] == program.slices[kSecondAttention])
        reductions.push_back(instruction.id);
    }
    move_behind(program, reductions.at(0), reductions.at(1));
  });
  EXPECT_NE(what.find("rank 1"), std::string::npos) << what;
  EXPECT_NE(what.find("differ"), std::string::npos) << what;
}

// A block of ranks that does not wait for what the others have summed up goes on with its own lanes' gradient.
TEST_F(GatheredWeightsTest, AFaultAmongBlocksChangesTheResult) {
  for (const int64_t zero : {1, 3}) {
    one_.strategy.parallel.zero = zero;
    one_.strategy.parallel.shard = 2;
    EXPECT_TRUE(ends_alike({})) << zero;
    EXPECT_FALSE(ends_alike([](plan::Program& program) {
      for (const plan::Instruction& instruction : program.instructions) {
        if (instruction.kind != plan::OpKind::kGatherGradients ||
            instruction.part != kSecondAttention)
          continue;
        forget_waits_for(program, instruction.id);
        return;
      }
    })) << zero;
  }
}

// Of a part that nobody has made room for.
TEST_F(GatheredWeightsTest, WeightsThatAreGoneAreAnErrorAndNoResult) {
  const std::string what = error_of([](plan::Program& program) {
    plan::Instruction& gather = nth_gather(program, kSecondAttention, 1);
    const int buffer = gather.makes.front();
    gather.makes.clear();
    for (plan::Instruction& instruction : program.instructions)
      std::erase(instruction.frees, buffer);
  });
  EXPECT_NE(what.find("not allocated"), std::string::npos) << what;
}

// ---- memory ----------------------------------------------------------------------------------------

model::ModelSpec wide() {
  return model::spec_from_config(
      R"({"model_type":"llama","vocab_size":1000,"hidden_size":128,"intermediate_size":320,
          "num_hidden_layers":8,"num_attention_heads":4,"num_key_value_heads":2,
          "max_position_embeddings":128,"tie_word_embeddings":false})",
      "test");
}

struct Held {
  int64_t between = 0;     ///< steps; bytes of weights, states and tables
  int64_t while_made = 0;  ///< the most while weights were allocated and drawn
  double ratio = 0.0;      ///< of a step's peak: predicted over measured
};

Held held_by(const model::ModelSpec& spec, const plan::Strategy& strategy) {
  const auto ranks = static_cast<int>(strategy.parallel.world());
  std::vector<device::Device*> devices;
  for (int rank = 0; rank < ranks; ++rank)
    devices.push_back(&device::get_device(fmt::format("sim:{}", rank)));
  std::vector<Held> all(static_cast<size_t>(ranks));
  comm::run_ranks(ranks, [&](comm::World& world) {
    const auto rank = static_cast<size_t>(world.rank());
    device::Device& device = *devices[rank];
    const int64_t before = device.memory().allocated_bytes;
    const plan::Program program = plan::build_program(spec, strategy, world.rank());
    const bool bf16 = strategy.precision == plan::Precision::kBf16;
    device.reset_peak_memory();
    nn::ParameterStore store(spec, bf16 ? at::kBFloat16 : at::kFloat, at::kFloat,
                             device.torch_device(), master_shares(spec, program), program.has_part,
                             gathered_parts(spec, program));
    store.initialize(1);
    all[rank].while_made = device.memory().peak_allocated_bytes - before;
    nn::Model model(store);
    const auto optimizer = optim::make_optimizer(
        {}, spec, device.torch_device(), optim::StatePlace::kDevice, state_shares(spec, program));
    Executor executor(model, store, *optimizer, &world);
    StepInput input;
    input.micro_batches = random_batches(spec, static_cast<int64_t>(program.micro_batches().size()),
                                         strategy.micro, strategy.seq_len, 3);
    const StepResult result = executor.run_step(program, input);
    all[rank].between = device.memory().allocated_bytes - before;
    all[rank].ratio = static_cast<double>(plan::simulate_in_issue_order(program).peak_bytes) /
                      static_cast<double>(result.peak_allocated_bytes - before);
    EXPECT_NEAR(
        static_cast<double>(program.resident_bytes) / static_cast<double>(all[rank].between), 1.0,
        0.02);
    EXPECT_NEAR(all[rank].ratio, 1.0, 0.02);
  });
  return *std::ranges::max_element(all, {}, &Held::between);
}

TEST(GatheredWeightsMemory, IsAShareOfTheModel) {
  const model::ModelSpec spec = wide();
  plan::Strategy strategy = strategy_for(8, 8, 2, 64);
  strategy.kernels = kernel_workspace(device::get_device("sim:0").torch_device());
  strategy.parallel.zero = 3;
  int64_t largest = 0;  // elements
  for (int part = 0; part < static_cast<int>(spec.parts.size()); ++part)
    largest = std::max(
        largest, plan::build_program(spec, strategy).slices[static_cast<size_t>(part)].back());
  for (const auto precision : {plan::Precision::kFp32, plan::Precision::kBf16}) {
    strategy.precision = precision;
    const int64_t element = precision == plan::Precision::kBf16 ? 2 : 4;
    for (const int64_t dp : {2, 3, 4, 8}) {
      SCOPED_TRACE(fmt::format("{} dp {}", to_string(precision), dp));
      strategy.parallel.dp = dp;
      const Held held = held_by(spec, strategy);
      // Masters and two states; parts are cut at blocks of 1024 elements and matrices.
      const auto share = static_cast<double>(spec.num_parameters()) / static_cast<double>(dp);
      EXPECT_NEAR(static_cast<double>(held.between) / (12.0 * share), 1.0, 0.15);
      // While it is made: its share, and no more than one part's place beside it.
      EXPECT_LE(static_cast<double>(held.while_made),
                4.0 * 1.15 * share + static_cast<double>(element * largest));
    }
  }
}

TEST(GatheredWeightsMemory, OfBlocksOfRanksIsAShareOfABlock) {
  const model::ModelSpec spec = wide();
  plan::Strategy strategy = strategy_for(8, 8, 2, 64);
  strategy.kernels = kernel_workspace(device::get_device("sim:0").torch_device());
  strategy.parallel.dp = 8;
  strategy.parallel.zero = 3;
  for (const int64_t shard : {2, 4}) {
    strategy.parallel.shard = shard;
    const Held held = held_by(spec, strategy);
    const auto share = static_cast<double>(spec.num_parameters()) / static_cast<double>(shard);
    EXPECT_NEAR(static_cast<double>(held.between) / (12.0 * share), 1.0, 0.15) << shard;
  }
}

TEST(GatheredWeightsMemory, OfAStepIsPredictedWithRecomputeAndPipelines) {
  const model::ModelSpec spec = wide();
  plan::Strategy strategy = strategy_for(8, 8, 2, 64);
  strategy.kernels = kernel_workspace(device::get_device("sim:0").torch_device());
  strategy.precision = plan::Precision::kBf16;
  strategy.parallel.zero = 3;
  strategy.parallel.dp = 4;
  strategy.recompute = plan::recompute_from_names(spec, {"full"});
  held_by(spec, strategy);
  strategy.weights_ahead = 3;
  held_by(spec, strategy);
  strategy.recompute.clear();
  strategy.parallel.dp = 2;
  strategy.parallel.pp = 2;
  for (const auto schedule : {plan::ScheduleKind::k1F1B, plan::ScheduleKind::kZeroBubbleV}) {
    strategy.parallel.schedule = schedule;
    strategy.parallel.chunks = schedule == plan::ScheduleKind::k1F1B ? 1 : 2;
    held_by(spec, strategy);
  }
}

}  // namespace
}  // namespace trireme::execute
