// Steps whose activations and optimizer states visit the host: the same bits as without, whatever the order in which the
// queues run, and copies that hide behind compute.
#include <algorithm>
#include <functional>

#include "trireme/base/error.h"
#include "trireme/device/sim/sim.h"
#include "trireme/execute/testing/trained_runs.h"
#include "trireme/plan/simulate.h"
#include "trireme/plan/trace_analysis.h"

namespace trireme::execute {
namespace {

using optim::OptimizerKind;
using plan::Precision;
using plan::Recompute;

/// A configuration of nn::testing::tiny_configs() with four layers: enough that some leave the device.
model::ModelSpec deep(size_t index) {
  Json config = nn::testing::model_json(nn::testing::tiny_configs(4).at(index));
  config[config.contains("n_layer") ? "n_layer" : "num_hidden_layers"] = 4;
  if (config.contains("layer_types")) {
    Json types = config.at("layer_types");
    types.insert(types.end(), config.at("layer_types").begin(), config.at("layer_types").end());
    config["layer_types"] = types;
  }
  return model::spec_from_config(config.dump(), "tiny.json");
}

model::ModelSpec deep_moe(const std::string& family) {
  Json config = model::tiny_moe(family);
  config["num_hidden_layers"] = 4;
  if (family == "deepseek_v3") config["num_nextn_predict_layers"] = 1;
  return model::spec_from_config(config.dump(), "tiny.json");
}

std::vector<TrainingCase> cases() {
  std::vector<TrainingCase> all;
  int number = 0;
  const auto add = [&](const std::string& name, const model::ModelSpec& spec, Precision precision) {
    for (const auto recompute : {Recompute::kNone, Recompute::kSelective, Recompute::kFull}) {
      TrainingCase one{name, spec, strategy_for(4, 2, 2, 12), {}};
      one.name += fmt::format(" {} {}", plan::to_string(precision), plan::to_string(recompute));
      one.strategy.precision = precision;
      one.strategy.recompute.assign(spec.parts.size(), recompute);
      one.strategy.delay_weight_gradients = number % 4 == 3;
      one.optimizer.kind = number % 2 == 0 ? OptimizerKind::kAdamW : OptimizerKind::kMuon;
      all.push_back(std::move(one));
      ++number;
    }
  };
  for (const auto precision : {Precision::kFp32, Precision::kBf16}) {
    for (const size_t index : {0U, 3U, 11U, 13U}) {  // gpt2, llama, gemma2, olmo2
      const model::ModelSpec spec = deep(index);
      add(spec.family, spec, precision);
    }
    for (const char* family : {"qwen2_moe", "deepseek_v3"})
      add(family, deep_moe(family), precision);
  }
  add("gpt_oss", deep_moe("gpt_oss"), Precision::kBf16);
  return all;
}

TrainingCase offloaded(TrainingCase one) {
  one.strategy.offload_activations = plan::offload_from_names(one.spec, {"all"});
  one.strategy.offload_optimizer = true;
  return one;
}

class OffloadStepTest : public ExecutorTest {
 protected:
  OffloadStepTest() { device::get_device("sim"); }  // before its schedule and clock are set
  ~OffloadStepTest() override { device::sim::set_schedule(device::sim::Schedule::kLate); }
};

TEST_F(OffloadStepTest, HasTheBitsOfAStepWithout) {
  const at::Device sim = device::get_device("sim:1").torch_device();
  uint64_t seed = 0;
  for (const TrainingCase& one : cases()) {
    SCOPED_TRACE(one.name);
    const Trained want = train(one, at::kCPU);
    const TrainingCase moves = offloaded(one);
    expect_same_bits(train(moves, at::kCPU), want);
    device::sim::set_schedule(device::sim::Schedule::kLate);
    expect_same_bits(train(moves, sim), want);
    device::sim::set_schedule(device::sim::Schedule::kShuffled, ++seed);
    expect_same_bits(train(moves, sim), want);
  }
}

/// A step of `one` on sim with the program as `change` left it.
StepResult step_of(const TrainingCase& one, const std::function<void(plan::Program&)>& change) {
  const at::Device sim = device::get_device("sim").torch_device();
  nn::ParameterStore store(one.spec, at::kFloat, at::kFloat, sim);
  store.initialize(6);
  nn::Model model(store);
  const auto optimizer =
      optim::make_optimizer(one.optimizer, one.spec, sim, optim::StatePlace::kHost);
  Executor executor(model, store, *optimizer);
  plan::Program program = plan::build_program(one.spec, one.strategy);
  change(program);
  StepInput input;
  input.micro_batches = random_batches(one.spec, 4, 2, 12, 20);
  return executor.run_step(program, input);
}

// What the tests above would be worth without the waits in the program.
/// Instructions of a kind no longer wait for those of another.
std::function<void(plan::Program&)> forget(plan::OpKind waited, plan::OpKind by) {
  return [=](plan::Program& program) {
    for (plan::Instruction& instruction : program.instructions) {
      if (instruction.kind != by) continue;
      std::erase_if(instruction.depends_on, [&](int other) {
        return program.instructions[static_cast<size_t>(other)].kind == waited;
      });
    }
  };
}

TEST_F(OffloadStepTest, AMissingWaitShows) {
  TrainingCase one = offloaded({"llama", deep(3), strategy_for(4, 2, 2, 12), {}});
  const StepResult want = step_of(one, [](plan::Program&) {});
  // Late queues: a copy in that nobody waits for is not done.
  const StepResult unfilled =
      step_of(one, forget(plan::OpKind::kReload, plan::OpKind::kBackwardInput));
  EXPECT_NE(unfilled.grad_norm, want.grad_norm);
  // A copy out that does not wait for its forward, in some order of the queues.
  int wrong = 0;
  for (uint64_t seed = 0; seed < 8; ++seed) {
    device::sim::set_schedule(device::sim::Schedule::kShuffled, seed);
    wrong += step_of(one, forget(plan::OpKind::kForward, plan::OpKind::kOffload)).grad_norm !=
             want.grad_norm;
    EXPECT_EQ(step_of(one, [](plan::Program&) {}).grad_norm, want.grad_norm);
  }
  EXPECT_GT(wrong, 0);
}

bool same_bits(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  return std::ranges::equal(
      a, b, [](const at::Tensor& x, const at::Tensor& y) { return at::equal(x, y); });
}

TEST_F(OffloadStepTest, AMissingWaitForStatesShows) {
  const at::Device sim = device::get_device("sim").torch_device();
  TrainingCase one{"llama", deep(3), strategy_for(4, 2, 2, 12), {}};
  one.strategy.offload_optimizer = true;
  const Trained want = train(one, sim);
  ASSERT_FALSE(plan::parts_carried_in(plan::build_program(one.spec, one.strategy)).empty());
  // Late queues: the states that a step is given are not there yet.
  EXPECT_FALSE(same_bits(
      train(one, sim, forget(plan::OpKind::kReload, plan::OpKind::kOptimizerStep)).weights,
      want.weights));
  // A copy out that does not wait for the step, in some order of the queues.
  int wrong = 0;
  for (uint64_t seed = 0; seed < 8; ++seed) {
    device::sim::set_schedule(device::sim::Schedule::kShuffled, seed);
    const Trained early =
        train(one, sim, forget(plan::OpKind::kOptimizerStep, plan::OpKind::kOffload));
    wrong += !same_bits(early.states, want.states);
  }
  EXPECT_GT(wrong, 0);
  // States that come again before their last visit is given up would be read before they are written: refused.
  const auto keep = [](plan::Program& program) {
    for (plan::Instruction& instruction : program.instructions) {
      std::erase_if(instruction.releases, [&](int id) {
        return program.buffers[static_cast<size_t>(id)].is_carried_in();
      });
    }
  };
  EXPECT_THROW(train(one, sim, keep), Error);
}

// ---- On the simulated clock ---------------------------------------------------------------------------------------

/// An H100 (SXM: 990 TFLOP/s dense bfloat16 of which 60 % are reached, 3.35 TB/s, 55 GB/s each way to the host), for a model
/// `scale` times as narrow as one of hidden size 4096 and sequences of 4096. Operations per byte of activations grow with the
/// width (and with the length, of attention), so operations take `scale` times as long and bytes as long as ever: every
/// product then takes as many times a copy's time as it does at full size.
device::sim::DeviceProfile scaled_h100(double scale) {
  device::sim::DeviceProfile profile;
  profile.flops_per_s[at::kBFloat16] = 990e12 * 0.6 / scale;
  profile.flops_per_s[at::kFloat] = 495e12 * 0.6 / scale;
  profile.bytes_per_s = 3.35e12;
  profile.host_link_bytes_per_s = 55e9;
  return profile;
}

struct Clocked {
  plan::TraceSummary measured;
  plan::TraceSummary predicted;
  double loss = 0.0;
  double peak_ratio = 0.0;  ///< of a step, predicted over measured
};

/// One of several steps on the clock, which begins as the one before it ended; and the simulator's, with the durations that
/// the instructions had.
Clocked clocked_step(const model::ModelSpec& spec, const plan::Strategy& strategy,
                     int64_t steps = 1) {
  device::Device& device = device::get_device("sim");
  const at::Device sim = device.torch_device();
  const int64_t before = device.memory().allocated_bytes;
  nn::ParameterStore store(spec, at::kBFloat16, at::kFloat, sim);
  store.initialize(1);
  nn::Model model(store);
  const auto optimizer = optim::make_optimizer(
      {}, spec, sim,
      strategy.offload_optimizer ? optim::StatePlace::kHost : optim::StatePlace::kDevice);
  Executor executor(model, store, *optimizer);
  const plan::Program program = plan::build_program(spec, strategy);
  StepInput input;
  input.learning_rate = 1e-3;
  input.clip_norm = 1.0;
  device::sim::restart_clock();
  StepResult result;
  for (input.step = 0; input.step < steps; ++input.step) {
    input.micro_batches = random_batches(spec, strategy.micro_batches(), strategy.micro,
                                         strategy.seq_len, 3 + static_cast<uint64_t>(input.step));
    result = executor.run_step(program, input);
  }
  const plan::Trace trace = plan::measured_trace(spec, program, result.measurements, 0);
  const plan::Simulation simulation = plan::simulate(program, plan::durations_of(trace, program));
  return {plan::summarize(trace), plan::summarize(plan::predicted_trace(spec, program, simulation)),
          result.loss,
          static_cast<double>(plan::simulate_in_issue_order(program).peak_bytes) /
              static_cast<double>(result.peak_allocated_bytes - before)};
}

TEST_F(OffloadStepTest, CopiesHideBehindComputeAtTheRatesOfAnAccelerator) {
  const double scale = 32;
  const model::ModelSpec spec = model::spec_from_config(
      R"({"model_type":"llama","vocab_size":256,"hidden_size":128,"intermediate_size":448,
          "num_hidden_layers":8,"num_attention_heads":4,"num_key_value_heads":1,
          "max_position_embeddings":128})",
      "test");
  plan::Strategy strategy = strategy_for(2, 1, 1, 128);
  strategy.precision = Precision::kBf16;
  device::sim::set_profile(std::make_shared<const device::sim::DeviceProfile>(scaled_h100(scale)));
  // All that a layer keeps takes longer to copy than to compute, at these rates: so the inputs of all parts, with
  // recomputation of the rest, or what attention keeps.
  const Clocked plain = clocked_step(spec, strategy);
  EXPECT_EQ(plain.measured.copy_s, 0.0);
  const auto check = [&](const std::vector<std::string>& recompute,
                         const std::vector<std::string>& offload, double least) {
    SCOPED_TRACE(recompute.front());
    plan::Strategy moves = strategy;
    moves.recompute = plan::recompute_from_names(spec, recompute);
    moves.offload_activations = plan::offload_from_names(spec, offload);
    const Clocked step = clocked_step(spec, moves);
    EXPECT_EQ(step.loss, plain.loss);
    EXPECT_GT(step.measured.copy_s, 0.0);
    EXPECT_GE(step.measured.hidden_copy_share, least);
    EXPECT_GE(step.predicted.hidden_copy_share, least);
    EXPECT_NEAR(step.predicted.hidden_copy_share, step.measured.hidden_copy_share, 0.02);
    EXPECT_NEAR(step.predicted.copy_s / step.measured.copy_s, 1.0, 0.02);
    RecordProperty(fmt::format("hidden_{}", offload.front()),
                   fmt::format("{:.3f}", step.measured.hidden_copy_share));
    moves.offload_activations.clear();
    const Clocked without = clocked_step(spec, moves);
    EXPECT_NEAR(step.measured.step_s / without.measured.step_s, 1.0, 0.05);
  };
  check({"full"}, {"all"}, 0.9);
  check({"none"}, {"attention"}, 0.9);
  device::sim::set_profile(nullptr);
}

