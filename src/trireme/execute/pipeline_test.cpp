// Pipelines end with the bits of one rank, whatever their schedule.
#include <gtest/gtest.h>

#include <array>
#include <atomic>

#include "trireme/execute/testing/trained_ranks.h"
#include "trireme/nn/testing/tiny_models.h"
#include "trireme/plan/schedule.h"

namespace trireme::execute {
namespace {

constexpr std::array kSchedules = {
    plan::ScheduleKind::kGPipe,       plan::ScheduleKind::k1F1B,
    plan::ScheduleKind::kInterleaved, plan::ScheduleKind::kZeroBubbleH1,
    plan::ScheduleKind::kZeroBubbleV, plan::ScheduleKind::kDualPipeV,
    plan::ScheduleKind::kVHalf};

/// Bytes move when they are waited for: what is not waited for is not there.
comm::LocalOptions late() {
  comm::LocalOptions options;
  options.late = true;
  return options;
}

/// As tiny(3), of so many layers.
model::ModelSpec deep(int layers, uint64_t seed = 4) {
  Json config = nn::testing::model_json(nn::testing::tiny_configs(seed).at(3));
  config["num_hidden_layers"] = layers;
  return model::spec_from_config(config.dump(), "deep.json");
}

model::ModelSpec deep_moe(const std::string& name, int layers, uint64_t seed = 4) {
  for (const auto& variant : nn::testing::moe_variants()) {
    if (variant.name == name)
      return nn::testing::with_experts(deep(layers, seed), variant.moe, variant.first);
  }
  throw std::runtime_error(name);
}

class PipelineStepTest : public ExecutorTest {};

TEST_F(PipelineStepTest, EveryScheduleEndsWithTheBitsOfOneRank) {
  for (const bool experts : {false, true}) {
    TrainingCase one{"deep",
                     experts ? deep_moe("sigmoid in groups with selection bias", 6) : deep(6),
                     strategy_for(8, 4, 2, 12),
                     {}};
    one.strategy.precision = experts ? plan::Precision::kBf16 : plan::Precision::kFp32;
    const Trained want = train(one, at::kCPU);
    for (const auto schedule : kSchedules) {
      const int fixed = plan::fixed_chunks(schedule);
      for (const auto& [pp, dp, zero] : {std::tuple{2, 1, 0}, {4, 1, 0}, {2, 2, 2}, {2, 2, 3}}) {
        one.strategy.parallel = {};
        one.strategy.parallel.pp = pp;
        one.strategy.parallel.dp = dp;
        one.strategy.parallel.zero = zero;
        one.strategy.parallel.schedule = schedule;
        one.strategy.parallel.chunks = fixed > 0 ? fixed : 2;
        SCOPED_TRACE(fmt::format("{}, experts {}", plan::describe(one.strategy.parallel), experts));
        expect_same_bits(train_on_ranks(one, {at::kCPU}, late()), want);
      }
    }
  }
}

TEST_F(PipelineStepTest, StagesOnSimulatedDevicesEndWithTheBitsOfOneCpu) {
  TrainingCase one{"experts", deep_moe("balanced", 4), strategy_for(8, 4, 2, 12), {}};
  one.strategy.precision = plan::Precision::kBf16;
  const Trained want = train(one, at::kCPU);
  std::vector<at::Device> devices;
  for (const char* name : {"sim:0", "sim:1", "sim:2", "sim:3"})
    devices.push_back(device::get_device(name).torch_device());
  one.strategy.parallel.pp = 2;
  one.strategy.parallel.dp = 2;
  one.strategy.parallel.zero = 1;
  for (const auto schedule : {plan::ScheduleKind::k1F1B, plan::ScheduleKind::kZeroBubbleH1,
                              plan::ScheduleKind::kDualPipeV}) {
    one.strategy.parallel.schedule = schedule;
    one.strategy.parallel.chunks = plan::fixed_chunks(schedule);
    SCOPED_TRACE(to_string(schedule));
    expect_same_bits(train_on_ranks(one, devices), want);
  }
}

TEST_F(PipelineStepTest, StagesThatOffloadEndWithTheBitsOfOneCpu) {
  TrainingCase one{"experts", deep_moe("balanced", 6), strategy_for(8, 4, 2, 12), {}};
  const Trained want = train(one, at::kCPU);
  std::vector<at::Device> devices;
  for (const char* name : {"sim:0", "sim:1", "sim:2", "sim:3"})
    devices.push_back(device::get_device(name).torch_device());
  one.strategy.offload_activations = plan::offload_from_names(one.spec, {"all"});
  one.strategy.offload_optimizer = true;
  one.strategy.parallel.pp = 2;
  for (const auto schedule : {plan::ScheduleKind::k1F1B, plan::ScheduleKind::kZeroBubbleV}) {
    one.strategy.parallel.schedule = schedule;
    one.strategy.parallel.chunks = plan::fixed_chunks(schedule);
    for (const auto& [dp, zero] : {std::pair{1, 1}, {2, 2}, {2, 3}}) {
      one.strategy.parallel.dp = dp;
      one.strategy.parallel.zero = zero;
      SCOPED_TRACE(plan::describe(one.strategy.parallel));
      expect_same_bits(train_on_ranks(one, devices), want);
    }
  }
}

// First and last stage on one rank: both add to the embedding's gradients.
TEST_F(PipelineStepTest, SharedEmbeddingsEndWithTheBitsOfOneRank) {
  optim::OptimizerConfig muon;
  muon.kind = optim::OptimizerKind::kMuon;
  std::vector<TrainingCase> cases = {
      {"tied", tiny(7), strategy_for(8, 8, 2, 12), {}},
      {"multi-token", tiny_mtp("softmax", 2), strategy_for(8, 8, 2, 12), {}},
      {"both", tiny_deepseek(1), strategy_for(8, 8, 2, 12), muon}};
  for (TrainingCase& one : cases) {
    one.strategy.whole_matrices = one.optimizer.kind == optim::OptimizerKind::kMuon;
    one.strategy.precision = plan::Precision::kBf16;
    const Trained want = train(one, at::kCPU);
    for (const auto schedule : {plan::ScheduleKind::kZeroBubbleV, plan::ScheduleKind::kDualPipeV,
                                plan::ScheduleKind::kVHalf}) {
      for (const auto& [dp, zero] : {std::pair{1, 1}, {2, 2}, {2, 3}}) {
        one.strategy.parallel = {};
        one.strategy.parallel.pp = 2;
        one.strategy.parallel.dp = dp;
        one.strategy.parallel.zero = zero;
        one.strategy.parallel.schedule = schedule;
        one.strategy.parallel.chunks = 2;
        if (!plan::validate(one.spec, one.strategy).empty()) {
          ADD_FAILURE() << plan::validate(one.spec, one.strategy).front();
          continue;
        }
        SCOPED_TRACE(fmt::format("{} {}", one.name, plan::describe(one.strategy.parallel)));
        expect_same_bits(train_on_ranks(one, {at::kCPU}, late()), want);
      }
    }
  }
}

// ---- planted faults --------------------------------------------------------------------------------

bool ends_alike(const TrainingCase& one, const Trained& want,
                const std::function<void(plan::Program&)>& change) {
  std::atomic<bool> alike = true;
  comm::run_ranks(
      static_cast<int>(one.strategy.parallel.world()),
      [&](comm::World& world) {
        const RankTrained got = train_rank(one, world, at::kCPU, change);
        for (size_t part = 0; part < want.weights.size(); ++part) {
          if (got.has(part) && !at::equal(got.compute[part], want.weights[part])) alike = false;
        }
      },
      late());
  return alike;
}

// The n-th instruction of a kind; null: the rank has fewer.
plan::Instruction* nth(plan::Program& program, plan::OpKind kind, int n) {
  for (plan::Instruction& instruction : program.instructions) {
    if (instruction.kind == kind && n-- == 0) return &instruction;
  }
  return nullptr;
}

TEST_F(PipelineStepTest, AFaultInTheProgramChangesTheResult) {
  TrainingCase one{"deep", deep(4), strategy_for(8, 4, 2, 12), {}};
  const Trained want = train(one, at::kCPU);
  one.strategy.parallel.pp = 2;
  one.strategy.parallel.schedule = plan::ScheduleKind::kZeroBubbleH1;
  EXPECT_TRUE(ends_alike(one, want, {}));
  EXPECT_FALSE(ends_alike(one, want, [](plan::Program& program) {  // a wait is missing
    const plan::Instruction* const receive = nth(program, plan::OpKind::kReceive, 2);
    for (plan::Instruction& instruction : program.instructions)
      std::erase(instruction.depends_on, receive->id);
  }));
  EXPECT_FALSE(ends_alike(one, want, [](plan::Program& program) {  // a message is another part's
    if (program.rank == 0) --nth(program, plan::OpKind::kSend, 3)->part;
  }));
  EXPECT_FALSE(ends_alike(one, want, [](plan::Program& program) {  // a lane is added twice
    plan::Instruction* const combine = nth(program, plan::OpKind::kCombineLanes, 0);
    combine->right_lane = combine->lane;
  }));
}

// ---- draws -----------------------------------------------------------------------------------------

class Draws {
 public:
  explicit Draws(uint64_t seed) : random_(seed) {}

