#include "trireme/base/error.h"

#include <gtest/gtest.h>

namespace trireme {
namespace {

TEST(ErrorTest, UserCheckCarriesCodeMessageAndHint) {
  try {
    TRIREME_USER_CHECK(1 == 2, kConfig, "make it even", "batch.micro = {}", 3);
    FAIL() << "no exception";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kConfig);
    EXPECT_STREQ(error.what(), "batch.micro = 3");
    EXPECT_EQ(error.hint(), "make it even");
  }
}

TEST(ErrorTest, CheckNamesTheConditionAndIsOurs) {
  try {
    TRIREME_CHECK(1 == 2, "sizes differ: {}", 7);
    FAIL() << "no exception";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInternal);
    EXPECT_NE(std::string(error.what()).find("1 == 2"), std::string::npos);
    EXPECT_TRUE(std::string(error.where().file_name()).ends_with("error_test.cpp"));
  }
}

}  // namespace
}  // namespace trireme
