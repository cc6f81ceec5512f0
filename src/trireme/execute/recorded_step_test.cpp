// Recorded work trains to the bits of work that is issued each time, in the memory that was planned.
#include <random>

#include "trireme/device/sim/sim.h"
#include "trireme/execute/kernel_workspace.h"
#include "trireme/execute/testing/trained_ranks.h"
#include "trireme/plan/recorded_work.h"
#include "trireme/plan/simulate.h"

namespace trireme::execute {
namespace {

using plan::Precision;
using plan::Recompute;

using RecordedStepTest = ExecutorTest;

TrainingCase drawn(uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto pick = [&](auto... values) {
    const std::common_type_t<decltype(values)...> all[] = {values...};
    return all[random() % sizeof...(values)];
  };
  std::vector<std::string> experts;
  for (const auto& variant : nn::testing::moe_variants()) experts.push_back(variant.name);
  TrainingCase one;
  const uint64_t family = random() % 4;
  one.spec = family == 0   ? tiny(0)
             : family == 1 ? tiny(3)
             : family == 2 ? tiny_deepseek(1)
                           : tiny_moe(experts[random() % experts.size()]);
  one.strategy = strategy_for(4, pick(1, 2, 4), 2, 12);
  one.strategy.precision = pick(Precision::kFp32, Precision::kBf16);
  one.strategy.delay_weight_gradients = random() % 3 == 0;
  for (size_t part = 0; part < one.spec.parts.size(); ++part)
    one.strategy.recompute.push_back(
        pick(Recompute::kNone, Recompute::kSelective, Recompute::kFull));
  one.one_document = random() % 4 != 0;
  one.name = fmt::format("seed {}: family {}, {} lanes{}", seed, family, one.strategy.lanes,
                         one.one_document ? ", one document" : "");
  return one;
}

TEST_F(RecordedStepTest, TrainsToTheSameBits) {
  const at::Device sim = device::get_device("sim:1").torch_device();
  for (uint64_t seed = 0; seed < 24; ++seed) {
    TrainingCase one = drawn(seed);
    SCOPED_TRACE(one.name);
    const Trained want = train(one, at::kCPU);
    one.strategy.record = true;
    device::sim::set_schedule(
        seed % 2 == 0 ? device::sim::Schedule::kLate : device::sim::Schedule::kShuffled, seed);
    const Trained got = train(one, sim);
    expect_same_bits(got, want);
    const plan::Program program = plan::build_program(one.spec, one.strategy);
    const plan::RecordedWork work = plan::recorded_work(one.spec, program);
    const auto runs = static_cast<int64_t>(work.runs.size());
    EXPECT_EQ(got.steps[0].runs_replayed, 0);
    if (one.one_document) {
      EXPECT_EQ(got.steps[1].runs_replayed, runs);
      EXPECT_EQ(got.steps[2].runs_replayed, runs);
      EXPECT_EQ(got.steps[2].runs_recorded, 0);
    } else {
      EXPECT_LT(got.steps[2].runs_replayed, runs);  // hardly a micro-batch has one document a row
    }
    EXPECT_LE(got.steps[1].runs_recorded, got.steps[1].runs_replayed);
  }
  device::sim::set_schedule(device::sim::Schedule::kLate);
}

TEST_F(RecordedStepTest, LanesShareWhatIsAlike) {
  TrainingCase one{"", tiny(3), strategy_for(4, 2, 2, 12), {}};
  one.strategy.record = true;
  one.one_document = true;
  const Trained got = train(one, device::get_device("sim").torch_device());
  // Two runs of each of two lanes' first and second micro-batches; the second lane has accumulators of its own.
  EXPECT_EQ(got.steps[1].runs_recorded, 8);
  one.strategy.lanes = 1;
  // The first micro-batch writes, all others add.
  EXPECT_EQ(train(one, device::get_device("sim").torch_device()).steps[1].runs_recorded, 4);
}

TEST_F(RecordedStepTest, OverRanksToo) {
  for (const int64_t zero : {0, 2}) {
    TrainingCase one{"", tiny(3), strategy_for(4, 4, 2, 12), {}};
    one.one_document = true;
    const Trained want = train(one, at::kCPU);
    one.strategy.parallel.dp = 2;
    one.strategy.parallel.zero = zero;
    one.strategy.record = true;
    const Trained got = train_on_ranks(one, {device::get_device("sim").torch_device(),
                                             device::get_device("sim:1").torch_device()});
    expect_same_bits(got, want);
    EXPECT_GT(got.steps[2].runs_replayed, 0);
    EXPECT_EQ(got.steps[2].runs_recorded, 0);
  }
}

TEST_F(RecordedStepTest, HoldsWhatWasPlanned) {
  device::Device& device = device::get_device("sim");
  for (const int64_t lanes : {1, 4}) {
    for (const Recompute recompute : {Recompute::kNone, Recompute::kFull}) {
      TrainingCase one;
      one.spec = model::spec_from_config(
          R"({"model_type":"llama","vocab_size":1000,"hidden_size":128,"intermediate_size":320,
              "num_hidden_layers":3,"num_attention_heads":4,"num_key_value_heads":2,
              "max_position_embeddings":128})",
          "test");
      one.strategy = strategy_for(4, lanes, 2, 128);
      one.strategy.recompute.assign(one.spec.parts.size(), recompute);
      one.strategy.kernels = kernel_workspace(device.torch_device(), one.strategy.precision);
      one.strategy.record = true;
      one.one_document = true;
      const auto planned =
          plan::simulate_in_issue_order(plan::build_program(one.spec, one.strategy));
      const int64_t before = device.memory().allocated_bytes;
      const Trained trained = train(one, device.torch_device());
      const auto held = static_cast<double>(trained.steps.back().peak_allocated_bytes - before);
      EXPECT_NEAR(held / static_cast<double>(planned.peak_bytes), 1.0, 0.02)
          << lanes << " lanes, " << plan::to_string(recompute) << ": " << held;
    }
  }
}

TEST_F(RecordedStepTest, OneLaunchARunSavesTheOthers) {
  TrainingCase one{"", tiny(3), strategy_for(4, 2, 2, 12), {}};
  one.one_document = true;
  auto profile = std::make_shared<device::sim::DeviceProfile>();
  profile->launch_latency_s = 1e-5;
  const auto seconds = [&](bool record) {
    one.strategy.record = record;
    device::sim::set_profile(profile);
    device::sim::restart_clock();
    const Trained trained = train(one, device::get_device("sim").torch_device());
    device::sim::set_profile(nullptr);
    double compute = 0.0;
    for (const plan::Measurement& measured : trained.steps.back().measurements)
      compute += measured.duration_s;
    return compute;
  };
  // Nothing but launches takes time.
  EXPECT_LT(seconds(true), 0.5 * seconds(false));
}

TEST_F(RecordedStepTest, ACpuRecordsNothing) {
  TrainingCase one{"", tiny(3), strategy_for(4, 2, 2, 12), {}};
  one.strategy.record = true;
  one.one_document = true;
  EXPECT_THROW(train(one, at::kCPU), Error);
}

}  // namespace
}  // namespace trireme::execute