  TrainingCase next() {
    while (true) {
      TrainingCase one{"", spec(), strategy_for(1, 1, 2, 12), {}};
      plan::Strategy& strategy = one.strategy;
      strategy.lanes = pick<int64_t>({1, 2, 4, 8});
      strategy.micro = pick<int64_t>({1, 2});
      strategy.sequences = strategy.micro * strategy.lanes * pick<int64_t>({1, 2, 3});
      strategy.precision = pick<plan::Precision>({plan::Precision::kFp32, plan::Precision::kBf16});
      strategy.delay_weight_gradients = pick<int>({0, 0, 1}) != 0;
      strategy.recompute = plan::recompute_from_names(
          one.spec, pick<std::vector<std::string>>(
                        {{"none"}, {"selective"}, {"full"}, {"attention", "layer.1:selective"}}));
      if (pick<int>({0, 0, 1}) != 0) one.optimizer.kind = optim::OptimizerKind::kMuon;
      strategy.whole_matrices = one.optimizer.kind == optim::OptimizerKind::kMuon;
      plan::Parallel& parallel = strategy.parallel;
      parallel.schedule = pick<plan::ScheduleKind>({kSchedules.begin(), kSchedules.end()});
      const int fixed = plan::fixed_chunks(parallel.schedule);
      parallel.chunks = fixed > 0 ? fixed : pick<int64_t>({2, 3});
      parallel.pp = pick<int64_t>({1, 2, 2, 3, 4});
      if (parallel.pp == 1) parallel.chunks = 1;
      parallel.dp = pick<int64_t>({1, 1, 2, 3, 4});
      parallel.zero = pick<int64_t>({0, 1, 2, 3, 3});
      if (parallel.zero > 0 && parallel.dp == 4) parallel.shard = pick<int64_t>({0, 2});
      strategy.weights_ahead = pick<int64_t>({0, 1, 1, 3});
      if (parallel.world() > 8 || !plan::validate(one.spec, strategy).empty()) continue;
      one.name = fmt::format("{}, {}, {} sequences by {} in {} lanes, {}", one.spec.family,
                             plan::describe(parallel), strategy.sequences, strategy.micro,
                             strategy.lanes, to_string(strategy.precision));
      return one;
    }
  }

