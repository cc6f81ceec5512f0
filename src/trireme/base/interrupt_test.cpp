#include "trireme/base/interrupt.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <cstdlib>

namespace trireme {
namespace {

void expect_flag_then_death(int signal_number) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(
      {
        install_interrupt_handlers();
        if (interrupted()) std::_Exit(1);
        ::raise(signal_number);
        if (!interrupted()) std::_Exit(2);
        ::raise(signal_number);  // the default action ends the process here
        std::_Exit(3);
      },
      ::testing::KilledBySignal(signal_number), "");
}

TEST(InterruptDeathTest, FirstSignalSetsTheFlagSecondEnds) {
  expect_flag_then_death(SIGINT);
  expect_flag_then_death(SIGTERM);
}

TEST(InterruptTest, CanBeSetAndTakenBack) {
  EXPECT_FALSE(interrupted());
  set_interrupted(true);
  EXPECT_TRUE(interrupted());
  set_interrupted(false);
  EXPECT_FALSE(interrupted());
}

}  // namespace
}  // namespace trireme
