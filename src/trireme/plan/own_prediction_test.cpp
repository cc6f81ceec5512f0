#include "trireme/plan/own_prediction.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>

#include "trireme/base/error.h"
#include "trireme/plan/measured_spans.h"

namespace trireme::plan {
namespace {

PlannedRun small_run() {
  PlannedRun run;
  run.spec = model::spec_from_config(R"({"model_type": "mixtral", "vocab_size": 512,
      "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
      "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4,
      "num_experts_per_tok": 2, "max_position_embeddings": 256, "tie_word_embeddings": false})",
                                     "test");
  run.strategy.micro = 2;
  run.strategy.sequences = 8;
  run.strategy.lanes = 2;
  run.strategy.seq_len = 32;
  run.cluster = shipped_profiles().cluster("dgx-h100");
  run.cluster.device.asynchronous = false;
  run.stack = shipped_profiles().stack("trireme");
  run.tables = run.cluster.device.measured;
  return run;
}

/// Rates of every kind of instruction that the run has, drawn.
void draw_rates(PlannedRun& run, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<double> factor(0.5, 4.0);
  const Program program = build_program(run.spec, run.strategy);
  std::set<InstructionClass> classes;
  InstructionPrices prices(run, program);
  for (const Instruction& instruction : program.instructions)
    classes.insert(prices.class_of(instruction));
  for (const InstructionClass& of : classes) {
    InstructionRate rate;
    rate.of = of;
    rate.fixed_s = 1e-5 * factor(random);
    rate.products = factor(random);
    rate.attention = factor(random);
    rate.memory = factor(random);
    run.cluster.device.instructions.push_back(rate);
  }
}

double law(const PlannedRun& run, const Program& program, const Instruction& instruction) {
  InstructionPrices prices(run, program);
  const InstructionRate* const rate = prices.rate_of(instruction);
  const TableSeconds tables = prices.tables_of(instruction);
  return rate->fixed_s + rate->products * tables.products + rate->attention * tables.attention +
         rate->memory * tables.memory;
}

// Where the host does the work, a step is the sum of its instructions, and of what is between them and around them.
TEST(OwnPrediction, OfOneRankInOrderIsASum) {
  PlannedRun run = small_run();
  run.strategy.offload_optimizer = true;
  draw_rates(run, 3);
  run.cluster.device.instruction_gap_s = 2e-6;
  run.cluster.device.step_overhead_s = 1e-4;
  const Program program = build_program(run.spec, run.strategy);
  double sum = 1e-4;
  for (const Instruction& instruction : program.instructions)
    sum += law(run, program, instruction) + 2e-6;
  ASSERT_TRUE(has_own_rates(run));
  PredictedWorld world;
  const Prediction prediction = predict(run, &world);
  EXPECT_NEAR(prediction.step_s, sum, 1e-9);
  EXPECT_NEAR(prediction.measured_share.value(), 1.0, 0.05);
  ASSERT_EQ(world.programs.size(), 1u);
  EXPECT_TRUE(world.whole);
  EXPECT_EQ(world.programs.front().instructions.size(), program.instructions.size());
  double shown = 0.0;
  for (const auto& [kind, seconds] : prediction.time_by_kind_s) shown += seconds;
  EXPECT_NEAR(shown, prediction.step_s, 1e-6);
}

// Known numbers behind every instruction's seconds: what is measured of three layouts predicts a fourth.
TEST(OwnPrediction, RatesFromMeasuredStepsPredictOtherSteps) {
  for (const uint64_t seed : {1, 2, 3, 4, 5}) {
    PlannedRun truth = small_run();
    truth.strategy.lanes = 1;
    draw_rates(truth, seed);
    truth.cluster.device.instruction_gap_s = 3e-6;
    truth.cluster.device.step_overhead_s = 5e-5;
    MeasuredSpans spans;
    std::mt19937_64 random(seed);
    std::normal_distribution<double> noise(0.0, 0.01);
    for (const auto& [micro, seq_len] : {std::pair{1, 16}, {2, 32}, {4, 32}, {1, 128}, {8, 16}}) {
      PlannedRun run = truth;
      run.strategy.micro = micro;
      run.strategy.sequences = 4 * micro;
      run.strategy.seq_len = seq_len;
      const Program program = build_program(run.spec, run.strategy);
      std::vector<std::vector<double>> durations;
      std::vector<double> steps;
      for (int step = 0; step < 9; ++step) {
        double sum = 5e-5;
        std::vector<double>& of_step = durations.emplace_back();
        for (const Instruction& instruction : program.instructions) {
          of_step.push_back(law(run, program, instruction) * (1.0 + noise(random)));
          sum += of_step.back() + 3e-6;
        }
        steps.push_back(sum);
      }
      spans.add(run, program, durations, steps);
    }
    PlannedRun other = truth;
    other.cluster.device.instructions = spans.rates();
    // Programs of equally many instructions do not tell a step's share from an instruction's.
    const HostTimes host = spans.host_times();
    const double count =
        static_cast<double>(build_program(truth.spec, truth.strategy).instructions.size());
    EXPECT_NEAR(host.gap_s * count + host.step_s, 3e-6 * count + 5e-5, 1e-6);
    other.cluster.device.instruction_gap_s = host.gap_s;
    other.cluster.device.step_overhead_s = host.step_s;
    other.strategy.micro = truth.strategy.micro = 3;
    other.strategy.sequences = truth.strategy.sequences = 9;
    other.strategy.seq_len = truth.strategy.seq_len = 48;
    EXPECT_NEAR(predict(other).step_s / predict(truth).step_s, 1.0, 0.02) << seed;
  }
}

