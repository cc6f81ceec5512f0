// What the tests of a step share: tiny models, random batches, a recording optimizer. Header only, for tests.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "trireme/data/tokens_ahead.h"
#include "trireme/device/device.h"
#include "trireme/execute/evaluation.h"
#include "trireme/execute/executor.h"
#include "trireme/model/moe_test_configs.h"
#include "trireme/nn/testing/reference_model.h"
#include "trireme/optim/optimizer.h"

namespace trireme::execute {

// Keeps what it is given and changes nothing.
class RecordingOptimizer final : public optim::Optimizer {
 public:
  void step(int part, const optim::PartBuffers& buffers, const optim::StepParams& params) override {
    if (gradients.size() <= static_cast<size_t>(part))
      gradients.resize(static_cast<size_t>(part) + 1);
    gradients[static_cast<size_t>(part)] = buffers.gradients.clone();
    last = params;
    ++calls;
  }
  std::vector<optim::StateTensor> state() const override { return {}; }
  std::vector<at::Tensor> part_states(int /*part*/) const override { return {}; }
  int64_t state_bytes() const override { return 0; }
  int64_t workspace_bytes() const override { return 0; }

  std::vector<at::Tensor> gradients;
  optim::StepParams last;
  int calls = 0;
};

inline model::ModelSpec tiny(size_t index, uint64_t seed = 4) {
  return model::spec_from_config(nn::testing::tiny_configs(seed).at(index), "tiny.json");
}

/// A tiny model with the experts of a variant of moe_specs.h.
inline model::ModelSpec tiny_moe(const std::string& name, uint64_t seed = 4) {
  for (const auto& variant : nn::testing::moe_variants()) {
    if (variant.name == name)
      return nn::testing::with_experts(tiny(3, seed), variant.moe, variant.first);
  }
  throw std::runtime_error(name);
}

/// The same with modules of multi-token prediction.
inline model::ModelSpec tiny_mtp(const std::string& name, int modules, double weight = 0.5) {
  return model::with_mtp(name == "dense" ? tiny(3) : tiny_moe(name), modules, weight);
}

/// Tied, with latent attention and experts: a small DeepSeek-V3. The load does not move its selection biases, so that a step
/// with the recording optimizer changes nothing.
inline model::ModelSpec tiny_deepseek(int modules) {
  Json config = model::tiny_moe("deepseek_v3");
  config.update({{"num_nextn_predict_layers", modules},
                 {"q_lora_rank", 6},
                 {"tie_word_embeddings", true},
                 {"initializer_range", 0.2}});
  model::ModelSpec spec = model::spec_from_config(config.dump(), "tiny.json");
  spec.mtp_loss_weight = 0.3;
  for (model::LayerSpec& layer : spec.layers) {
    if (layer.moe) layer.moe->bias_update_rate = 0.0;
  }
  return spec;
}

inline std::vector<data::Batch> random_batches(const model::ModelSpec& spec, int64_t count,
                                               int64_t rows, int64_t length, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<data::Batch> batches;
  for (int64_t i = 0; i < count; ++i) {
    data::Batch batch;
    batch.rows = rows;
    batch.seq_len = length;
    for (int64_t row = 0; row < rows; ++row) {
      std::vector<int32_t> starts = {0};
      for (int32_t at = 0; at < length; ++at) {
        if (at > 0 && random() % 9 == 0) starts.push_back(at);
        batch.tokens.push_back(
            static_cast<int32_t>(random() % static_cast<uint64_t>(spec.vocab_size)));
        const bool counts = random() % 8 != 0;
        batch.targets.push_back(
            counts ? static_cast<int32_t>(random() % static_cast<uint64_t>(spec.vocab_size))
                   : data::kIgnoredTarget);
        batch.positions.push_back(at - starts.back());
        batch.num_targets += counts;
      }
      batch.segments.push_back(starts);
    }
    batch.num_bytes = 3 * batch.num_targets;
    batches.push_back(std::move(batch));
  }
  return batches;
}

inline plan::Strategy strategy_for(int64_t micro_batches, int64_t lanes, int64_t micro,
                                   int64_t seq_len) {
  plan::Strategy strategy;
  strategy.sequences = micro_batches * micro;
  strategy.micro = micro;
  strategy.lanes = lanes;
  strategy.seq_len = seq_len;
  return strategy;
}

struct Outcome {
  StepResult result;
  std::vector<at::Tensor> gradients;
};

/// Counted targets of the head, then of the modules of multi-token prediction.
inline std::vector<int64_t> count_targets(const model::ModelSpec& spec,
                                          const std::vector<data::Batch>& batches) {
  std::vector<int64_t> targets(1 + static_cast<size_t>(spec.num_mtp_layers));
  for (const data::Batch& batch : batches) {
    for (size_t depth = 0; depth < targets.size(); ++depth)
      targets[depth] += data::tokens_ahead(batch, static_cast<int64_t>(depth)).num_targets;
  }
  return targets;
}

/// `total_targets`: as count_targets() of the global batch, where `batches` are only some of it.
inline Outcome run(nn::ParameterStore& store, const plan::Strategy& strategy,
                   const std::vector<data::Batch>& batches,
                   const std::vector<int64_t>& total_targets = {}) {
  nn::Model model(store);
  RecordingOptimizer recorder;
  Executor executor(model, store, recorder);
  StepInput input;
  input.micro_batches = batches;
  if (!total_targets.empty()) {
    input.total_targets = total_targets[0];
    input.total_mtp_targets.assign(total_targets.begin() + 1, total_targets.end());
  }
  Outcome outcome;
  outcome.result = executor.run_step(plan::build_program(store.spec(), strategy), input);
  outcome.gradients = std::move(recorder.gradients);
  return outcome;
}

inline void expect_bit_equal(const Outcome& got, const Outcome& want, const std::string& what) {
  EXPECT_EQ(got.result.loss, want.result.loss) << what;
  EXPECT_EQ(got.result.mtp_losses, want.result.mtp_losses) << what;
  EXPECT_EQ(got.result.grad_norm, want.result.grad_norm) << what;
  ASSERT_EQ(got.gradients.size(), want.gradients.size()) << what;
  for (size_t part = 0; part < want.gradients.size(); ++part) {
    if (!want.gradients[part].defined()) continue;  // no parameters
    EXPECT_TRUE(at::equal(got.gradients[part], want.gradients[part])) << what << ", part " << part;
  }
  for (const auto& [layer, router] : want.result.routers)
    EXPECT_EQ(got.result.routers.at(layer).load, router.load) << what << ", layer " << layer;
}

// One thread: the models are too small to share, and several threads would wait for one another.
class ExecutorTest : public ::testing::Test {
 protected:
  ExecutorTest() : threads_(at::get_num_threads()) {
    device::install_cpu_allocator();
    at::set_num_threads(1);
  }
  ~ExecutorTest() override { at::set_num_threads(threads_); }

 private:
  int threads_;
};

}  // namespace trireme::execute
