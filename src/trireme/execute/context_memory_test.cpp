// What the planner says that ranks hold which share sequences, against what the allocator held.
#include <gtest/gtest.h>

#include "trireme/execute/kernel_workspace.h"
#include "trireme/execute/testing/echo_world.h"
#include "trireme/execute/testing/step_fixture.h"
#include "trireme/nn/testing/attention_specs.h"
#include "trireme/plan/simulate.h"

namespace trireme::execute {
namespace {

class ContextMemory : public ExecutorTest,
                      public ::testing::WithParamInterface<plan::ContextKind> {};

INSTANTIATE_TEST_SUITE_P(Kinds, ContextMemory,
                         ::testing::Values(plan::ContextKind::kGather, plan::ContextKind::kRing),
                         [](const auto& info) { return plan::to_string(info.param); });

model::ModelSpec medium(const std::string& family) {
  if (family == "sinks") return nn::testing::with_sinks(medium("llama"));
  return model::spec_from_config(
      fmt::format(R"({{"model_type":"{}","vocab_size":1000,"hidden_size":128,
      "intermediate_size":320,"num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,{}
      "max_position_embeddings":256}})",
                  family, family == "olmo2" ? "" : R"("head_dim":32,)"),
      "test");
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

// Peaks, and what is held after every instruction of a micro-batch, of the first and the last rank.
TEST_P(ContextMemory, OfEveryInstructionIsWhatTheAllocatorHeld) {
  device::Device& device = device::get_device("cpu");
  for (const char* family : {"llama", "qwen3", "gemma2", "olmo2", "sinks"}) {
    const model::ModelSpec spec = medium(family);
    for (const auto recompute :
         {plan::Recompute::kNone, plan::Recompute::kSelective, plan::Recompute::kFull}) {
      for (const auto precision : {plan::Precision::kFp32, plan::Precision::kBf16}) {
        for (const auto& [cp, rank] : {std::pair{2, 0}, {2, 1}, {4, 0}, {4, 3}}) {
          const std::string name =
              fmt::format("{} {} {} cp {} rank {}", family, to_string(precision),
                          to_string(recompute), cp, rank);
          plan::Strategy strategy = strategy_for(2, 2, 4, 256);
          strategy.precision = precision;
          strategy.recompute.assign(spec.parts.size(), recompute);
          strategy.kernels = kernel_workspace(at::kCPU, precision);
          strategy.parallel.cp = cp;
          strategy.parallel.cp_kind = GetParam();
          EchoWorld world(rank, cp);
          const int64_t before = device.memory().allocated_bytes;
          const plan::Program program = plan::build_program(spec, strategy, rank);
          nn::ParameterStore store(spec,
                                   precision == plan::Precision::kBf16 ? at::kBFloat16 : at::kFloat,
                                   at::kFloat, at::kCPU);
          store.initialize(1);
          nn::Model model(store);
          const auto optimizer = optim::make_optimizer({}, spec);
          Executor executor(model, store, *optimizer, &world);
          StepInput input;
          input.micro_batches = random_batches(spec, 2, 4, 256, 3);
          for (data::Batch& batch : input.micro_batches) {
            for (auto& starts : batch.segments) starts = {0};  // the most that tiles hold
          }
          const StepResult result = executor.run_step(program, input);
          const plan::Simulation predicted = plan::simulate_in_issue_order(program);
          const auto ratio = [&](int64_t prediction, int64_t measured) {
            return static_cast<double>(prediction) / static_cast<double>(measured - before);
          };
          EXPECT_NEAR(ratio(predicted.peak_bytes, result.peak_allocated_bytes), 1.0, 0.02) << name;
          for (size_t i = 0; i < program.instructions.size(); ++i) {
            const plan::Instruction& instruction = program.instructions[i];
            // The host loads at the same time as the device computes; the executor has one thread for both.
            if (instruction.part < 0 || instruction.micro_batch < 0) continue;
            const plan::Measurement& measured = result.measurements[i];
            EXPECT_NEAR(
                ratio(predicted.instructions[i].held_bytes_after, measured.held_bytes_after), 1.0,
                0.02)
                << name << ", " << plan::describe(spec, instruction);
            // A phase frees what phases before it have left before it has made all of its own: the program, whose workspaces are
            // never negative, says up to this much too much of it.
            const double peak = ratio(predicted.instructions[i].peak_bytes, measured.peak_bytes);
            EXPECT_GE(peak, 0.98) << name << ", " << plan::describe(spec, instruction);
            EXPECT_LE(peak, GetParam() == plan::ContextKind::kRing ? 1.05 : 1.02)
                << name << ", " << plan::describe(spec, instruction);
          }
        }
      }
    }
  }
}

#endif

}  // namespace
}  // namespace trireme::execute
