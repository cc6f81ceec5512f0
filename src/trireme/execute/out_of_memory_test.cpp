#include "trireme/execute/out_of_memory.h"

#include <gmock/gmock.h>

#include "trireme/execute/kernel_workspace.h"
#include "trireme/execute/testing/step_fixture.h"
#include "trireme/plan/memory.h"
#include "trireme/plan/simulate.h"

namespace trireme::execute {
namespace {

using ::testing::HasSubstr;

class OutOfMemoryTest : public ExecutorTest, public ::testing::WithParamInterface<const char*> {};

TEST_P(OutOfMemoryTest, SaysWhatWasHeldAndASmallerStepRuns) {
  device::Device& device = device::get_device(GetParam());
  const model::ModelSpec spec = model::spec_from_config(
      R"({"model_type":"llama","vocab_size":1000,"hidden_size":128,"intermediate_size":320,
          "num_hidden_layers":4,"num_attention_heads":4,"num_key_value_heads":2,
          "max_position_embeddings":128})",
      "test");
  plan::Strategy strategy = strategy_for(2, 1, 4, 128);
  strategy.kernels = kernel_workspace(device.torch_device(), strategy.precision);
  StepInput input;
  input.micro_batches = random_batches(spec, 2, 4, 128, 3);
  const int64_t before = device.memory().allocated_bytes;
  nn::ParameterStore store(spec, at::kFloat, at::kFloat, device.torch_device());
  store.initialize(1);
  nn::Model model(store);
  const auto optimizer = optim::make_optimizer({}, spec, device.torch_device());
  Executor executor(model, store, *optimizer);

  const plan::Program program = plan::build_program(spec, strategy);
  strategy.recompute.assign(spec.parts.size(), plan::Recompute::kFull);
  const plan::Program smaller = plan::build_program(spec, strategy);
  const plan::Simulation predicted = plan::simulate_in_issue_order(program);
  const int64_t needs = predicted.peak_bytes;
  const int64_t less = plan::simulate_in_issue_order(smaller).peak_bytes;
  ASSERT_LT(1.1 * static_cast<double>(less), static_cast<double>(needs));
  const int64_t cap = (needs + less) / 2;
  device.set_memory_cap(before + cap);
  try {
    executor.run_step(program, input);
    ADD_FAILURE() << "nothing was thrown";
  } catch (const StepOutOfMemory& error) {
    EXPECT_EQ(error.code(), ErrorCode::kDevice);
    const auto id = static_cast<size_t>(error.instruction());
    // The simulator says of this instruction that it does not fit, and of all before it that they do.
    const auto peak = [&](size_t i) {
      return static_cast<double>(predicted.instructions[i].peak_bytes) / static_cast<double>(cap);
    };
    EXPECT_GT(peak(id), 0.98);
    for (size_t i = 0; i < id; ++i) EXPECT_LT(peak(i), 1.02);
    EXPECT_EQ(error.held().weights, 4 * spec.num_parameters());
    EXPECT_EQ(error.held().optimizer_states, 8 * spec.num_parameters());
    EXPECT_EQ(error.held().total(), plan::held_before(spec, program, error.instruction()).total());
    EXPECT_GT(error.held().activations.size(), 4U);
    EXPECT_GE(error.workspace_bytes(), 0);
    // What other tests hold beside the step counts as workspace.
    EXPECT_LE(error.held().total() + error.workspace_bytes(), before + cap);
    EXPECT_LT(static_cast<double>(error.missing_in_plan_bytes() - before),
              0.02 * static_cast<double>(needs));
    const std::string text = error.what();
    EXPECT_THAT(text,
                HasSubstr("out of memory at " + plan::describe(spec, program.instructions[id])));
    for (const char* kind :
         {"were asked for", "weights ", "optimizer states ", "activations ", "attention ", "mlp "})
      EXPECT_THAT(text, HasSubstr(kind));
  }
  EXPECT_TRUE(executor.run_step(smaller, input).applied);
  device.set_memory_cap(0);
  EXPECT_TRUE(executor.run_step(program, input).applied);
}

INSTANTIATE_TEST_SUITE_P(Devices, OutOfMemoryTest, ::testing::Values("cpu", "sim"));

}  // namespace
}  // namespace trireme::execute