 private:
  template <class T>
  T pick(std::vector<T> values) {
    return values[random_() % values.size()];
  }

  model::ModelSpec spec() {
    const uint64_t shapes = 1 + random_() % 50;
    if (random_() % 2 == 0) {
      const std::vector<model::ModelSpec> all = nn::testing::tiny_specs(shapes);
      return all[random_() % all.size()];
    }
    const auto variants = nn::testing::moe_variants();
    const int layers = pick<int>({3, 5, 7});
    return random_() % 2 == 0
               ? deep(layers, shapes)
               : deep_moe(variants[random_() % variants.size()].name, layers, shapes);
  }

  std::mt19937_64 random_;
};

TEST_F(PipelineStepTest, AnyDrawEndsWithTheBitsOfOneRank) {
  constexpr uint64_t kDraws = 300;
  for (uint64_t seed = 1; seed <= kDraws; ++seed) {
    TrainingCase one = Draws(seed).next();
    SCOPED_TRACE(fmt::format("Draws({}).next(): {}", seed, one.name));
    Trained got;
    ASSERT_NO_THROW(got = train_on_ranks(one, {at::kCPU}));
    one.strategy.parallel = {};
    one.strategy.delay_weight_gradients = false;
    one.strategy.recompute.clear();
    expect_same_bits(got, train(one, at::kCPU));
    if (HasFailure()) break;
  }
}

}  // namespace
}  // namespace trireme::execute
