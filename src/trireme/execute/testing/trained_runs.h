// A few steps of training on any device, and whether two of them ended with the same bits. Header only, for tests.
#pragma once

#include <functional>

#include "trireme/execute/testing/step_fixture.h"

namespace trireme::execute {

struct Trained {
  std::vector<StepResult> steps;
  std::vector<at::Tensor> weights;
  std::vector<at::Tensor> states;
};

struct TrainingCase {
  std::string name;
  model::ModelSpec spec;
  plan::Strategy strategy;
  optim::OptimizerConfig optimizer;
  int64_t steps = 3;
  bool one_document = false;  ///< attention sees whole rows, in every micro-batch
};

inline void join_documents(std::vector<data::Batch>& batches) {
  for (data::Batch& batch : batches) {
    for (std::vector<int32_t>& starts : batch.segments) starts = {0};
  }
}

/// With the program as `change` leaves it.
inline Trained train(const TrainingCase& one, at::Device device,
                     const std::function<void(plan::Program&)>& change = {}) {
  nn::ParameterStore store(
      one.spec, one.strategy.precision == plan::Precision::kBf16 ? at::kBFloat16 : at::kFloat,
      at::kFloat, device);
  store.initialize(6);
  nn::Model model(store);
  const auto optimizer = optim::make_optimizer(
      one.optimizer, store.spec(), device,
      one.strategy.offload_optimizer ? optim::StatePlace::kHost : optim::StatePlace::kDevice);
  Executor executor(model, store, *optimizer);
  plan::Program program = plan::build_program(store.spec(), one.strategy);
  if (change) change(program);
  StepInput input;
  input.learning_rate = 1e-2;
  input.clip_norm = 1.0;
  Trained trained;
  for (input.step = 0; input.step < one.steps; ++input.step) {
    input.micro_batches =
        random_batches(store.spec(), one.strategy.micro_batches(), one.strategy.micro,
                       one.strategy.seq_len, 20 + static_cast<uint64_t>(input.step));
    if (one.one_document) join_documents(input.micro_batches);
    trained.steps.push_back(executor.run_step(program, input));
  }
  executor.settle();
  for (int part = 0; part < store.num_parts(); ++part)
    trained.weights.push_back(store.part_master(part).cpu());
  for (const optim::StateTensor& state : optimizer->state())
    trained.states.push_back(state.tensor.cpu());
  return trained;
}

inline void expect_same_bits(const Trained& got, const Trained& want) {
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

}  // namespace trireme::execute