// Two ranks that compute alike and meet at the links.
TEST(OwnPrediction, RanksWaitForTheirTransfersAndForEachOther) {
  PlannedRun run = small_run();
  run.strategy.lanes = 4;
  run.strategy.parallel.dp = 2;
  run.cluster.node.accelerators = 2;
  run.cluster.node.links = {{}};
  run.cluster.node.links[0].bytes_per_s = 1e15;
  run.cluster.node.links[0].fixed_s = run.cluster.node.links[0].latency_s = 0.0;
  draw_rates(run, 9);
  const double quick = predict(run).step_s;
  run.cluster.node.busy_slowdown = 1.5;
  EXPECT_NEAR(predict(run).step_s / quick, 1.5, 0.01);
  run.cluster.node.busy_slowdown = 1.0;
  // The slower the link, the more of its time shows; at least all that does not fit beside the computation.
  run.cluster.node.links[0].bytes_per_s = 1e6;
  const Prediction slow = predict(run);
  double bytes = 0.0;
  for (const auto& [kind, sent] : slow.sent_bytes) bytes += sent;
  EXPECT_GT(slow.step_s, bytes / 1e6);
  EXPECT_LT(slow.step_s, quick + 2.0 * bytes / 1e6 / 0.6);
  EXPECT_GT(slow.exposed_comm_s, 0.0);
  // Members of two nodes talk over the network.
  run.cluster.node.accelerators = 1;
  run.cluster.network.link = run.cluster.node.links[0];
  run.cluster.network.link.bytes_per_s = 1e15;
  EXPECT_NEAR(predict(run).step_s / quick, 1.0, 0.01);
}

TEST(OwnPrediction, ModesThatWereNotMeasuredCountAsTheirKind) {
  PlannedRun run = small_run();
  run.strategy.recompute.assign(run.spec.parts.size(), Recompute::kNone);
  draw_rates(run, 4);
  std::erase_if(run.cluster.device.instructions, [](const InstructionRate& rate) {
    return rate.of.kind.find('/') != std::string::npos;
  });
  const Program program = build_program(run.spec, run.strategy);
  InstructionPrices prices(run, program);
  for (const Instruction& instruction : program.instructions) {
    const InstructionRate* const rate = prices.rate_of(instruction);
    ASSERT_NE(rate, nullptr);
    EXPECT_EQ(rate->of.kind, to_string(instruction.kind));
  }
}

// What is calibrated for devices at large is in the measured instructions already.
TEST(OwnPrediction, CalibrationsOfOtherDevicesDoNotCount) {
  PlannedRun run = small_run();
  draw_rates(run, 6);
  const double alone = predict(run).step_s;
  ProfileLibrary library = shipped_profiles();
  for (const char* key : {"sustained", "memory", "host", "network"})
    library.calibrations.push_back({"", "trireme", key, {{0.5, "elsewhere"}}});
  use_profiles(library, "", run);
  EXPECT_DOUBLE_EQ(predict(run).step_s, alone);
}

TEST(OwnPrediction, OtherSoftwareAndLargeWorldsArePredictedAsBefore) {
  PlannedRun run = small_run();
  EXPECT_FALSE(has_own_rates(run));
  draw_rates(run, 5);
  EXPECT_TRUE(has_own_rates(run));
  run.strategy.parallel.dp = kMostOwnRanks * 2;
  EXPECT_FALSE(has_own_rates(run));
  run.strategy.parallel.dp = 1;
  run.stack = shipped_profiles().stack("megatron-core");
  EXPECT_FALSE(has_own_rates(run));
}

