#include "trireme/base/log.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <thread>
#include <vector>

namespace trireme::log {
namespace {

class LogTest : public ::testing::Test {
 protected:
  void TearDown() override { set_level(Level::kInfo); }
};

TEST_F(LogTest, DropsLinesBelowTheLevel) {
  set_level(Level::kWarning);
  testing::internal::CaptureStderr();
  info("step {}", 1);
  verbose("detail");
  warning("disk is {} % full", 97);
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "warning: disk is 97 % full\n");
}

TEST_F(LogTest, VerboseShowsEverything) {
  set_level(Level::kVerbose);
  testing::internal::CaptureStderr();
  verbose("a");
  info("b");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "a\nb\n");
}

TEST_F(LogTest, WarnsOncePerKey) {
  testing::internal::CaptureStderr();
  warning_once("log_test.key", "first");
  warning_once("log_test.key", "second");
  warning_once("log_test.other", "third");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "warning: first\nwarning: third\n");
}

TEST_F(LogTest, LinesOfManyThreadsStayWhole) {
  testing::internal::CaptureStderr();
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([t] {
        for (int i = 0; i < 200; ++i)
          write(Level::kInfo, std::string(64, static_cast<char>('a' + t)));
      });
    }
  }
  const std::string text = testing::internal::GetCapturedStderr();
  ASSERT_EQ(text.size(), 4u * 200u * 65u);
  for (size_t begin = 0; begin < text.size(); begin += 65) {
    EXPECT_EQ(std::count(&text[begin], &text[begin] + 64, text[begin]), 64);
    EXPECT_EQ(text[begin + 64], '\n');
  }
}

}  // namespace
}  // namespace trireme::log
