// Training on the simulated accelerator: the same kernels do the arithmetic, so every bit is the processor's, whatever the
// order in which its queues run what they may.
#include "trireme/device/sim/sim.h"
#include "trireme/execute/out_of_memory.h"
#include "trireme/execute/testing/trained_runs.h"

namespace trireme::execute {
namespace {

using plan::Precision;

using Case = TrainingCase;

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
  EXPECT_THROW(train(one, device.torch_device()), StepOutOfMemory);
  device.set_memory_cap(0);
  expect_same_bits(train(one, device.torch_device()), train(one, at::kCPU));
}

}  // namespace
}  // namespace trireme::execute
