#include "trireme/execute/executor.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <stdexcept>

#include "trireme/device/device.h"
#include "trireme/execute/testing/step_fixture.h"
#include "trireme/nn/testing/reference_model.h"
#include "trireme/optim/optimizer.h"

namespace trireme::execute {
namespace {

using plan::Precision;
using plan::Recompute;

TEST_F(ExecutorTest, LossGradientsAndNormEqualAutogradOverTheGlobalBatch) {
  for (const model::ModelSpec& spec :
       {tiny(0), tiny(3), tiny(7), tiny(9), tiny_moe("balanced"), tiny_moe("capacity"),
        tiny_moe("sigmoid in groups with selection bias"), tiny_mtp("dense", 1),
        tiny_mtp("balanced", 2), tiny_mtp("sigmoid in groups with selection bias", 3, 1.5),
        tiny_deepseek(1), tiny_deepseek(2)}) {
    nn::ParameterStore store(spec);
    store.initialize(1);
    const std::vector<data::Batch> batches = random_batches(store.spec(), 4, 2, 13, 7);
    const Outcome got = run(store, strategy_for(4, 2, 2, 13), batches);

    const nn::testing::ReferenceModel reference(store);
    const std::vector<int64_t> targets = count_targets(spec, batches);
    std::vector<at::Tensor> losses(targets.size(), at::zeros({}, at::kDouble));
    for (const data::Batch& batch : batches) {
      nn::BatchTensors tensors = to_tensors(batch, spec.num_mtp_layers);
      tensors.share_of_step = 0.25;
      const std::vector<at::Tensor> sums = reference.loss_sums(tensors);
      for (size_t depth = 0; depth < sums.size(); ++depth)
        losses[depth] = losses[depth] + sums[depth] / static_cast<double>(targets[depth]);
    }
    EXPECT_NEAR(got.result.loss, losses[0].item<double>(), 1e-5);
    ASSERT_EQ(got.result.mtp_losses.size(), losses.size() - 1);
    at::Tensor total = losses[0] + reference.auxiliary();
    for (size_t depth = 1; depth < losses.size(); ++depth) {
      EXPECT_NEAR(got.result.mtp_losses[depth - 1], losses[depth].item<double>(), 1e-5);
      total = total + spec.mtp_loss_weight / spec.num_mtp_layers * losses[depth];
    }
    total.backward();
    EXPECT_EQ(got.result.num_targets, targets[0]);
    EXPECT_EQ(got.result.num_bytes, 3 * targets[0]);
    EXPECT_EQ(got.result.tokens, 4 * 2 * 13);
    double squares = 0.0;
    for (int i = 0; i < store.num_parameters(); ++i) {
      const auto& parameter = store.spec().parameters[static_cast<size_t>(i)];
      if (!parameter.trainable) continue;
      const at::Tensor want = reference.leaf(parameter.name).grad();
      squares += want.square().sum().item<double>();
      const at::Tensor error =
          store.view(got.gradients[static_cast<size_t>(parameter.part)], i).to(at::kDouble) - want;
      EXPECT_LT(error.abs().max().item<double>(), 1e-5 + 1e-4 * want.abs().max().item<double>())
          << parameter.name;
    }
    EXPECT_NEAR(got.result.grad_norm / std::sqrt(squares), 1.0, 1e-5);
  }
}

// Who computes a lane does not matter: each lane alone, as if on a rank of its own, and the tree by hand.
TEST_F(ExecutorTest, LanesAreATreeOfIndependentSums) {
  for (const model::ModelSpec& spec :
       {tiny(7), tiny_moe("softmax"), tiny_mtp("softmax", 2), tiny_deepseek(1)})
    for (const auto precision : {Precision::kFp32, Precision::kBf16}) {
      nn::ParameterStore store(spec, precision == Precision::kBf16 ? at::kBFloat16 : at::kFloat);
      store.initialize(2);
      const std::vector<data::Batch> batches = random_batches(store.spec(), 16, 1, 11, 5);
      const std::vector<int64_t> targets = count_targets(spec, batches);
      for (const int64_t lanes : {1, 2, 4, 8}) {
        plan::Strategy whole = strategy_for(16, lanes, 1, 11);
        whole.precision = precision;
        const Outcome got = run(store, whole, batches);

        const int64_t per_lane = 16 / lanes;
        plan::Strategy alone = strategy_for(per_lane, 1, 1, 11);
        alone.precision = precision;
        std::vector<std::vector<at::Tensor>> sums;
        for (int64_t lane = lanes - 1; lane >= 0; --lane) {  // the last lane first
          const std::vector<data::Batch> own(batches.begin() + lane * per_lane,
                                             batches.begin() + (lane + 1) * per_lane);
          sums.insert(sums.begin(), run(store, alone, own, targets).gradients);
        }
        for (size_t stride = 1; stride < sums.size(); stride *= 2) {
          for (size_t i = 0; i < sums.size(); i += 2 * stride) {
            for (size_t part = 0; part < sums[i].size(); ++part) {
              if (sums[i][part].defined()) sums[i][part] = sums[i][part] + sums[i + stride][part];
            }
          }
        }
        for (size_t part = 0; part < sums[0].size(); ++part) {
          if (!sums[0][part].defined()) continue;  // no parameters
          EXPECT_TRUE(at::equal(got.gradients[part], sums[0][part]))
              << lanes << " lanes, part " << part;
        }
      }
    }
}

// Two ranks that hold half of the lanes each, then one addition: the bits of one rank with all lanes.
TEST_F(ExecutorTest, HalfOfTheLanesEachGivesTheSameBits) {
  nn::ParameterStore store(tiny(3));
  store.initialize(3);
  const std::vector<data::Batch> batches = random_batches(store.spec(), 8, 2, 9, 6);
  const std::vector<int64_t> targets = count_targets(store.spec(), batches);
  const Outcome whole = run(store, strategy_for(8, 4, 2, 9), batches);
  const std::vector<data::Batch> left(batches.begin(), batches.begin() + 4);
  const std::vector<data::Batch> right(batches.begin() + 4, batches.end());
  const Outcome a = run(store, strategy_for(4, 2, 2, 9), left, targets);
  const Outcome b = run(store, strategy_for(4, 2, 2, 9), right, targets);
  for (size_t part = 0; part < whole.gradients.size(); ++part) {
    EXPECT_TRUE(at::equal(whole.gradients[part], a.gradients[part] + b.gradients[part])) << part;
  }
  // Quotients are rounded before they are added here, sums before they are divided there.
  EXPECT_DOUBLE_EQ(whole.result.loss * static_cast<double>(targets[0]),
                   (a.result.loss + b.result.loss) * static_cast<double>(targets[0]));
}

TEST_F(ExecutorTest, RecomputeAndDelayedWeightGradientsChangeNoBit) {
  std::mt19937_64 random(9);
  for (const model::ModelSpec& spec :
       {tiny(0), tiny(4), tiny(8), tiny_moe("balanced"), tiny_moe("gated shared expert"),
        tiny_moe("capacity"), tiny_moe("clamped with biases"), tiny_mtp("gated shared expert", 2),
        tiny_deepseek(2)}) {
    for (const auto precision : {Precision::kFp32, Precision::kBf16}) {
      nn::ParameterStore store(spec, precision == Precision::kBf16 ? at::kBFloat16 : at::kFloat);
      store.initialize(4);
      const std::vector<data::Batch> batches = random_batches(store.spec(), 4, 2, 10, 7);
      plan::Strategy strategy = strategy_for(4, 2, 2, 10);
      strategy.precision = precision;
      const Outcome want = run(store, strategy, batches);
      for (int variant = 0; variant < 8; ++variant) {
        strategy.delay_weight_gradients = variant % 2 == 1;
        strategy.recompute.clear();
        for (size_t part = 0; part < store.spec().parts.size(); ++part) {
          strategy.recompute.push_back(variant < 6 ? static_cast<Recompute>(variant / 2)
                                                   : static_cast<Recompute>(random() % 3));
        }
        expect_bit_equal(run(store, strategy, batches), want, "variant " + std::to_string(variant));
      }
    }
  }
}

TEST_F(ExecutorTest, RepetitionAndTheNumberOfThreadsChangeNoBit) {
  for (const model::ModelSpec& spec : {tiny_moe("gated shared expert"), tiny_deepseek(2)}) {
    for (const auto precision : {Precision::kFp32, Precision::kBf16}) {
      nn::ParameterStore store(spec, precision == Precision::kBf16 ? at::kBFloat16 : at::kFloat);
      store.initialize(5);
      const std::vector<data::Batch> batches = random_batches(store.spec(), 4, 2, 12, 8);
      plan::Strategy strategy = strategy_for(4, 4, 2, 12);
      strategy.precision = precision;
      const Outcome want = run(store, strategy, batches);
      for (const int threads : {1, 2}) {
        at::set_num_threads(threads);
        expect_bit_equal(run(store, strategy, batches), want, std::to_string(threads) + " threads");
      }
      at::set_num_threads(1);
    }
  }
}

/// What experts took, by layer, of every micro-batch alone.
TEST_F(ExecutorTest, RoutersFiguresAreThoseOfTheWholeBatch) {
  nn::ParameterStore store(tiny_moe("balanced"));
  store.initialize(6);
  const std::vector<data::Batch> batches = random_batches(store.spec(), 4, 2, 10, 9);
  const Outcome whole = run(store, strategy_for(4, 2, 2, 10), batches);
  ASSERT_EQ(whole.result.routers.size(), 2u);
  for (const auto& [layer, router] : whole.result.routers) {
    std::vector<int64_t> load(6, 0);
    double balance = 0.0;
    for (const data::Batch& batch : batches) {
      const Outcome one = run(store, strategy_for(1, 1, 2, 10), {batch});
      for (size_t e = 0; e < load.size(); ++e) load[e] += one.result.routers.at(layer).load[e];
      balance += one.result.routers.at(layer).balance_loss / 4.0;
    }
    EXPECT_EQ(router.load, load);
    EXPECT_EQ(std::accumulate(load.begin(), load.end(), int64_t{0}), 4 * 2 * 10 * 2);
    EXPECT_NEAR(router.balance_loss, balance, 1e-12);
    EXPECT_GE(router.balance_loss, 0.5);
  }
}

/// Moved once a step by the global batch's load: not by every micro-batch, and not twice where a forward runs again; of the
/// modules of multi-token prediction as of the others.
TEST_F(ExecutorTest, TheSelectionBiasMovesOnceAStep) {
  for (const int modules : {0, 2}) {
    for (const Recompute recompute : {Recompute::kNone, Recompute::kFull}) {
      for (const int64_t lanes : {1, 4}) {
        nn::ParameterStore store(tiny_mtp("sigmoid in groups with selection bias", modules));
        store.initialize(6);
        std::map<int, at::Tensor> before;
        for (int i = 0; i < store.num_parameters(); ++i) {
          if (store.spec().parameters[static_cast<size_t>(i)].role == model::Role::kSelectionBias)
            before[i] = store.master(i).clone();
        }
        ASSERT_EQ(before.size(), 2u + static_cast<size_t>(modules));
        plan::Strategy strategy = strategy_for(4, lanes, 2, 10);
        strategy.recompute.assign(store.spec().parts.size(), recompute);
        nn::Model model(store);
        const auto optimizer = optim::make_optimizer({}, store.spec());
        Executor executor(model, store, *optimizer);
        StepInput input;
        input.micro_batches = random_batches(store.spec(), 4, 2, 10, 9);
        input.learning_rate = 0.5;
        const StepResult result =
            executor.run_step(plan::build_program(store.spec(), strategy), input);
        for (const auto& [parameter, old] : before) {
          const int part = store.spec().parameters[static_cast<size_t>(parameter)].part;
          const int layer = store.spec().parts[static_cast<size_t>(part)].layer;
          const std::vector<int64_t>& load = result.routers.at(layer).load;
          const at::Tensor moved = (store.master(parameter) - old).to(at::kDouble);
          for (size_t e = 0; e < load.size(); ++e) {
            const double mean = 4 * 2 * 10 * 2 / 6.0;
            const double expected = static_cast<double>(load[e]) > mean ? -0.001 : 0.001;
            EXPECT_NEAR(moved[static_cast<int64_t>(e)].item<double>(), expected, 1e-6)
                << load[e] << " tokens";
          }
        }
      }
    }
  }
}

TEST_F(ExecutorTest, ABalancingLossOverTheGlobalBatchUsesItsCounts) {
  model::ModelSpec spec = tiny_moe("balanced");
  for (model::LayerSpec& layer : spec.layers) layer.moe->global_aux = true;
  nn::ParameterStore store(spec);
  store.initialize(6);
  nn::Model model(store);
  RecordingOptimizer recorder;
  Executor executor(model, store, recorder);
  StepInput input;
  input.micro_batches = random_batches(spec, 2, 2, 10, 9);
  const plan::Program program = plan::build_program(spec, strategy_for(2, 1, 2, 10));
  // One expert took all: the loss is E times its mean share, with the shares of this step's tokens.
  std::map<int, std::vector<int64_t>> load;
  for (int layer = 0; layer < 2; ++layer) load[layer] = {0, 0, 0, 0, 80, 0};
  input.expert_load = &load;
  const StepResult result = executor.run_step(program, input);
  const StepResult own = [&] {
    input.expert_load = nullptr;
    return executor.run_step(program, input);
  }();
  for (const auto& [layer, router] : result.routers) {
    EXPECT_EQ(router.load, own.routers.at(layer).load);
    EXPECT_LT(router.balance_loss, 6.0);
    EXPECT_NE(router.balance_loss, own.routers.at(layer).balance_loss);
  }
}

// Counts of the global batch make it a mean over tokens, which does not care where micro-batches and lanes are cut; a loss of
// every micro-batch's own counts is another one for every cut.
TEST_F(ExecutorTest, ABalancingLossOverTheGlobalBatchDoesNotDependOnItsCuts) {
  model::ModelSpec spec = tiny_moe("balanced");
  for (model::LayerSpec& layer : spec.layers) layer.moe->global_aux = true;
  nn::ParameterStore store(spec);
  store.initialize(6);
  std::map<int, std::vector<int64_t>> load;
  const auto run_cut = [&](int64_t micro, int64_t lanes) {
    nn::Model model(store);
    RecordingOptimizer recorder;
    Executor executor(model, store, recorder);
    StepInput input;
    input.micro_batches = random_batches(spec, 4 / micro, micro, 10, 9);  // the same rows
    if (!load.empty()) input.expert_load = &load;
    Outcome outcome;
    outcome.result = executor.run_step(
        plan::build_program(spec, strategy_for(4 / micro, lanes, micro, 10)), input);
    outcome.gradients = std::move(recorder.gradients);
    return outcome;
  };
  const auto expect_alike = [&](const Outcome& got, const Outcome& want) {
    for (const auto& [layer, router] : want.result.routers)
      EXPECT_NEAR(got.result.routers.at(layer).balance_loss, router.balance_loss, 1e-6);
    for (size_t part = 0; part < want.gradients.size(); ++part) {
      if (!want.gradients[part].defined()) continue;
      EXPECT_LT((got.gradients[part] - want.gradients[part]).abs().max().item<float>(),
                1e-6 + 1e-5 * want.gradients[part].abs().max().item<float>())
          << "part " << part;
    }
  };
  EXPECT_GT(std::fabs(run_cut(1, 1).result.routers.at(0).balance_loss -
                      run_cut(4, 1).result.routers.at(0).balance_loss),
            1e-3);
  for (int layer = 0; layer < 2; ++layer) load[layer] = {7, 31, 2, 20, 11, 9};
  const Outcome whole = run_cut(4, 1);
  expect_alike(run_cut(2, 1), whole);
  expect_alike(run_cut(1, 1), whole);
  expect_alike(run_cut(1, 4), whole);
  // Even counts: E times the mean of shares that sum to one.
  for (int layer = 0; layer < 2; ++layer) load[layer].assign(6, 5);
  for (const auto& [layer, router] : run_cut(2, 2).result.routers)
    EXPECT_NEAR(router.balance_loss, 1.0, 1e-6);
}

TEST_F(ExecutorTest, ATinyModelLearnsABatchByHeart) {
  for (const auto precision : {Precision::kFp32, Precision::kBf16}) {
    for (const size_t config : {size_t{0}, size_t{3}, size_t{8}}) {
      nn::ParameterStore store(tiny(config),
                               precision == Precision::kBf16 ? at::kBFloat16 : at::kFloat);
      store.initialize(6);
      nn::Model model(store);
      const auto optimizer = optim::make_optimizer({}, store.spec());
      Executor executor(model, store, *optimizer);
      plan::Strategy strategy = strategy_for(2, 1, 2, 12);
      strategy.precision = precision;
      const plan::Program program = plan::build_program(store.spec(), strategy);
      StepInput input;
      input.micro_batches = random_batches(store.spec(), 2, 2, 12, 10);
      input.learning_rate = 1e-2;
      input.clip_norm = 1.0;
      double first = 0.0, last = 0.0;
      for (input.step = 0; input.step < 40; ++input.step) {
        const StepResult result = executor.run_step(program, input);
        ASSERT_TRUE(result.applied);
        (input.step == 0 ? first : last) = result.loss;
      }
      EXPECT_LT(last, 0.5 * first) << store.spec().family;
      if (store.has_compute_copy()) {
        EXPECT_TRUE(at::equal(store.part_compute(1), store.part_master(1).to(at::kBFloat16)));
      }
    }
  }
}

TEST_F(ExecutorTest, TheOptimizerGetsTheClippedScaleAndTheStepsNumber) {
  nn::ParameterStore store(tiny(3));
  store.initialize(7);
  nn::Model model(store);
  RecordingOptimizer recorder;
  Executor executor(model, store, recorder);
  StepInput input;
  input.micro_batches = random_batches(store.spec(), 2, 2, 8, 11);
  input.step = 41;
  input.learning_rate = 0.25;
  input.clip_norm = 1e-3;
  const StepResult result =
      executor.run_step(plan::build_program(store.spec(), strategy_for(2, 1, 2, 8)), input);
  EXPECT_EQ(recorder.calls, store.num_parts());
  EXPECT_EQ(recorder.last.step, 42);
  EXPECT_EQ(recorder.last.lr, 0.25);
  EXPECT_NEAR(recorder.last.gradient_scale * result.grad_norm, 1e-3, 1e-6);
}

TEST_F(ExecutorTest, ALossThatIsNotFiniteChangesNothing) {
  nn::ParameterStore store(tiny(3));
  store.initialize(8);
  nn::Model model(store);
  RecordingOptimizer recorder;
  Executor executor(model, store, recorder);
  store.part_master(1)[0] = std::numeric_limits<float>::quiet_NaN();
  StepInput input;
  input.micro_batches = random_batches(store.spec(), 1, 2, 8, 12);
  const StepResult result =
      executor.run_step(plan::build_program(store.spec(), strategy_for(1, 1, 2, 8)), input);
  EXPECT_FALSE(result.applied);
  EXPECT_FALSE(std::isfinite(result.loss));
  EXPECT_EQ(recorder.calls, 0);
}

TEST_F(ExecutorTest, BatchesThatDoNotFitTheProgramAreRefused) {
  nn::ParameterStore store(tiny(3));
  store.initialize(9);
  const plan::Strategy strategy = strategy_for(2, 1, 2, 8);
  EXPECT_THROW(run(store, strategy, random_batches(store.spec(), 1, 2, 8, 1)), std::exception);
  EXPECT_THROW(run(store, strategy, random_batches(store.spec(), 2, 2, 9, 1)), std::exception);
  EXPECT_THROW(run(store, strategy, random_batches(store.spec(), 2, 1, 8, 1)), std::exception);
}

// Without its modules the model learns as if they were not there: a weight of 0 leaves the shared gradients alone.
TEST_F(ExecutorTest, MultiTokenPredictionOfNoWeightChangesNoOtherGradient) {
  const model::ModelSpec plain = tiny_mtp("gated shared expert", 0);
  const model::ModelSpec with = tiny_mtp("gated shared expert", 2, 0.0);
  const std::vector<data::Batch> batches = random_batches(plain, 4, 2, 11, 14);
  nn::ParameterStore plain_store(plain), store(with);
  plain_store.initialize(12);
  store.initialize(12);
  const Outcome want = run(plain_store, strategy_for(4, 2, 2, 11), batches);
  const Outcome got = run(store, strategy_for(4, 2, 2, 11), batches);
  EXPECT_EQ(got.result.loss, want.result.loss);
  for (size_t part = 0; part < want.gradients.size(); ++part) {
    if (!want.gradients[part].defined()) continue;
    EXPECT_TRUE(at::equal(got.gradients[part], want.gradients[part])) << part;
  }
  for (size_t part = want.gradients.size(); part < got.gradients.size(); ++part) {
    if (!got.gradients[part].defined()) continue;
    EXPECT_EQ(got.gradients[part].abs().max().item<float>(), 0.0F) << part;
  }
}

// Whatever stands after a document's end, in the next one or in another row, a module's loss does not see it.
TEST_F(ExecutorTest, ModulesDoNotLookIntoTheNextDocument) {
  nn::ParameterStore store(tiny_mtp("dense", 3));
  store.initialize(13);
  std::vector<data::Batch> batches = random_batches(store.spec(), 1, 1, 12, 15);
  data::Batch& batch = batches[0];
  batch.segments = {{0, 7}};
  batch.targets[6] = data::kIgnoredTarget;
  std::fill(batch.targets.begin() + 7, batch.targets.end(), data::kIgnoredTarget);
  batch.num_targets = count_targets(store.spec(), batches)[0];
  const Outcome want = run(store, strategy_for(1, 1, 1, 12), batches);
  for (size_t i = 7; i < 12; ++i) batch.tokens[i] = static_cast<int32_t>(i);
  const Outcome got = run(store, strategy_for(1, 1, 1, 12), batches);
  EXPECT_EQ(got.result.loss, want.result.loss);
  EXPECT_EQ(got.result.mtp_losses, want.result.mtp_losses);
  // Module k predicts those of the seven tokens' six targets that count, but for the first k.
  std::vector<int64_t> targets;
  for (int k = 1; k <= 3; ++k) {
    targets.push_back(
        6 - k -
        std::count(batch.targets.begin() + k, batch.targets.begin() + 6, data::kIgnoredTarget));
  }
  EXPECT_EQ(got.result.mtp_targets, targets);
}

TEST_F(ExecutorTest, EvaluationGivesTheTrainingForwardsLoss) {
  for (const model::ModelSpec& spec : {tiny(5), tiny_mtp("gated shared expert", 1)}) {
    nn::ParameterStore store(spec);
    store.initialize(10);
    nn::Model model(store);
    const std::vector<data::Batch> batches = random_batches(store.spec(), 1, 3, 10, 13);
    const Outcome trained = run(store, strategy_for(1, 1, 3, 10), batches);
    const EvaluationResult evaluated = evaluate(model, batches[0]);
    EXPECT_EQ(evaluated.loss_sum / static_cast<double>(evaluated.num_targets), trained.result.loss);
    double sum = 0.0;
    for (const float loss : evaluated.token_losses) sum += loss;
    EXPECT_NEAR(sum, evaluated.loss_sum, 1e-4 * evaluated.loss_sum);
    EXPECT_EQ(evaluated.token_losses.size(), 30u);
  }
}

TEST_F(ExecutorTest, MeasurementsAreInIssueOrderWithinTheStep) {
  nn::ParameterStore store(tiny(3));
  store.initialize(11);
  const Outcome outcome =
      run(store, strategy_for(2, 1, 2, 8), random_batches(store.spec(), 2, 2, 8, 1));
  double end = 0.0;
  int64_t peak = 0;
  for (const plan::Measurement& measurement : outcome.result.measurements) {
    EXPECT_GE(measurement.start_s, end);
    end = measurement.start_s + measurement.duration_s;
    EXPECT_GE(measurement.peak_bytes, measurement.held_bytes_after);
    peak = std::max(peak, measurement.peak_bytes);
  }
  EXPECT_LE(end, outcome.result.seconds);
  EXPECT_EQ(peak, outcome.result.peak_allocated_bytes);
}

}  // namespace
}  // namespace trireme::execute
