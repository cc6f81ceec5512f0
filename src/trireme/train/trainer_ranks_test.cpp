// Runs over ranks: what they leave is what one rank leaves.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trireme/base/file.h"
#include "trireme/comm/local/local_world.h"
#include "trireme/train/testing/trainer_fixture.h"

namespace trireme::train {
namespace {

using ::testing::HasSubstr;

class TrainerRanksTest : public TrainerTest {};

/// The run over ranks that are threads.
void train_on_ranks(const RunFile& run) {
  comm::run_ranks(static_cast<int>(run.config.parallel.dp), [&](comm::World& world) {
    TrainOptions options;
    options.quiet = true;
    options.world = &world;
    train(run, options);
  });
}

TEST_P(TrainerRanksTest, RanksLeaveWhatOneRankLeaves) {
  for (const char* recipe : {"fp32", "bf16"}) {
    const std::string precision = fmt::format("precision.recipe={}", recipe);
    const std::vector<std::string> sets = {precision, "batch.ramp_start=4", "batch.ramp_steps=3",
                                           "batch.sequences=8", "batch.lanes=4"};
    const std::string one = fmt::format("one-{}", recipe);
    train(run(one, sets), options());
    const bool fp32 = recipe == std::string("fp32");
    for (const auto& [dp, zero] : fp32 ? std::vector<std::pair<int, int>>{{2, 0}, {3, 1}, {2, 2}}
                                       : std::vector<std::pair<int, int>>{{3, 0}, {2, 1}, {3, 2}}) {
      const std::string out = fmt::format("{}-{}-{}", recipe, dp, zero);
      std::vector<std::string> over = sets;
      over.push_back(fmt::format("parallel.dp={}", dp));
      over.push_back(fmt::format("parallel.zero={}", zero));
      train_on_ranks(run(out, over));
      EXPECT_EQ(digest(out), digest(one)) << out;
      EXPECT_EQ(figures(out), figures(one)) << out;
      EXPECT_EQ(read_file(folder_ / out / "export/model.safetensors"),
                read_file(folder_ / one / "export/model.safetensors"));
    }
  }
}

TEST_P(TrainerRanksTest, ARunGoesOnWithAnotherNumberOfRanks) {
  const std::vector<std::string> sets = {"precision.recipe=bf16", "batch.lanes=4"};
  train(run("whole", sets), options());
  const auto with = [&](int dp, int zero) {
    std::vector<std::string> over = sets;
    over.push_back(fmt::format("parallel.dp={}", dp));
    over.push_back(fmt::format("parallel.zero={}", zero));
    return run("pieces", over);
  };
  int pieces = 0;
  for (const auto& [dp, zero] : {std::pair{3, 1}, {1, 0}, {2, 2}, {4, 1}, {2, 0}, {3, 2}}) {
    set_interrupted(true);
    try {
      train_on_ranks(with(dp, zero));
    } catch (const Error& error) {
      ASSERT_EQ(error.code(), ErrorCode::kInterrupted) << error.what();
      ++pieces;
    }
  }
  EXPECT_EQ(pieces, 5);
  EXPECT_EQ(digest("pieces"), digest("whole"));
  EXPECT_EQ(figures("pieces"), figures("whole"));
}

TEST_P(TrainerRanksTest, RanksThatAreNotThereAreAnError) {
  try {
    train(run("a", {"parallel.dp=2"}), options());
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kConfig);
    EXPECT_THAT(error.what(), HasSubstr("2 ranks, and 1 is here"));
    EXPECT_THAT(error.hint(), HasSubstr("trireme launch --nproc 2"));
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, TrainerRanksTest, ::testing::Values("cpu", "sim"), device_of);

}  // namespace
}  // namespace trireme::train
