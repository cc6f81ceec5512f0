#include "trireme/train/memory_advice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "trireme/plan/simulate.h"
#include "trireme/train/run_setup.h"

namespace trireme::train {
namespace {

using ::testing::HasSubstr;

int64_t peak_of(const RunConfig& run, const model::ModelSpec& spec) {
  return plan::simulate_in_issue_order(
             plan::build_program(spec, strategy_of(run, spec, plan::Precision::kFp32)))
      .peak_bytes;
}

std::vector<std::string> settings(const std::vector<MemoryOption>& options) {
  std::vector<std::string> names;
  for (const MemoryOption& option : options) names.push_back(option.setting);
  return names;
}

TEST(MemoryAdvice, TriesWhatLeavesTheBitsBeforeASmallerMicroBatch) {
  const model::ModelSpec spec = model::spec_from_preset("llama-11m");
  RunConfig run;
  run.batch = {.sequences = 16, .micro = 4, .lanes = 2};
  run.data.seq_len = 128;
  run.device.name = "sim";
  const int64_t peak = peak_of(run, spec);
  const std::vector<MemoryOption> options = memory_options(run, spec, plan::Precision::kFp32, peak);
  const std::vector<std::string> names = settings(options);
  EXPECT_EQ(names.at(0), "memory.recompute = \"selective\"");
  EXPECT_EQ(names.at(1), "memory.recompute = \"full\"");
  EXPECT_THAT(names, ::testing::Contains("memory.offload_optimizer = true"));
  EXPECT_THAT(names, ::testing::Contains("batch.micro = 2"));
  EXPECT_THAT(names,
              ::testing::Contains(HasSubstr("batch.micro = 1, memory.recompute = \"full\"")));
  EXPECT_THAT(names.back(), HasSubstr("batch.lanes = 1, memory.recompute = \"full\""));
  for (const MemoryOption& option : options) EXPECT_LT(option.peak_bytes, peak) << option.setting;
  // Each is what the planner says of the run with the setting in it.
  RunConfig full = run;
  full.memory.recompute = {"full"};
  EXPECT_EQ(options[1].peak_bytes, peak_of(full, spec));
  run.batch.micro = 2;
  const auto half = std::ranges::find(options, "batch.micro = 2", &MemoryOption::setting);
  EXPECT_EQ(half->peak_bytes, peak_of(run, spec));

  // The processor has no other memory to move to.
  run.batch.micro = 4;
  run.device.name = "cpu";
  for (const std::string& name :
       settings(memory_options(run, spec, plan::Precision::kFp32, peak_of(run, spec))))
    EXPECT_THAT(name, ::testing::Not(HasSubstr("offload")));
  // A run that recomputes everything already is not told to.
  full.batch.micro = 1;
  full.batch.lanes = 1;
  full.device.name = "cpu";
  EXPECT_TRUE(memory_options(full, spec, plan::Precision::kFp32, peak_of(full, spec)).empty());
}

TEST(MemoryAdvice, NamesTheFirstThatFitElseTheLeast) {
  const int64_t gb = 1'000'000'000;
  const std::vector<MemoryOption> options = {
      {"a = 1", 9 * gb}, {"b = 2", 5 * gb}, {"c = 3", 6 * gb}, {"d = 4", 2 * gb}};
  EXPECT_EQ(memory_advice(options, 7 * gb),
            "b = 2 needs 5 GB, which fits; c = 3 needs 6 GB, which fits");
  EXPECT_EQ(memory_advice(options, 7 * gb, 2 * gb),
            "b = 2 needs 7 GB, which fits; d = 4 needs 4 GB, which fits");
  EXPECT_THAT(memory_advice(options, gb), HasSubstr("even d = 4 needs 2 GB"));
  EXPECT_THAT(memory_advice({}, gb), HasSubstr("lower data.seq_len"));
}

}  // namespace
}  // namespace trireme::train
