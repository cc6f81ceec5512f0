// What the planner says that a rank holds, against what its device's allocator held.
#include <gtest/gtest.h>

#include "trireme/execute/kernel_workspace.h"
#include "trireme/execute/testing/trained_ranks.h"
#include "trireme/plan/schedule.h"
#include "trireme/plan/simulate.h"

namespace trireme::execute {
namespace {

model::ModelSpec medium() {
  return model::spec_from_config(
      R"({"model_type":"llama","vocab_size":1000,"hidden_size":128,"intermediate_size":320,
          "num_hidden_layers":6,"num_attention_heads":4,"num_key_value_heads":2,
          "max_position_embeddings":128})",
      "test");
}

/// By rank: the peak of a step, predicted / measured.
std::vector<double> ratios(const model::ModelSpec& spec, const plan::Strategy& strategy) {
  const auto ranks = static_cast<size_t>(strategy.parallel.world());
  std::vector<device::Device*> devices;
  for (size_t rank = 0; rank < ranks; ++rank)
    devices.push_back(&device::get_device(fmt::format("sim:{}", rank)));
  std::vector<double> result(ranks);
  comm::run_ranks(static_cast<int>(ranks), [&](comm::World& world) {
    const auto rank = static_cast<size_t>(world.rank());
    device::Device& device = *devices[rank];
    const int64_t before = device.memory().allocated_bytes;
    const plan::Program program = plan::build_program(spec, strategy, world.rank());
    const bool bf16 = strategy.precision == plan::Precision::kBf16;
    nn::ParameterStore store(spec, bf16 ? at::kBFloat16 : at::kFloat, at::kFloat,
                             device.torch_device(), master_shares(spec, program), program.has_part,
                             gathered_parts(spec, program));
    store.initialize(1);
    nn::Model model(store);
    const auto optimizer = optim::make_optimizer(
        {}, spec, device.torch_device(), optim::StatePlace::kDevice, state_shares(spec, program));
    Executor executor(model, store, *optimizer, &world);
    const std::vector<data::Batch> all =
        random_batches(spec, strategy.micro_batches(), strategy.micro, strategy.seq_len, 3);
    StepInput input;
    for (const int64_t index : program.micro_batches())
      input.micro_batches.push_back(all.at(static_cast<size_t>(index)));
    const StepResult step = executor.run_step(program, input);
    result[rank] = static_cast<double>(plan::simulate_in_issue_order(program).peak_bytes) /
                   static_cast<double>(step.peak_allocated_bytes - before);
    executor.settle();
  });
  return result;
}

plan::Strategy strategy_on_devices() {
  plan::Strategy strategy = strategy_for(8, 8, 4, 128);
  strategy.kernels = kernel_workspace(device::get_device("sim:0").torch_device());
  return strategy;
}

TEST(RankMemory, OfEveryStageIsWhatTheAllocatorHeld) {
  plan::Strategy strategy = strategy_on_devices();
  strategy.parallel.pp = 2;
  for (const auto schedule :
       {plan::ScheduleKind::kGPipe, plan::ScheduleKind::k1F1B, plan::ScheduleKind::kZeroBubbleH1,
        plan::ScheduleKind::kZeroBubbleV, plan::ScheduleKind::kVHalf}) {
    strategy.parallel.schedule = schedule;
    strategy.parallel.chunks = plan::fixed_chunks(schedule);
    for (const double ratio : ratios(medium(), strategy))
      EXPECT_NEAR(ratio, 1.0, 0.02) << to_string(schedule);
  }
}

TEST(RankMemory, OfRanksThatShareIsWhatTheAllocatorHeld) {
  plan::Strategy strategy = strategy_on_devices();
  strategy.precision = plan::Precision::kBf16;
  strategy.parallel.dp = 2;
  for (const auto reduction : {plan::Reduction::kExact, plan::Reduction::kFast}) {
    strategy.parallel.reduction = reduction;
    for (const auto sums : {plan::Precision::kFp32, plan::Precision::kBf16}) {
      strategy.gradient_sums = sums;
      for (const int64_t zero : {0, 1, 2, 3}) {
        strategy.parallel.zero = zero;
        for (const double ratio : ratios(medium(), strategy))
          EXPECT_NEAR(ratio, 1.0, 0.02)
              << describe(strategy.parallel) << ", sums in " << to_string(sums);
      }
    }
  }
}

}  // namespace
}  // namespace trireme::execute
