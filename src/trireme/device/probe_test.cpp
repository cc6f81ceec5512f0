#include "trireme/device/probe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "trireme/base/error.h"

namespace trireme::device {
namespace {

namespace fs = std::filesystem;

void expect_ordered(const Rate& rate) {
  EXPECT_GT(rate.min, 0);
  EXPECT_LE(rate.min, rate.median);
  EXPECT_LE(rate.median, rate.max);
  EXPECT_GE(rate.repeats, 1);
}

TEST(ProbeTest, MeasuresProductsOfEitherType) {
  expect_ordered(measure_gemm(c10::kFloat, 16, 32, 8, 0.0));
  expect_ordered(measure_gemm(c10::kBFloat16, 16, 32, 8, 0.0));
  EXPECT_GE(measure_gemm(c10::kFloat, 1, 1, 1, 0.0).repeats, 3);
  EXPECT_THROW(measure_gemm(c10::kFloat, 0, 1, 1, 0.0), Error);
}

TEST(ProbeTest, MeasuresMemory) {
  expect_ordered(measure_memory_bandwidth(1 << 20, 0.0));
}

TEST(ProbeTest, MeasuresTheDiskAndLeavesNothingBehind) {
  std::string pattern = (fs::temp_directory_path() / "trireme_probe_XXXXXX").string();
  ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
  expect_ordered(measure_disk_write(pattern, 1 << 20, 0.0));
  EXPECT_TRUE(fs::is_empty(pattern));
  EXPECT_THROW(measure_disk_write(fs::path(pattern) / "missing", 1 << 20, 0.0), Error);
  fs::remove_all(pattern);
}

TEST(ProbeTest, RowsOfManyRowsAreIndependent) {
  // A product of 255 rows of 256 uses the same paths; what lies below is the machine's own
  // business.
  for (const c10::ScalarType dtype : {c10::kFloat, c10::kBFloat16}) {
    const auto dependences = find_row_dependence(dtype, aten_product, {64, 96});
    ASSERT_EQ(dependences.size(), 2u);
    EXPECT_EQ(dependences[0].inner, 64);
    for (const RowDependence& dependence : dependences) {
      EXPECT_THAT(dependence.row_counts, ::testing::Each(::testing::Lt(511)));
    }
  }
}

TEST(ProbeTest, IndependentFromTheLastThatDiffers) {
  EXPECT_EQ(independent_from({}), 1);
  EXPECT_EQ(independent_from({{64, {}}, {512, {}}}), 1);
  EXPECT_EQ(independent_from({{64, {1, 2, 7}}, {512, {1, 3}}}), 8);
}

}  // namespace
}  // namespace trireme::device
