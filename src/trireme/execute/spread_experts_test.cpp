// Experts that are spread over ranks: the bits of one rank, whatever the routing, and what happens where a step goes wrong.
#include <gtest/gtest.h>

#include "trireme/execute/stage_evaluation.h"
#include "trireme/execute/testing/planted_faults.h"
#include "trireme/execute/testing/trained_ranks.h"

namespace trireme::execute {
namespace {

model::ModelSpec with_moe(const std::function<void(model::MoeSpec&)>& change) {
  model::MoeSpec moe;
  moe.num_experts = 8;
  moe.top_k = 2;
  moe.expert.hidden = 12;
  change(moe);
  return nn::testing::with_experts(tiny(3), moe, 0);
}

plan::Strategy spread(int64_t dp, int64_t ep, int64_t zero) {
  plan::Strategy strategy = strategy_for(8, 4, 2, 12);
  strategy.parallel.dp = dp;
  strategy.parallel.ep = ep;
  strategy.parallel.zero = zero;
  return strategy;
}

std::vector<TrainingCase> cases() {
  optim::OptimizerConfig muon;
  muon.kind = optim::OptimizerKind::kMuon;
  std::vector<TrainingCase> all = {
      {"balanced",
       with_moe([](model::MoeSpec& m) {
         m.aux_loss = 0.1;
         m.z_loss = 0.02;
       }),
       {},
       muon},
      {"biases, clamped",
       with_moe([](model::MoeSpec& m) {
         m.softmax_after_top_k = true;
         m.router_bias = true;
         m.expert.bias = true;
         m.clamp_limit = 0.4;
       }),
       {},
       {}},
      {"capacity, shared expert",
       with_moe([](model::MoeSpec& m) {
         m.capacity_factor = 0.8;
         m.shared_hidden = 8;
         m.shared_gate = true;
       }),
       {},
       {}},
      {"padded",
       with_moe([](model::MoeSpec& m) {
         m.capacity_factor = 1.1;
         m.pad_to_capacity = true;
       }),
       {},
       {}},
      {"selection bias",
       with_moe([](model::MoeSpec& m) {
         m.score = model::ScoreFunction::kSigmoid;
         m.normalize = true;
         m.selection_bias = true;
         m.num_groups = 4;
         m.top_groups = 2;
         m.group_score_top2 = true;
       }),
       {},
       {}},
      {"one expert a token", with_moe([](model::MoeSpec& m) { m.top_k = 1; }), {}, {}},
  };
  return all;
}

TEST(SpreadExpertsTest, EndWithTheBitsOfOneRank) {
  for (TrainingCase one : cases()) {
    for (const auto precision : {plan::Precision::kFp32, plan::Precision::kBf16}) {
      const auto prepare = [&](plan::Strategy strategy) {
        strategy.precision = precision;
        strategy.whole_matrices = one.optimizer.kind == optim::OptimizerKind::kMuon;
        return strategy;
      };
      one.strategy = prepare(spread(1, 1, 0));
      const Trained want = train(one, at::kCPU);
      for (const auto& [dp, ep] : {std::pair{2, 2}, {4, 2}, {4, 4}}) {
        for (const int64_t zero : {0, 1, 2, 3}) {
          one.strategy = prepare(spread(dp, ep, zero));
          one.strategy.in_turn = zero == 1 ? 1 : 0;
          SCOPED_TRACE(fmt::format("{} {} {}", one.name, to_string(precision),
                                   plan::describe(one.strategy.parallel)));
          expect_same_bits(train_on_ranks(one, {at::kCPU}), want);
        }
      }
    }
  }
}

// A router that sends every token to the same expert: most ranks get no row at all.
TEST(SpreadExpertsTest, RanksThatGetNoRowsChangeNothing) {
  TrainingCase one{"lonely", with_moe([](model::MoeSpec& m) { m.router_bias = true; }), {}, {}};
  for (model::ParameterSpec& parameter : one.spec.parameters) {
    // Equal logits: the lowest numbers are chosen.
    if (parameter.role == model::Role::kRouter || parameter.name.ends_with("gate.bias"))
      parameter.init.kind = model::InitKind::kZeros;
  }
  one.strategy = spread(1, 1, 0);
  const Trained want = train(one, at::kCPU);
  EXPECT_EQ(want.steps.front().routers.begin()->second.load.back(), 0);
  one.strategy = spread(4, 4, 2);
  expect_same_bits(train_on_ranks(one, {at::kCPU}), want);
}

TEST(SpreadExpertsTest, PipelinesRecomputeDelayAndManyMicroBatchesChangeNothing) {
  TrainingCase one{"balanced", cases().front().spec, spread(1, 1, 0), {}};
  one.strategy.sequences = 16;
  const Trained want = train(one, at::kCPU);
  for (const auto kind : {plan::ScheduleKind::k1F1B, plan::ScheduleKind::kZeroBubbleV,
                          plan::ScheduleKind::kDualPipeV}) {
    for (const auto& [dp, ep, zero] : {std::tuple{2, 2, 0}, {4, 2, 1}, {4, 4, 2}, {4, 2, 3}}) {
      one.strategy = spread(dp, ep, zero);
      one.strategy.sequences = 16;
      one.strategy.parallel.pp = 2;
      one.strategy.parallel.schedule = kind;
      one.strategy.parallel.chunks = kind == plan::ScheduleKind::k1F1B ? 1 : 2;
      one.strategy.delay_weight_gradients = zero == 1;
      for (size_t part = 0; part < one.spec.parts.size(); ++part) {
        if (zero > 1) one.strategy.recompute.push_back(plan::Recompute::kFull);
      }
      SCOPED_TRACE(plan::describe(one.strategy.parallel));
      expect_same_bits(train_on_ranks(one, {at::kCPU}), want);
    }
  }
}

TEST(SpreadExpertsTest, RanksOnSimulatedDevicesEndWithTheBitsOfOneCpu) {
  TrainingCase one{"balanced", cases().front().spec, spread(1, 1, 0), {}};
  const Trained want = train(one, at::kCPU);
  one.strategy = spread(2, 2, 1);
  one.strategy.offload_optimizer = true;
  std::vector<at::Device> devices;
  for (const char* name : {"sim:0", "sim:1"})
    devices.push_back(device::get_device(name).torch_device());
  expect_same_bits(train_on_ranks(one, devices), want);
}

comm::LocalOptions late() {
  comm::LocalOptions options;
  options.late = true;
  options.timeout_s = 5.0;
  return options;
}

/// Whether ranks whose programs `change` has changed end with these weights. Over a transport that moves bytes only when somebody
/// waits for them, so that a wait that is missing shows every time.
bool ends_alike(const TrainingCase& one, const Trained& want,
                const std::function<void(plan::Program&)>& change) {
  const auto ranks = static_cast<size_t>(one.strategy.parallel.world());
  std::vector<RankTrained> all(ranks);
  try {
    comm::run_ranks(
        static_cast<int>(ranks),
        [&](comm::World& world) {
          all[static_cast<size_t>(world.rank())] = train_rank(one, world, at::kCPU, change);
        },
        late());
  } catch (const std::exception&) {
    return false;
  }
  for (size_t part = 0; part < want.weights.size(); ++part) {
    if (!at::equal(whole_part(one, all, static_cast<int>(part)).masters, want.weights[part]))
      return false;
  }
  return true;
}

/// The first instruction of rank 0 that is like that.
plan::Instruction& first_of(plan::Program& program,
                            const std::function<bool(const plan::Instruction&)>& like) {
  const auto found = std::ranges::find_if(program.instructions, like);
  EXPECT_NE(found, program.instructions.end());
  return *found;
}

TEST(SpreadExpertsTest, AFaultInTheProgramIsNoticed) {
  using plan::Instruction;
  using plan::OpKind;
  using plan::Program;
  TrainingCase one{"balanced", cases().front().spec, spread(1, 1, 0), {}};
  const Trained want = train(one, at::kCPU);
  one.strategy = spread(2, 2, 0);
  ASSERT_TRUE(ends_alike(one, want, [](Program&) {}));
  const auto on_rank_0 = [&](const std::function<void(Program&)>& change) {
    return ends_alike(one, want, [&](Program& program) {
      if (program.rank == 0) change(program);
    });
  };
  for (const bool of_gradient : {false, true}) {
    for (const int phase : {1, 2}) {
      EXPECT_FALSE(ends_alike(
          one, want,
          [&](Program& program) {
            forget_waits_for(program, first_of(program, [&](const Instruction& i) {
                                        return i.kind == OpKind::kExchangeRows &&
                                               i.of_gradient == of_gradient && i.phase == phase;
                                      }).id);
          }))
          << "no wait, gradient " << of_gradient << ", phase " << phase;
    }
  }
  EXPECT_FALSE(ends_alike(one, want, [&](Program& program) {
    forget_waits_for(program, nth(program, OpKind::kExchangeCounts, 0)->id);
  })) << "no wait for counts";
  const auto of_experts = [](OpKind kind, int64_t lane) {
    return [=](const Instruction& i) { return i.kind == kind && i.lane == lane && i.part == 4; };
  };
  EXPECT_FALSE(on_rank_0([&](Program& program) {
    Instruction& mine = first_of(program, of_experts(OpKind::kBackwardWeight, 0));
    Instruction& other = first_of(program, of_experts(OpKind::kBackwardWeight, 2));
    std::swap(mine.lane, other.lane);
  })) << "gradients into another's lane";
  EXPECT_FALSE(on_rank_0([&](Program& program) {
    Instruction& other = first_of(program, of_experts(OpKind::kForward, 2));
    other.micro_batch = first_of(program, of_experts(OpKind::kForward, 0)).micro_batch;
  })) << "one source's rows twice";
  EXPECT_FALSE(on_rank_0([&](Program& program) {
    Instruction& combine = first_of(program, [](const Instruction& i) {
      return i.kind == OpKind::kCombineLanes && i.part == 4;
    });
    std::swap(combine.lane, combine.right_lane);
    combine.lane = combine.right_lane;
  })) << "a lane added to itself";
}

TEST(SpreadExpertsTest, LossesOfValidationAreThoseOfOneRank) {
  const model::ModelSpec spec = cases().front().spec;
  nn::ParameterStore whole(spec);
  whole.initialize(6);
  nn::Model alone(whole);
  const std::vector<data::Batch> batches = random_batches(spec, 5, 2, 12, 77);
  std::vector<double> want;
  for (const data::Batch& batch : batches) want.push_back(evaluate(alone, batch).loss_sum);
  const plan::Strategy strategy = spread(4, 4, 0);
  comm::run_ranks(4, [&](comm::World& world) {
    const plan::Program program = plan::build_program(spec, strategy, world.rank());
    nn::ParameterStore store(plan::local_spec(spec, strategy.parallel, world.rank()));
    store.initialize(6);
    nn::Model model(store);
    StageEvaluation stages(model, store, program, world);
    ASSERT_EQ(stages.batches_at_once(), 1);
    // The second round has a batch for the first rank alone.
    for (size_t round = 0; round < 2; ++round) {
      const size_t i = 4 * round + static_cast<size_t>(world.rank());
      std::vector<data::Batch> mine;
      if (i < batches.size()) mine.push_back(batches[i]);
      const auto results = stages.evaluate(mine, 0);
      ASSERT_EQ(results.size(), mine.size());
      if (!mine.empty()) {
        EXPECT_EQ(results[0].loss_sum, want[i]);
      }
    }
  });
}

// Of even routing each rank has 1/ep of the experts' weights, gradients and states; a row goes there and back twice.
TEST(SpreadExpertsTest, RanksHoldAndSendTheirShare) {
  const model::ModelSpec spec = cases().front().spec;
  int64_t experts = 0;
  for (const model::ParameterSpec& parameter : spec.parameters)
    experts += parameter.is_expert() ? parameter.numel() : 0;
  const plan::Program alone = plan::build_program(spec, spread(4, 1, 0), 0);
  const plan::Program mine = plan::build_program(spec, spread(4, 4, 0), 0);
  // Masters and two states in float32.
  EXPECT_EQ(alone.resident_bytes - mine.resident_bytes, 12 * experts * 3 / 4);
  int64_t rows = 0;
  for (const plan::Instruction& instruction : mine.instructions)
    rows += instruction.kind == plan::OpKind::kExchangeRows ? 1 : 0;
  EXPECT_EQ(rows, 4 * static_cast<int64_t>(spec.layers.size()) *
                      static_cast<int64_t>(mine.micro_batches().size()));
}

}  // namespace
}  // namespace trireme::execute
