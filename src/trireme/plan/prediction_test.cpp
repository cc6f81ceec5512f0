#include "trireme/plan/prediction.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trireme/base/error.h"

namespace trireme::plan {
namespace {

// Llama 3.1 405B (arXiv 2407.21783).
PlannedRun llama_405b(int64_t dp, int64_t pp) {
  PlannedRun run;
  run.spec = model::spec_from_config(R"({"model_type": "llama", "vocab_size": 128256,
      "hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126,
      "num_attention_heads": 128, "num_key_value_heads": 8, "max_position_embeddings": 8192})",
                                     "test");
  run.strategy.precision = Precision::kBf16;
  run.strategy.seq_len = 8192;
  run.strategy.sequences = dp * 16;
  run.strategy.parallel.tp = 8;
  run.strategy.parallel.pp = pp;
  run.strategy.parallel.dp = dp;
  run.strategy.parallel.zero = 1;
  run.cluster = shipped_profiles().cluster("dgx-h100");
  run.stack = shipped_profiles().stack("megatron-core");
  run.own_memory = false;
  use_profiles(shipped_profiles(), "", run);
  return run;
}

TEST(Prediction, AddsUpToTheStep) {
  const Prediction prediction = predict(llama_405b(4, 16));
  double sum = 0.0;
  for (const auto& [kind, seconds] : prediction.time_by_kind_s) sum += seconds;
  EXPECT_NEAR(sum, prediction.step_s, 0.02 * prediction.step_s);
  EXPECT_LT(prediction.low_s, prediction.step_s);
  EXPECT_GT(prediction.high_s, prediction.step_s);
}

TEST(Prediction, CountsTheModelsOperations) {
  const PlannedRun run = llama_405b(4, 16);
  const Prediction prediction = predict(run);
  // Six operations a parameter of a product and token, and attention's: 12 layers x width x T / 2.
  const double products = 6.0 * (405.8e9 - 128256.0 * 16384.0);
  const double attention = 6.0 * 126.0 * 16384.0 * 8192.0;
  const double tokens = 4.0 * 16.0 * 8192.0 / 512.0;
  EXPECT_NEAR(prediction.flops_model / (tokens * (products + attention)), 1.0, 0.01);
}

// The paper's table 4: 430 TFLOP/s of bf16 on 8,192 H100 with tp 8, pp 16, dp 64, at 16 micro-batches a pipeline, 41 to 43 % MFU.
// The profile knows nothing of this run.
TEST(Prediction, Llama405bIsNearItsPublishedRate) {
  PlannedRun run = llama_405b(64, 16);
  run.strategy.parallel.schedule = ScheduleKind::kInterleaved;
  run.strategy.parallel.chunks = 2;
  run.strategy.sequences = 64 * 16;
  const Prediction prediction = predict(run);
  const double rate = prediction.flops_model / prediction.step_s;
  EXPECT_GT(rate, 0.8 * 400e12);
  EXPECT_LT(rate, 1.2 * 430e12);
}

TEST(Prediction, MoreReplicasChangeTransfersOnly) {
  const Prediction four = predict(llama_405b(4, 16));
  const Prediction many = predict(llama_405b(128, 16));
  EXPECT_GE(many.step_s, four.step_s * 0.99);
  EXPECT_LT(many.step_s, four.step_s * 1.1);
  EXPECT_EQ(many.classes.front().ranks, 128 * 8);
  EXPECT_LT(many.classes.front().peak.optimizer, four.classes.front().peak.optimizer / 30.0);
}

TEST(Prediction, ATransferThatIsHeldUpBetweenNodesHoldsUpEveryMicroBatch) {
  constexpr double kHeld = 1000.0;
  PlannedRun run = llama_405b(1, 2);
  run.stack.overlap_send = false;
  const double usual = predict(run).step_s;
  run.stack.network_send_s = kHeld;
  const double slow = predict(run).step_s;
  // Sixteen micro-batches go on from the first stage one after the other, and the last one's gradient comes back; at most all of
  // them in turn.
  EXPECT_GE(slow, 17.0 * kHeld);
  EXPECT_LE(slow, 32.0 * kHeld + usual);
  run.cluster.node.accelerators = 16;  // both stages on one node
  EXPECT_LT(predict(run).step_s, kHeld);
}

TEST(Prediction, RecomputationCostsTimeAndSavesMemory) {
  PlannedRun run = llama_405b(4, 16);
  const Prediction without = predict(run);
  run.strategy.recompute.assign(run.spec.parts.size(), Recompute::kNone);
  for (size_t part = 0; part < run.spec.parts.size(); ++part) {
    if (run.spec.parts[part].layer >= 0) run.strategy.recompute[part] = Recompute::kFull;
  }
  const Prediction with = predict(run);
  EXPECT_GT(with.step_s, 1.15 * without.step_s);
  EXPECT_LT(with.step_s, 1.45 * without.step_s);
  EXPECT_LT(with.peak_bytes(), without.peak_bytes());
  EXPECT_GT(with.flops_hardware, with.flops_model);
}

// Parameters, gradients and optimizer states by hand: 8e9 parameters in bf16 and float32 gradients, 12 bytes of states over 8 ranks.
TEST(Prediction, StatesAreSharedAsZeroSays) {
  PlannedRun run = llama_405b(1, 1);
  run.spec = model::spec_from_preset("llama3-8b");
  run.strategy.parallel = {};
  run.strategy.parallel.dp = 8;
  run.strategy.sequences = 8;
  run.strategy.seq_len = 2048;
  run.strategy.parallel.zero = 1;
  const double parameters = static_cast<double>(run.spec.num_parameters());
  const MemoryByKind peak = predict(run).classes.front().peak;
  EXPECT_NEAR(peak.weights, 2.0 * parameters, 1e6);
  EXPECT_NEAR(peak.gradients, 4.0 * parameters, 1e6);
  EXPECT_NEAR(peak.optimizer, 12.0 * parameters / 8.0, 1e6);
}

TEST(Prediction, OfAHundredThousandAcceleratorsIsQuick) {
  const PlannedRun run = llama_405b(782, 16);
  EXPECT_EQ(run.strategy.parallel.world(), 100096);
  const Prediction prediction = predict(run);
  EXPECT_GT(prediction.step_s, 0.0);
  EXPECT_EQ(prediction.classes.size(), 16);
}

TEST(Prediction, ADeviceWithoutTheRecipesRateIsRefused) {
  PlannedRun run = llama_405b(1, 16);
  run.cluster.device.peak_flops.erase(ComputeType::kBf16);
  EXPECT_THROW(predict(run), Error);
}

}  // namespace
}  // namespace trireme::plan
