#include "trireme/calibrate/comparison.h"

#include <fmt/format.h>

#include <algorithm>

#include "trireme/base/error.h"
#include "trireme/calibrate/calibration.h"

namespace trireme::calibrate {

namespace {

using plan::Precision;
using plan::Recompute;

// Widths, heads and layers that no calibration case has.
constexpr const char* kWide =
    R"({"model_type":"llama","vocab_size":1536,"hidden_size":320,"intermediate_size":864,"num_hidden_layers":3,
        "num_attention_heads":5,"num_key_value_heads":5,"max_position_embeddings":4096,"tie_word_embeddings":false})";
constexpr const char* kDeep =
    R"({"model_type":"llama","vocab_size":768,"hidden_size":160,"intermediate_size":448,"num_hidden_layers":4,
        "num_attention_heads":4,"num_key_value_heads":2,"max_position_embeddings":4096,"tie_word_embeddings":false})";
constexpr const char* kExperts =
    R"({"model_type":"mixtral","vocab_size":1024,"hidden_size":160,"intermediate_size":224,"num_hidden_layers":3,
        "num_attention_heads":5,"num_key_value_heads":5,"num_local_experts":6,"num_experts_per_tok":2,
        "max_position_embeddings":4096,"tie_word_embeddings":false})";

struct Shape {
  int64_t micro = 1;
  int64_t seq_len = 128;
  int64_t micro_batches = 4;
  int64_t lanes = 1;
};

class Cases {
 public:
  plan::Strategy& add(const std::string& name, const char* config, const Shape& shape,
                      Precision precision = Precision::kFp32,
                      Recompute recompute = Recompute::kNone) {
    StepCase& one = cases_.emplace_back();
    one.name = name;
    one.spec = model::spec_from_config(config, name);
    plan::Strategy& strategy = one.strategy;
    strategy.micro = shape.micro;
    strategy.sequences = shape.micro * shape.micro_batches;
    strategy.lanes = shape.lanes;
    strategy.seq_len = shape.seq_len;
    strategy.precision = precision;
    strategy.recompute.assign(one.spec.parts.size(), Recompute::kNone);
    for (size_t part = 0; part < one.spec.parts.size(); ++part) {
      if (one.spec.parts[part].layer >= 0) strategy.recompute[part] = recompute;
    }
    return strategy;
  }

  void offload_activations() {
    StepCase& one = cases_.back();
    one.strategy.offload_activations.assign(one.spec.parts.size(), 0);
    for (size_t part = 0; part < one.spec.parts.size(); ++part)
      one.strategy.offload_activations[part] = one.spec.parts[part].layer >= 0;
  }

  std::vector<StepCase> take() {
    for (const StepCase& one : cases_) {
      const std::vector<std::string> problems = plan::validate(one.spec, one.strategy);
      TRIREME_CHECK(problems.empty(), "{}: {}", one.name, problems.front());
    }
    return std::move(cases_);
  }

 private:
  std::vector<StepCase> cases_;
};

double quantile(std::vector<double> values, double share) {
  std::ranges::sort(values);
  const double place = share * static_cast<double>(values.size() - 1);
  const auto below = static_cast<size_t>(place);
  const size_t above = std::min(below + 1, values.size() - 1);
  return values[below] + (values[above] - values[below]) * (place - static_cast<double>(below));
}

}  // namespace

