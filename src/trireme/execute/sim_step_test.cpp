// Training on the simulated accelerator: the same kernels do the arithmetic, so every bit is the processor's, whatever the
// order in which its queues run what they may.
#include <c10/util/Exception.h>

#include "trireme/device/sim/sim.h"
#include "trireme/execute/testing/step_fixture.h"

namespace trireme::execute {
namespace {

using plan::Precision;

struct Trained {
  std::vector<StepResult> steps;
  std::vector<at::Tensor> weights;
  std::vector<at::Tensor> states;
};

struct Case {
  std::string name;
  model::ModelSpec spec;
  plan::Strategy strategy;
  optim::OptimizerConfig optimizer;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  const auto add = [&](const std::string& name, const model::ModelSpec& spec, Precision precision,
                       plan::Recompute recompute, optim::OptimizerKind kind) {
    Case one{name, spec, strategy_for(4, 2, 2, 12), {}};
    one.strategy.precision = precision;
    one.strategy.recompute.assign(spec.parts.size(), recompute);
    one.optimizer.kind = kind;
    all.push_back(std::move(one));
  };
  using optim::OptimizerKind;
  using plan::Recompute;
  for (const auto precision : {Precision::kFp32, Precision::kBf16}) {
    const std::string suffix = precision == Precision::kBf16 ? " bf16" : " fp32";
    add("gpt2" + suffix, tiny(0), precision, Recompute::kNone, OptimizerKind::kAdamW);
    add("llama" + suffix, tiny(3), precision, Recompute::kFull, OptimizerKind::kMuon);
    add("deepseek" + suffix, tiny_deepseek(1), precision, Recompute::kSelective,
        OptimizerKind::kMuon);
  }
  for (const auto& variant : nn::testing::moe_variants())
    add(variant.name, tiny_moe(variant.name), Precision::kFp32, Recompute::kNone,
        OptimizerKind::kAdamW);
  return all;
}

Trained train(const Case& one, at::Device device) {
  nn::ParameterStore store(one.spec,
                           one.strategy.precision == Precision::kBf16 ? at::kBFloat16 : at::kFloat,
                           at::kFloat, device);
  store.initialize(6);
  nn::Model model(store);
  const auto optimizer = optim::make_optimizer(one.optimizer, store.spec(), device);
  Executor executor(model, store, *optimizer);
  const plan::Program program = plan::build_program(store.spec(), one.strategy);
  StepInput input;
  input.learning_rate = 1e-2;
  input.clip_norm = 1.0;
  Trained trained;
  for (input.step = 0; input.step < 3; ++input.step) {
    input.micro_batches =
        random_batches(store.spec(), 4, 2, 12, 20 + static_cast<uint64_t>(input.step));
    trained.steps.push_back(executor.run_step(program, input));
  }
  for (int part = 0; part < store.num_parts(); ++part)
    trained.weights.push_back(store.part_master(part).cpu());
  for (const optim::StateTensor& state : optimizer->state())
    trained.states.push_back(state.tensor.cpu());
  return trained;
}

void expect_same_bits(const Trained& got, const Trained& want) {
  for (size_t step = 0; step < want.steps.size(); ++step) {
    EXPECT_TRUE(want.steps[step].applied);
    EXPECT_EQ(got.steps[step].loss, want.steps[step].loss);
    EXPECT_EQ(got.steps[step].mtp_losses, want.steps[step].mtp_losses);
    EXPECT_EQ(got.steps[step].grad_norm, want.steps[step].grad_norm);
    for (const auto& [layer, router] : want.steps[step].routers)
      EXPECT_EQ(got.steps[step].routers.at(layer).load, router.load);
  }
  for (size_t part = 0; part < want.weights.size(); ++part)
    EXPECT_TRUE(at::equal(got.weights[part], want.weights[part])) << "part " << part;
  for (size_t i = 0; i < want.states.size(); ++i)
    EXPECT_TRUE(at::equal(got.states[i], want.states[i])) << "state " << i;
}

using SimStepTest = ExecutorTest;

TEST_F(SimStepTest, EveryFamilyTrainsToTheBitsOfTheProcessor) {
  const at::Device sim = device::get_device("sim:1").torch_device();
  for (const Case& one : cases()) {
    SCOPED_TRACE(one.name);
    const Trained want = train(one, at::kCPU);
    device::sim::set_schedule(device::sim::Schedule::kLate);
    expect_same_bits(train(one, sim), want);
    device::sim::set_schedule(device::sim::Schedule::kShuffled, 7);
    expect_same_bits(train(one, sim), want);
  }
  device::sim::set_schedule(device::sim::Schedule::kLate);
}

TEST_F(SimStepTest, AFailedKernelEndsTheStepWithItsName) {
  const at::Device sim = device::get_device("sim").torch_device();
  const Case one = cases().front();
  device::sim::inject_fault(0, {.kind = device::sim::Fault::Kind::kFail, .kernel = "layer_norm"});
  try {
    train(one, sim);
    ADD_FAILURE() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kDevice);
    EXPECT_NE(std::string(error.what()).find("layer_norm"), std::string::npos) << error.what();
  }
  device::sim::recover(0);
  expect_same_bits(train(one, sim), train(one, at::kCPU));
}

TEST_F(SimStepTest, AFlippedBitIsSeenInTheResult) {
  const at::Device sim = device::get_device("sim").torch_device();
  const Case one = cases().front();
  const Trained want = train(one, at::kCPU);
  device::sim::inject_fault(
      0, {.kind = device::sim::Fault::Kind::kFlipBit, .nth = 3, .kernel = "linear", .bit = 22});
  EXPECT_NE(train(one, sim).steps.front().loss, want.steps.front().loss);
  device::sim::recover(0);
}

TEST_F(SimStepTest, MemoryThatEndsIsAnErrorAndComesBack) {
  device::Device& device = device::get_device("sim");
  const Case one = cases().front();
  device.set_memory_cap(device.memory().allocated_bytes + (int64_t{64} << 10));
  EXPECT_THROW(train(one, device.torch_device()), c10::OutOfMemoryError);
  device.set_memory_cap(0);
  expect_same_bits(train(one, device.torch_device()), train(one, at::kCPU));
}

}  // namespace
}  // namespace trireme::execute
