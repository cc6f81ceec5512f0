// How long ranks of a pipeline idle, on the simulated device's clock: as the schedule's own timeline says, from the time that each
// stage's work takes. A clock that nobody's machine disturbs, so this is a test and no benchmark.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>

#include "trireme/device/sim/sim.h"
#include "trireme/execute/testing/deep_models.h"
#include "trireme/execute/testing/trained_ranks.h"
#include "trireme/plan/pipeline_writer.h"

namespace trireme::execute {
namespace {

[[maybe_unused]] const int kAllDevices = ::setenv("TRIREME_SIM_DEVICES", "16", 0);

class PipelineBubbleTest : public ExecutorTest {
 protected:
  void SetUp() override {
    ExecutorTest::SetUp();
    for (int rank = 0; rank < 8; ++rank) device::get_device(fmt::format("sim:{}", rank));
    auto profile = std::make_shared<device::sim::DeviceProfile>();
    profile->flops_per_s[c10::kFloat] = 1e9;
    device::sim::set_profile(profile);
  }
  void TearDown() override {
    device::sim::set_profile(nullptr);
    device::sim::restart_clock();
  }
};

model::ModelSpec layers(int count) {
  Json config = parse_json(
      R"({"model_type":"llama","vocab_size":32,"hidden_size":16,"intermediate_size":48,
          "num_attention_heads":2,"num_key_value_heads":2,"max_position_embeddings":32,
          "tie_word_embeddings":false})",
      "test");
  config["num_hidden_layers"] = count;
  return model::spec_from_config(config.dump(), "test");
}

struct Measured {
  double step_s = 0.0;
  double busy_s = 0.0;  ///< of all ranks
  std::vector<plan::StageCost> costs;
};

Measured run(const TrainingCase& one) {
  device::sim::restart_clock();
  comm::LocalOptions options;
  options.simulated_clock = true;
  const auto ranks = static_cast<size_t>(one.strategy.parallel.world());
  std::vector<double> seconds(ranks);
  std::vector<double> busy(ranks);
  Measured measured;
  measured.costs.assign(static_cast<size_t>(one.strategy.parallel.stages()), {0.0, 0.0, 0.0});
  std::mutex mutex;
  comm::run_ranks(
      static_cast<int>(ranks),
      [&](comm::World& world) {
        const auto rank = static_cast<size_t>(world.rank());
        device::Device& device = device::get_device(fmt::format("sim:{}", world.rank()));
        std::vector<double> ends;
        const RankTrained trained = train_rank(one, world, device.torch_device(), {}, [&] {
          ends.push_back(device::sim::simulated_seconds(world.rank()));
        });
        seconds[rank] = (ends.at(2) - ends.at(0)) / 2.0;
        const plan::Program program = plan::build_program(one.spec, one.strategy, world.rank());
        const std::lock_guard lock(mutex);
        for (const plan::Instruction& instruction : program.instructions) {
          if (instruction.resource != plan::Resource::kCompute || instruction.micro_batch < 0)
            continue;
          const double took =
              trained.steps.back().measurements[static_cast<size_t>(instruction.id)].duration_s;
          busy[rank] += took;
          const auto stage = std::ranges::find_if(program.stages, [&](const auto& of) {
            return instruction.part >= of.first_part && instruction.part < of.end_part;
          });
          plan::StageCost& cost =
              measured.costs[static_cast<size_t>(stage - program.stages.begin())];
          double& part = instruction.kind == plan::OpKind::kForward          ? cost.forward
                         : instruction.kind == plan::OpKind::kBackwardWeight ? cost.backward_weight
                                                                             : cost.backward_input;
          part += took / static_cast<double>(one.strategy.micro_batches());
        }
      },
      options);
  measured.step_s = *std::ranges::max_element(seconds);
  for (const double one_rank : busy) measured.busy_s += one_rank;
  return measured;
}

TEST_F(PipelineBubbleTest, IsWhatTheScheduleSays) {
  // Everything that is asked of bench/overlap; a test has the shorter ones.
  const bool all = std::getenv("TRIREME_WHOLE_BENCH") != nullptr;
  for (const auto kind : kSchedules) {
    for (const int p : {2, 4, 8}) {
      if (p > 2 && !all) continue;
      for (const int m : {p, 2 * p, 4 * p, 8 * p}) {
        if (m > 4 * p && !all) continue;
        const int fixed = plan::fixed_chunks(kind);
        TrainingCase one;
        one.strategy = strategy_for(m, 1, 1, 16);
        plan::Parallel& parallel = one.strategy.parallel;
        parallel.pp = p;
        parallel.schedule = kind;
        parallel.chunks = fixed > 0 ? fixed : 2;
        // Embedding and head are stages' share of the work too: a layer more makes them even.
        one.spec = layers(2 * static_cast<int>(parallel.stages()) - 1);
        if (!plan::validate(one.spec, one.strategy).empty()) continue;
        SCOPED_TRACE(fmt::format("{} on {} ranks, {} micro-batches", to_string(kind), p, m));
        const Measured measured = run(one);
        const plan::PipelineLayout layout =
            plan::pipeline_layout(one.spec, one.strategy, one.strategy.micro_batches());
        const plan::ScheduleTimeline timeline = plan::run_schedule(layout.schedule, measured.costs);
        const double bubble = 1.0 - measured.busy_s / (p * measured.step_s);
        EXPECT_NEAR(bubble, timeline.bubble_share(), 0.02);
        std::printf("%-12s p %d, m %2d: bubble %5.1f %%, of the schedule %5.1f %%\n",
                    plan::to_string(kind), p, m, 100.0 * bubble, 100.0 * timeline.bubble_share());
      }
    }
  }
}

}  // namespace
}  // namespace trireme::execute