std::vector<StepCase> comparison_cases(int ranks) {
  Cases cases;
  cases.add("wide", kWide, {1, 128, 4, 1});
  cases.add("wide, 4 lanes", kWide, {1, 128, 4, 4});
  cases.add("wide, micro 2, 2 lanes", kWide, {2, 128, 2, 2});
  cases.add("wide, micro 4", kWide, {4, 128, 1, 1});
  cases.add("wide, 384 tokens", kWide, {1, 384, 2, 2});
  cases.add("wide, recompute full", kWide, {2, 128, 2, 2}, Precision::kFp32, Recompute::kFull);
  cases.add("wide, recompute selective", kWide, {2, 128, 2, 2}, Precision::kFp32,
            Recompute::kSelective);
  {
    plan::Strategy& strategy = cases.add("wide, attention recomputed", kWide, {2, 128, 2, 1});
    for (size_t part = 1; part < strategy.recompute.size(); part += 2)
      strategy.recompute[part] = Recompute::kFull;
  }
  cases.add("wide, delayed weight gradients", kWide, {1, 128, 4, 2}).delay_weight_gradients = true;
  cases.add("wide, optimizer on the host", kWide, {2, 128, 2, 1}).offload_optimizer = true;
  cases.add("wide, activations to the host", kWide, {2, 128, 2, 1});
  cases.offload_activations();
  cases.add("wide, bf16", kWide, {2, 128, 2, 2}, Precision::kBf16);
  cases.add("wide, bf16, recompute full", kWide, {2, 128, 2, 2}, Precision::kBf16,
            Recompute::kFull);
  cases.add("wide, bf16, 384 tokens", kWide, {1, 384, 2, 1}, Precision::kBf16);
  cases.add("deep, micro 8, 64 tokens", kDeep, {8, 64, 1, 1});
  cases.add("deep, 256 tokens, 4 lanes", kDeep, {2, 256, 4, 4});
  cases.add("deep, recompute full, 8 lanes", kDeep, {1, 128, 8, 8}, Precision::kFp32,
            Recompute::kFull);
  cases.add("deep, bf16", kDeep, {4, 128, 2, 2}, Precision::kBf16);
  cases.add("experts", kExperts, {2, 128, 2, 2});
  cases.add("experts, micro 1, 256 tokens", kExperts, {1, 256, 2, 1});
  cases.add("experts, recompute full", kExperts, {2, 128, 2, 2}, Precision::kFp32,
            Recompute::kFull);
  cases.add("experts, bf16", kExperts, {2, 128, 2, 1}, Precision::kBf16);
  if (ranks < 2) return cases.take();
  const auto data_parallel = [&](const std::string& name, const char* config, int64_t zero,
                                 Precision precision = Precision::kFp32) {
    plan::Strategy& strategy = cases.add(name, config, {2, 128, 2 * ranks, 2 * ranks}, precision);
    strategy.parallel.dp = ranks;
    strategy.parallel.zero = zero;
  };
  data_parallel("wide, data parallel", kWide, 0);
  data_parallel("wide, ZeRO 1", kWide, 1);
  data_parallel("wide, ZeRO 2", kWide, 2);
  data_parallel("wide, bf16, ZeRO 1", kWide, 1, Precision::kBf16);
  data_parallel("experts, data parallel", kExperts, 0);
  const auto pipeline = [&](const std::string& name, plan::ScheduleKind schedule, int64_t chunks) {
    plan::Strategy& strategy = cases.add(name, kDeep, {2, 128, 4 * 2, 1});
    strategy.parallel.pp = 2;
    strategy.parallel.schedule = schedule;
    strategy.parallel.chunks = chunks;
  };
  pipeline("deep, pipeline 1f1b", plan::ScheduleKind::k1F1B, 1);
  pipeline("deep, pipeline gpipe", plan::ScheduleKind::kGPipe, 1);
  pipeline("deep, pipeline interleaved", plan::ScheduleKind::kInterleaved, 2);
  pipeline("deep, pipeline zb-h1", plan::ScheduleKind::kZeroBubbleH1, 1);
  return cases.take();
}

double ComparedStep::median_s() const {
  return quantile(measured_s, 0.5);
}

double ComparedStep::spread() const {
  return 0.5 * (quantile(measured_s, 0.75) - quantile(measured_s, 0.25)) / median_s();
}

std::vector<ComparedStep> compare_steps(const std::vector<StepCase>& cases, const MachineUse& use,
                                        const plan::ClusterSpec& machine, int rounds,
                                        const std::function<void(const std::string&)>& progress) {
  constexpr int kWarmup = 1;
  constexpr int kSteps = 2;
  std::vector<ComparedStep> all;
  for (const StepCase& one : cases) {
    const plan::Prediction prediction = plan::predict(planned_run(one, machine));
    ComparedStep& compared = all.emplace_back();
    compared.name = one.name;
    compared.ranks = static_cast<int>(one.strategy.parallel.world());
    compared.predicted_s = prediction.step_s;
    plan::ClusterSpec alone = machine;
    alone.device.step_slowdown = 1.0;
    compared.undisturbed_s = plan::predict(planned_run(one, alone)).step_s;
    compared.measured_share = prediction.measured_share.value_or(0.0);
  }
  for (int round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < cases.size(); ++i) {
      if (progress)
        progress(fmt::format("steps, round {} of {}: {}", round + 1, rounds, cases[i].name));
      for (const SampledStep& step : sample_steps(cases[i], use, kWarmup, kSteps).steps) {
        all[i].measured_s.push_back(step.seconds);
        all[i].processor_s.push_back(step.processor_s);
      }
    }
  }
  return all;
}

}  // namespace trireme::calibrate