// Optimizer states: in the memory that activations leave, they come during the last backward and go during the next forward.
TEST_F(OffloadStepTest, OptimizerStatesHideAtTheRatesOfAnAccelerator) {
  const model::ModelSpec spec = model::spec_from_config(
      R"({"model_type":"llama","vocab_size":256,"hidden_size":128,"intermediate_size":448,
          "num_hidden_layers":8,"num_attention_heads":4,"num_key_value_heads":1,
          "max_position_embeddings":128})",
      "test");
  device::sim::set_profile(std::make_shared<const device::sim::DeviceProfile>(scaled_h100(32)));
  plan::Strategy strategy = strategy_for(2, 1, 12, 128);
  strategy.precision = Precision::kBf16;
  const Clocked plain = clocked_step(spec, strategy, 3);
  strategy.offload_optimizer = true;
  for (const auto schedule : {device::sim::Schedule::kLate, device::sim::Schedule::kShuffled}) {
    device::sim::set_schedule(schedule, 5);
    const Clocked step = clocked_step(spec, strategy, 3);
    EXPECT_EQ(step.loss, plain.loss);
    // Both ways, eight bytes a parameter.
    const double bytes = 8.0 * static_cast<double>(spec.num_parameters());
    EXPECT_GE(step.measured.copy_s, bytes / 55e9);
    EXPECT_LE(step.measured.copy_s, 2.1 * bytes / 55e9);
    EXPECT_GE(step.measured.hidden_copy_share, 0.9);
    EXPECT_GE(step.predicted.hidden_copy_share, 0.9);
    EXPECT_NEAR(step.predicted.hidden_copy_share, step.measured.hidden_copy_share, 0.02);
    EXPECT_NEAR(step.measured.step_s / plain.measured.step_s, 1.0, 0.02);
    EXPECT_NEAR(step.peak_ratio, 1.0, 0.02);
    RecordProperty("hidden", fmt::format("{:.3f}", step.measured.hidden_copy_share));
  }
  device::sim::set_profile(nullptr);
}

}  // namespace
}  // namespace trireme::execute
