#include "trireme/checkpoint/compare.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <limits>

#include "trireme/base/file.h"
#include "trireme/base/test_folder.h"

namespace trireme::checkpoint {
namespace {

namespace fs = std::filesystem;

TEST(CompareTest, EqualStatesInOtherShardsDoNotDiffer) {
  const TestFolder folder;
  const std::vector<NamedTensor> tensors = {{"a", at::arange(9)}, {"b", at::ones({2, 2})}};
  write_checkpoint(folder / "x", tensors, {1, Json(), {}});
  write_checkpoint(folder / "y", tensors, {2, Json(), {}}, {1, nullptr});
  EXPECT_TRUE(compare_tensors(folder / "x", folder / "y").empty());
  const TensorListing x = list_tensors(folder / "x");
  EXPECT_EQ(x.digest, list_tensors(folder / "y").digest);
  EXPECT_EQ(x.digest, Checkpoint(folder / "x").manifest().digest);
  ASSERT_EQ(x.tensors.size(), 2u);
  EXPECT_EQ(x.tensors[0].info.name, "a");
  // One file of it lists the same tensors.
  EXPECT_EQ(list_tensors(folder / "x" / "model.safetensors").digest, x.digest);
}

TEST(CompareTest, NamesEveryKindOfDifference) {
  const TestFolder folder;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const at::Tensor base = at::tensor({1.0, 2.0, -4.0, 8.0});
  write_checkpoint(folder / "x",
                   std::vector<NamedTensor>{{"alone_a", base},
                                            {"dtype", base},
                                            {"equal", base},
                                            {"nan", base},
                                            {"nans", base * nan},
                                            {"shape", base},
                                            {"values", base},
                                            {"zero", base * 0}},
                   {1, Json(), {}});
  at::Tensor values = base.clone();
  values[1] = 2.5;
  values[2] = -4.25;
  at::Tensor with_nan = base.clone();
  with_nan[0] = nan;
  write_checkpoint(folder / "y",
                   std::vector<NamedTensor>{{"alone_b", base},
                                            {"dtype", base.to(at::kInt)},
                                            {"equal", base},
                                            {"nan", with_nan},
                                            {"nans", base * nan},
                                            {"shape", base.reshape({2, 2})},
                                            {"values", values},
                                            {"zero", base * -0.0}},
                   {1, Json(), {}});
  const auto differences = compare_tensors(folder / "x", folder / "y");
  std::map<std::string, Difference> by_name;
  for (const Difference& difference : differences) by_name[difference.name] = difference;
  EXPECT_EQ(by_name.at("alone_a").reason, "only in A");
  EXPECT_EQ(by_name.at("alone_b").reason, "only in B");
  EXPECT_EQ(by_name.at("dtype").reason, "dtype F64 and I32");
  EXPECT_EQ(by_name.at("shape").reason, "shape [4] and [2, 2]");
  EXPECT_EQ(by_name.at("values").reason, "values");
  EXPECT_EQ(by_name.at("values").num_elements, 2);
  EXPECT_DOUBLE_EQ(by_name.at("values").max_absolute, 0.5);
  EXPECT_DOUBLE_EQ(by_name.at("values").max_relative, 0.2);  // 0.5 / 2.5
  EXPECT_TRUE(std::isinf(by_name.at("nan").max_absolute));
  EXPECT_EQ(by_name.at("nan").num_elements, 1);
  EXPECT_EQ(by_name.at("zero").num_elements, 0);
  EXPECT_FALSE(by_name.contains("equal"));
  EXPECT_FALSE(by_name.contains("nans"));
  EXPECT_EQ(by_name.size(), 7u);
}

TEST(CompareTest, ADigestOfDamagedBytesIsAnError) {
  const TestFolder folder;
  write_checkpoint(folder / "c", {{"a", at::arange(9)}}, {1, Json(), {}});
  std::string content = read_file(folder / "c" / "model.safetensors");
  content.back() = static_cast<char>(content.back() ^ 1);
  std::ofstream(folder / "c" / "model.safetensors", std::ios::binary) << content;
  EXPECT_THROW(list_tensors(folder / "c"), Error);
  EXPECT_THROW(list_tensors(folder / "nowhere"), Error);
  EXPECT_THROW(list_tensors(folder.path()), Error);
}

}  // namespace
}  // namespace trireme::checkpoint
