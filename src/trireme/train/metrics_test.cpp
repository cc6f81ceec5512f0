#include "trireme/train/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <limits>

#include "trireme/base/error.h"
#include "trireme/base/file.h"
#include "trireme/train/progress.h"

namespace trireme::train {
namespace {

using ::testing::HasSubstr;

class MetricsFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ =
        std::filesystem::path(::testing::TempDir()) /
        ("metrics_" + std::string(::testing::UnitTest::GetInstance()->current_test_info()->name()));
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    path_ = folder_ / "metrics.jsonl";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  static StepMetrics at(int64_t step) {
    StepMetrics m;
    m.step = step;
    m.tokens = step * 100;
    m.loss = 1.0 / static_cast<double>(step);
    return m;
  }

  std::filesystem::path folder_;
  std::filesystem::path path_;
};

TEST_F(MetricsFileTest, HasTheKeysOfTheInterface) {
  const OrderedJson json = to_json(at(1));
  for (const char* key : {"step", "tokens", "loss", "grad_norm", "lr", "step_s", "tokens_per_s",
                          "model_tflops", "peak_bytes"}) {
    EXPECT_TRUE(json.contains(key)) << key;
  }
  EXPECT_FALSE(json.contains("valid_loss"));
}

TEST_F(MetricsFileTest, MultiTokenPredictionAddsItsLoss) {
  EXPECT_FALSE(to_json(at(1)).contains("mtp_loss"));
  StepMetrics m = at(1);
  m.mtp_loss = 2.5;
  MetricsFile file(path_, 0);
  file.append(m);
  m = at(2);
  m.mtp_loss = std::nan("");
  file.append(m);
  file.append(at(3));
  const std::vector<StepMetrics> back = read_metrics(path_);
  ASSERT_EQ(back.size(), 3u);
  EXPECT_EQ(back[0].mtp_loss, 2.5);
  EXPECT_TRUE(std::isnan(back[1].mtp_loss.value()));
  EXPECT_FALSE(back[2].mtp_loss.has_value());
}

TEST_F(MetricsFileTest, ExpertsAddTheirKeys) {
  EXPECT_FALSE(to_json(at(1)).contains("load"));
  StepMetrics m = at(2);
  m.load = {{3, 0, 9}, {4, 4, 4}};
  m.dropped = 2;
  m.balance_loss = 1.25;
  m.z_loss = 0.5;
  m.router_entropy = 0.75;
  MetricsFile(path_, 0).append(m);
  const std::vector<StepMetrics> back = read_metrics(path_);
  ASSERT_EQ(back.size(), 1u);
  EXPECT_EQ(back[0].load, m.load);
  EXPECT_EQ(back[0].dropped, 2);
  EXPECT_EQ(back[0].balance_loss, 1.25);
  EXPECT_EQ(back[0].router_entropy, 0.75);
  EXPECT_DOUBLE_EQ(largest_load(m.load[0]), 9.0 / 4.0);
  EXPECT_DOUBLE_EQ(largest_load(m.load[1]), 1.0);
}

TEST_F(MetricsFileTest, NumbersSurviveToTheLastBit) {
  StepMetrics m = at(3);
  m.grad_norm = 0.1 + 0.2;
  m.valid_loss = std::nextafter(2.0, 3.0);
  MetricsFile(path_, 0).append(m);
  const std::vector<StepMetrics> back = read_metrics(path_);
  ASSERT_EQ(back.size(), 1u);
  EXPECT_EQ(back[0].loss, m.loss);
  EXPECT_EQ(back[0].grad_norm, m.grad_norm);
  EXPECT_EQ(*back[0].valid_loss, *m.valid_loss);
}

TEST_F(MetricsFileTest, LossThatIsNotFiniteIsNull) {
  StepMetrics m = at(1);
  m.loss = std::numeric_limits<double>::infinity();
  m.skipped = true;
  EXPECT_TRUE(to_json(m)["loss"].is_null());
  MetricsFile(path_, 0).append(m);
  EXPECT_TRUE(std::isnan(read_metrics(path_).at(0).loss));
  EXPECT_TRUE(read_metrics(path_).at(0).skipped);
}

TEST_F(MetricsFileTest, ResumeCutsLaterStepsAndContinuesWithoutGapOrRepeat) {
  {
    MetricsFile file(path_, 0);
    for (int64_t step = 1; step <= 7; ++step) file.append(at(step));
  }
  const std::string whole = read_file(path_);
  {
    MetricsFile file(path_, 4);
    EXPECT_EQ(file.kept(), 4);
    for (int64_t step = 5; step <= 7; ++step) file.append(at(step));
  }
  EXPECT_EQ(read_file(path_), whole);
}

TEST_F(MetricsFileTest, TornLastLineIsRepairedWhereverItWasCut) {
  {
    MetricsFile file(path_, 0);
    for (int64_t step = 1; step <= 3; ++step) file.append(at(step));
  }
  const std::string whole = read_file(path_);
  const size_t third = whole.find("{\"step\":3");
  for (size_t cut = third; cut < whole.size(); cut += 7) {
    std::ofstream(path_, std::ios::binary | std::ios::trunc) << whole.substr(0, cut);
    MetricsFile file(path_, 3);
    EXPECT_EQ(file.kept(), 2) << cut;
    file.append(at(3));
    EXPECT_EQ(read_file(path_), whole) << cut;
  }
}

TEST_F(MetricsFileTest, StartingOverEmptiesIt) {
  MetricsFile(path_, 0).append(at(1));
  MetricsFile file(path_, 0);
  EXPECT_EQ(file.kept(), 0);
  EXPECT_TRUE(read_metrics(path_).empty());
}

TEST_F(MetricsFileTest, FullDiskIsAnError) {
  std::filesystem::create_symlink("/dev/full", path_);
  // A character device reads as nothing and refuses every byte.
  try {
    MetricsFile(path_, 0).append(at(1));
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kData);
    EXPECT_THAT(error.what(), HasSubstr("No space left"));
  }
}

TEST(Progress, Texts) {
  EXPECT_EQ(duration_text(41.2), "41s");
  EXPECT_EQ(duration_text(312), "5m 12s");
  EXPECT_EQ(duration_text(7385), "2h 03m");
  EXPECT_EQ(count_text(18234), "18.2k");
  EXPECT_EQ(count_text(1250000), "1.25M");
  EXPECT_EQ(bytes_text(1.2e9), "1.2 GB");
  StepMetrics m;
  m.step = 120;
  m.loss = 3.21449;
  m.tokens_per_s = 18234;
  m.model_tflops = 0.071;
  m.lr = 3e-4;
  EXPECT_EQ(
      progress_text(m, {2000, 0.1, 312}),
      "step 120/2000 · loss 3.2145 · 18.2k tokens/s · 71 % of GEMM · lr 3.00e-04 · 5m 12s left");
}

}  // namespace
}  // namespace trireme::train
