#include "trireme/train/device_trial.h"

#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "trireme/base/error.h"
#include "trireme/base/hash.h"
#include "trireme/base/json.h"
#include "trireme/execute/executor.h"
#include "trireme/nn/model.h"
#include "trireme/train/run_setup.h"
#include "trireme/train/step_benchmark.h"

namespace trireme::train {
namespace {

constexpr int64_t kSeqLen = 16;
constexpr int kDraws = 8;
constexpr double kLambda = 6;  ///< missed by less than one chain in 10^7
constexpr int64_t kLongestSurvey =
    128;  ///< tokens: which operators are called does not depend on it

model::ModelSpec trial_spec(bool experts) {
  Json config = {{"model_type", experts ? "mixtral" : "llama"},
                 {"vocab_size", 64},
                 {"hidden_size", 32},
                 {"intermediate_size", 48},
                 {"num_hidden_layers", 2},
                 {"num_attention_heads", 4},
                 {"num_key_value_heads", 2},
                 {"max_position_embeddings", 64}};
  if (experts) config.update({{"num_local_experts", 4}, {"num_experts_per_tok", 2}});
  return model::spec_from_config(config.dump(), "trial.json");
}

TrialRun trial(bool experts, plan::Precision precision, optim::OptimizerKind optimizer) {
  TrialRun run{fmt::format("{}, {}, {}", experts ? "experts" : "dense", plan::to_string(precision),
                           optim::to_string(optimizer)),
               trial_spec(experts),
               {},
               {}};
  run.strategy.sequences = 8;
  run.strategy.micro = 2;
  run.strategy.lanes = 2;
  run.strategy.seq_len = kSeqLen;
  run.strategy.precision = precision;
  run.optimizer.kind = optimizer;
  return run;
}

/// The longest chain of additions and products from a weight to the loss: inner sizes of the products, sums and norms that
/// follow each other.
double chain_length(const model::ModelSpec& spec, const plan::Strategy& strategy) {
  const auto hidden = static_cast<double>(spec.hidden);
  double n = 0;
  for (const model::LayerSpec& layer : spec.layers) {
    const auto inner = static_cast<double>(layer.moe ? layer.moe->expert.hidden : layer.mlp.hidden);
    n += 2 * (hidden + 4);                                    // norms
    n += 2 * hidden + static_cast<double>(strategy.seq_len);  // projections, weighted values
    n += hidden + static_cast<double>(strategy.seq_len);      // scores and their softmax
    n += hidden + inner + 8;                                  // the feed-forward part
  }
  n += hidden + 4 + hidden + static_cast<double>(spec.vocab_size);        // norm, head, log-sum-exp
  return n + static_cast<double>(strategy.sequences * strategy.seq_len);  // the mean
}

void move_weights(nn::ParameterStore& store, double share, uint64_t draw) {
  for (int part = 0; part < store.num_parts(); ++part) {
    const at::Tensor weights = store.part_master(part);
    if (weights.numel() == 0) continue;
    auto* values = weights.mutable_data_ptr<float>();
    for (int64_t i = 0; i < weights.numel(); ++i) {
      const bool up = mix(draw, static_cast<uint64_t>(part), static_cast<uint64_t>(i)) % 2 == 0;
      values[i] = static_cast<float>(values[i] * (1 + (up ? share : -share)));
    }
  }
  store.refresh_compute();
}

struct Trainer {
  Trainer(const TrialRun& run, at::Device device)
      : program(plan::build_program(run.spec, run.strategy)),
        store(run.spec,
              run.strategy.precision == plan::Precision::kBf16 ? at::kBFloat16 : at::kFloat,
              at::kFloat, device),
        model(store),
        optimizer(optim::make_optimizer(run.optimizer, run.spec, device)),
        executor(model, store, *optimizer) {
    store.initialize(1);
    for (int64_t m = 0; m < run.strategy.micro_batches(); ++m)
      input.micro_batches.push_back(random_batch(run.spec, run.strategy, static_cast<uint64_t>(m)));
    input.learning_rate = 1e-2;
    input.clip_norm = 1.0;
  }
  execute::StepResult step() {
    const execute::StepResult result = executor.run_step(program, input);
    ++input.step;
    return result;
  }

  plan::Program program;
  nn::ParameterStore store;
  nn::Model model;
  std::unique_ptr<optim::Optimizer> optimizer;
  execute::Executor executor;
  execute::StepInput input;
};

/// How far errors of a device's kernels may move each step's figures.
std::vector<TrialStep> bounds_of(const TrialRun& run, const std::vector<TrialStep>& want) {
  const double n = chain_length(run.spec, run.strategy);
  const double u = std::ldexp(1.0, -24);
  const double gamma = std::expm1(kLambda * std::sqrt(n) * u + n * u * u / (1 - u));
  std::vector<TrialStep> largest(want.size());
  for (int draw = 0; draw < kDraws; ++draw) {
    const auto moved = run_trial(run, at::kCPU, static_cast<int64_t>(want.size()), gamma,
                                 static_cast<uint64_t>(draw));
    for (size_t i = 0; i < want.size(); ++i) {
      largest[i].loss = std::max(largest[i].loss, std::abs(moved[i].loss - want[i].loss));
      largest[i].grad_norm =
          std::max(largest[i].grad_norm, std::abs(moved[i].grad_norm - want[i].grad_norm));
    }
  }
  for (size_t i = 0; i < want.size(); ++i) {
    const double factor = 2 * 2 * static_cast<double>(i + 1);
    largest[i].loss = factor * largest[i].loss + 2 * gamma * want[i].loss;
    largest[i].grad_norm = factor * largest[i].grad_norm + 2 * gamma * want[i].grad_norm;
  }
  return largest;
}

bool is_same(const std::vector<TrialStep>& a, const std::vector<TrialStep>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const auto& x, const auto& y) {
    return x.loss == y.loss && x.grad_norm == y.grad_norm;
  });
}