TEST(MeasuredSpans, WhatIsUsualCounts) {
  EXPECT_EQ(usual_durations({{1.0, 9.0}, {1.1, 9.2}, {90.0, 5.0}}),
            (std::vector<double>{1.05, 9.1}));
  EXPECT_EQ(usual_durations({{1.0}, {2.0}}), std::vector<double>{1.5});
  EXPECT_THROW(usual_durations({}), Error);
  EXPECT_EQ(most_common({4.0}), 4.0);
  EXPECT_EQ(most_common({7.0, 7.0, 7.0, 7.0, 1.0}), 7.0);
}

// Six of ten measurements were disturbed and took up to four times as long: the median is far off.
TEST(MeasuredSpans, WhatIsUsualStandsMoreDisturbancesThanAMedian) {
  std::mt19937_64 random(3);
  std::normal_distribution<double> noise(1.0, 0.01);
  std::uniform_real_distribution<double> uniform(0.0, 1.0);
  double sum = 0.0;
  double sum_of_medians = 0.0;
  constexpr int kTrials = 400;
  for (int trial = 0; trial < kTrials; ++trial) {
    std::vector<double> values;
    for (int i = 0; i < 20; ++i)
      values.push_back(noise(random) * (uniform(random) < 0.6 ? 1.0 + 3.0 * uniform(random) : 1.0));
    sum += most_common(values) / kTrials;
    std::ranges::sort(values);
    sum_of_medians += values[10] / kTrials;
  }
  EXPECT_GT(sum_of_medians, 1.2);
  EXPECT_LT(sum - 1.0, 0.5 * (sum_of_medians - 1.0));
}

// Where nothing disturbs, it is the mean.
TEST(MeasuredSpans, WhatIsUsualIsTheMeanOfSymmetricNoise) {
  std::mt19937_64 random(4);
  std::normal_distribution<double> noise(1.0, 0.02);
  double sum = 0.0;
  constexpr int kTrials = 400;
  for (int trial = 0; trial < kTrials; ++trial) {
    std::vector<double> values;
    for (int i = 0; i < 20; ++i) values.push_back(noise(random));
    sum += most_common(values) / kTrials;
  }
  EXPECT_NEAR(sum, 1.0, 0.003);
}

// Steps that are a tenth longer than what their instructions usually take are predicted so.
TEST(MeasuredSpans, StepsAreAsMuchSlowerAsTheyWereMeasured) {
  PlannedRun run = small_run();
  const Program program = build_program(run.spec, run.strategy);
  const auto count = static_cast<double>(program.instructions.size());
  std::vector<std::vector<double>> durations;
  std::vector<double> steps;
  for (int step = 0; step < 20; ++step) {
    // Every instruction of every other step is disturbed, each in its turn: usual is 1e-4, a step's median is more.
    std::vector<double>& own = durations.emplace_back(program.instructions.size(), 1e-4);
    for (size_t i = static_cast<size_t>(step); i < own.size(); i += 10) own[i] = 2e-4;
    double sum = 0.0;
    for (const double seconds : own) sum += seconds;
    steps.push_back(sum);
  }
  MeasuredSpans spans;
  spans.add(run, program, durations, steps);
  EXPECT_NEAR(spans.host_times().slowdown, 1.1, 0.02);
  run.cluster.device.instructions = spans.rates();
  run.cluster.device.step_slowdown = spans.host_times().slowdown;
  EXPECT_NEAR(predict(run).step_s, 1.1e-4 * count, 0.02e-4 * count);
}

TEST(MeasuredSpans, KindsThatTakeNoTimeCostNothing) {
  PlannedRun run = small_run();
  const Program program = build_program(run.spec, run.strategy);
  std::vector<double> durations(program.instructions.size(), 1e-4);
  for (const Instruction& instruction : program.instructions) {
    if (instruction.kind == OpKind::kLoadBatch)
      durations[static_cast<size_t>(instruction.id)] = 0.0;
  }
  MeasuredSpans spans;
  spans.add(run, program, {durations}, {});
  run.cluster.device.instructions = spans.rates();
  InstructionPrices prices(run, program);
  for (const Instruction& instruction : program.instructions) {
    EXPECT_NEAR(prices.seconds(instruction), durations[static_cast<size_t>(instruction.id)], 1e-9)
        << to_string(instruction.kind);
  }
  EXPECT_EQ(spans.num_spans(), static_cast<int64_t>(program.instructions.size()));
  EXPECT_EQ(spans.host_times().gap_s, 0.0);
}

}  // namespace
}  // namespace trireme::plan
