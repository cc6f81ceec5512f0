// What the planner says that a stage holds, against what its device's allocator held.
#include <gtest/gtest.h>

#include "trireme/execute/kernel_workspace.h"
#include "trireme/execute/testing/trained_ranks.h"
#include "trireme/plan/schedule.h"
#include "trireme/plan/simulate.h"

namespace trireme::execute {
namespace {

TEST(PipelineMemory, OfEveryStageIsWhatTheAllocatorHeld) {
  const model::ModelSpec spec = model::spec_from_config(
      R"({"model_type":"llama","vocab_size":1000,"hidden_size":128,"intermediate_size":320,
          "num_hidden_layers":6,"num_attention_heads":4,"num_key_value_heads":2,
          "max_position_embeddings":128})",
      "test");
  std::vector<device::Device*> devices;
  for (const char* name : {"sim:0", "sim:1"}) devices.push_back(&device::get_device(name));
  plan::Strategy strategy = strategy_for(8, 8, 4, 128);
  strategy.kernels = kernel_workspace(devices.front()->torch_device());
  strategy.parallel.pp = 2;
  for (const auto schedule :
       {plan::ScheduleKind::kGPipe, plan::ScheduleKind::k1F1B, plan::ScheduleKind::kZeroBubbleH1,
        plan::ScheduleKind::kZeroBubbleV, plan::ScheduleKind::kVHalf}) {
    strategy.parallel.schedule = schedule;
    strategy.parallel.chunks = plan::fixed_chunks(schedule);
    std::vector<double> ratios(2);
    comm::run_ranks(2, [&](comm::World& world) {
      const auto rank = static_cast<size_t>(world.rank());
      device::Device& device = *devices[rank];
      const int64_t before = device.memory().allocated_bytes;
      const plan::Program program = plan::build_program(spec, strategy, world.rank());
      nn::ParameterStore store(spec, at::kFloat, at::kFloat, device.torch_device(), {},
                               program.has_part);
      store.initialize(1);
      nn::Model model(store);
      const auto optimizer = optim::make_optimizer(
          {}, spec, device.torch_device(), optim::StatePlace::kDevice, state_shares(spec, program));
      Executor executor(model, store, *optimizer, &world);
      StepInput input;
      input.micro_batches = random_batches(spec, 8, 4, 128, 3);
      const StepResult result = executor.run_step(program, input);
      ratios[rank] = static_cast<double>(plan::simulate_in_issue_order(program).peak_bytes) /
                     static_cast<double>(result.peak_allocated_bytes - before);
    });
    for (size_t rank = 0; rank < ratios.size(); ++rank)
      EXPECT_NEAR(ratios[rank], 1.0, 0.02) << to_string(schedule) << ", rank " << rank;
  }
}

}  // namespace
}  // namespace trireme::execute
