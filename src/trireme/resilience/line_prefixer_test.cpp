#include "trireme/resilience/line_prefixer.h"

#include <gtest/gtest.h>

namespace trireme::resilience {
namespace {

TEST(LinePrefixer, EveryLineHasItsPrefix) {
  LinePrefixer prefixer("[3] ");
  EXPECT_EQ(prefixer.take("one\ntwo\n\nthree"), "[3] one\n[3] two\n[3] \n");
  EXPECT_EQ(prefixer.take(" and more"), "");
  EXPECT_EQ(prefixer.take("\nfour"), "[3] three and more\n");
  EXPECT_EQ(prefixer.finish(), "[3] four\n");
  EXPECT_EQ(prefixer.finish(), "");
}

TEST(LinePrefixer, ItDoesNotMatterHowLinesArrive) {
  const std::string text("a\n\nbcd\r\n\tx\0y\nlast", 17);
  const std::string expected("> a\n> \n> bcd\r\n> \tx\0y\n> last\n", 28);
  for (size_t piece = 1; piece <= text.size(); ++piece) {
    LinePrefixer prefixer("> ");
    std::string lines;
    for (size_t at = 0; at < text.size(); at += piece)
      lines += prefixer.take(std::string_view(text).substr(at, piece));
    lines += prefixer.finish();
    EXPECT_EQ(lines, expected) << piece;
  }
}

TEST(LinePrefixer, EndlessLinesAreBroken) {
  LinePrefixer prefixer("> ", 4);
  EXPECT_EQ(prefixer.take("abcdefghij"), "> abcd\n> efgh\n");
  EXPECT_EQ(prefixer.take("kl\nmnop\n"), "> ijkl\n> mnop\n");
  EXPECT_EQ(prefixer.finish(), "");
}

}  // namespace
}  // namespace trireme::resilience