TrialComparison compare(const TrialRun& run, at::Device device) {
  TrialComparison result;
  result.name = run.name;
  result.want = run_trial(run, at::kCPU);
  try {
    result.got = run_trial(run, device);
  } catch (const c10::Error& error) {
    result.problem = fmt::format("it throws: {}", error.what_without_backtrace());
    return result;
  } catch (const std::exception& error) {
    result.problem = fmt::format("it throws: {}", error.what());
    return result;
  }
  result.same_bits = is_same(result.got, result.want);
  if (result.same_bits) return result;
  const std::vector<TrialStep> bounds = bounds_of(run, result.want);
  for (size_t i = 0; i < bounds.size(); ++i) {
    const auto judge = [&](const char* what, double got, double want, double bound) {
      const double share = std::abs(got - want) / bound;
      result.worst = std::isnan(share) ? share : std::max(result.worst, share);
      // NaN is not inside either.
      if (!(share <= 1.0) && result.problem.empty())
        result.problem =
            fmt::format("step {} has the {} {:.9g}, on the CPU {:.9g}; the bound is {:.3g}", i,
                        what, got, want, bound);
    };
    judge("loss", result.got[i].loss, result.want[i].loss, bounds[i].loss);
    judge("gradient norm", result.got[i].grad_norm, result.want[i].grad_norm, bounds[i].grad_norm);
  }
  return result;
}

}  // namespace

std::vector<TrialRun> trial_runs() {
  using optim::OptimizerKind;
  using plan::Precision;
  return {trial(false, Precision::kFp32, OptimizerKind::kAdamW),
          trial(true, Precision::kFp32, OptimizerKind::kAdamW),
          trial(false, Precision::kBf16, OptimizerKind::kMuon)};
}

TrialRun trial_of(const RunConfig& run, const model::ModelSpec& spec, plan::Precision precision) {
  TrialRun trial{fmt::format("{}, {}", spec.family, plan::to_string(precision)), spec,
                 strategy_of(run, spec, precision), optimizer_of(run)};
  trial.strategy.sequences = 1;
  trial.strategy.micro = 1;
  trial.strategy.lanes = 1;
  trial.strategy.seq_len = std::min(kLongestSurvey, run.data.seq_len);
  return trial;
}

TrialRun trial_of(const RunFile& run) {
  const model::ModelSpec spec = spec_of(run);
  choose_kernels(run.config);
  return trial_of(run.config, spec, choose_precision(run.config.precision.recipe).precision);
}

std::vector<TrialStep> run_trial(const TrialRun& run, at::Device device, int64_t steps,
                                 double weight_error, uint64_t draw) {
  Trainer trainer(run, device);
  if (weight_error != 0) move_weights(trainer.store, weight_error, draw);
  std::vector<TrialStep> results;
  for (int64_t step = 0; step < steps; ++step) {
    const execute::StepResult result = trainer.step();
    results.push_back({result.loss, result.grad_norm});
  }
  return results;
}

std::vector<TrialComparison> compare_training(device::Device& device) {
  std::vector<TrialComparison> results;
  for (const TrialRun& run : trial_runs()) {
    if (run.strategy.precision == plan::Precision::kFp32)
      results.push_back(compare(run, device.torch_device()));
  }
  return results;
}

std::vector<std::string> TrialSurvey::missing() const {
  std::vector<std::string> names;
  for (const device::OperatorUse& use : uses) {
    if (use.where == device::OperatorUse::Where::kMissing) names.push_back(use.name);
  }
  return names;
}

TrialSurvey survey_trial(const TrialRun& run, device::Device& device) {
  TrialSurvey survey;
  survey.name = run.name;
  const auto is_on_cpu = [](const device::OperatorUse& use) {
    return use.where == device::OperatorUse::Where::kFallback ||
           use.where == device::OperatorUse::Where::kMissing;
  };
  const auto cpu_seconds = [&](const std::vector<device::OperatorUse>& uses) {
    double seconds = 0;
    for (const device::OperatorUse& use : uses) seconds += is_on_cpu(use) ? use.seconds : 0;
    return seconds;
  };
  const device::OperatorSurvey operators(device.torch_device().type());
  Trainer trainer(run, device.torch_device());
  trainer.step();
  device.synchronize();
  const std::vector<device::OperatorUse> before = operators.uses();
  const auto start = std::chrono::steady_clock::now();
  trainer.step();
  device.synchronize();
  survey.step_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  survey.uses = operators.uses();
  survey.cpu_s = cpu_seconds(survey.uses) - cpu_seconds(before);
  // Figures are of one step; what only the start calls stays with a figure of 0.
  for (device::OperatorUse& use : survey.uses) {
    const auto same = std::find_if(before.begin(), before.end(),
                                   [&](const auto& other) { return other.name == use.name; });
    if (same == before.end()) continue;
    use.calls -= same->calls;
    use.seconds -= same->seconds;
    use.bytes -= same->bytes;
  }
  return survey;
}

}  // namespace trireme::train
