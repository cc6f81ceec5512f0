#include "trireme/base/suggest.h"

#include <gtest/gtest.h>

namespace trireme {
namespace {

const std::vector<std::string> kNames = {"train", "plan", "generate", "weight_decay", "lr"};

TEST(Suggest, FindsTheNearestName) {
  EXPECT_EQ(nearest_name("trian", kNames), "train");
  EXPECT_EQ(nearest_name("genrate", kNames), "generate");
  EXPECT_EQ(nearest_name("weigth_decay", kNames), "weight_decay");
  EXPECT_EQ(nearest_name("weight-decay", kNames), "weight_decay");
  EXPECT_EQ(nearest_name("l", kNames), "lr");
}

TEST(Suggest, FindsNothingForAFarName) {
  EXPECT_EQ(nearest_name("checkpoint", kNames), "");
  EXPECT_EQ(nearest_name("", kNames), "");
  EXPECT_EQ(nearest_name("train", {}), "");
}

TEST(Suggest, SaysItInWords) {
  EXPECT_EQ(suggestion("trian", kNames), "did you mean 'train'?");
  EXPECT_EQ(suggestion("xyzxyz", {"a", "b"}), "known: a, b");
}

}  // namespace
}  // namespace trireme
