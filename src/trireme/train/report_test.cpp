#include "trireme/train/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "trireme/base/json.h"

namespace trireme::train {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

Report small_report() {
  Report report;
  report.title = "runs/<odd> & \"named\"";
  report.subtitle = "llama";
  report.steps = 3;
  for (int64_t step = 1; step <= 3; ++step) {
    StepMetrics m;
    m.step = step;
    m.tokens = 64 * step;
    m.loss = step == 2 ? std::nan("") : 3.0 / static_cast<double>(step);
    m.tokens_per_s = 1000;
    if (step == 3) m.valid_bits_per_byte = 1.5, m.valid_loss = 1.0;
    report.metrics.push_back(m);
  }
  report.lanes = {{"measured · compute", {{"forward </script> x", "forward", 0.001, 0.002}}}};
  report.memory = {{0.001, 100, 110}};
  report.baselines = {{"gzip -9", 2.25}};
  report.samples = {{"a <b>", "c & d"}};
  report.run_toml = "seed = 1 # default\nout = \"x\" # run.toml:1\n";
  return report;
}

Json data_of(const std::string& html) {
  const std::string open = "id=\"data\">";
  const size_t begin = html.find(open) + open.size();
  return Json::parse(html.substr(begin, html.find("</script>", begin) - begin));
}

TEST(Report, DataSurvivesTheWayIntoThePage) {
  const Json data = data_of(report_html(small_report()));
  EXPECT_EQ(data.at("metrics").at("step"), Json({1, 2, 3}));
  EXPECT_TRUE(data.at("metrics").at("loss").at(1).is_null());
  EXPECT_EQ(data.at("metrics").at("loss").at(0), 3);
  EXPECT_EQ(data.at("metrics").at("valid_bits_per_byte").at(2), 1.5);
  EXPECT_EQ(data.at("timeline").at("lanes").at(0).at("events").at(0),
            Json({1000.0, 2000.0, 0, "forward </script> x"}));
  EXPECT_EQ(data.at("timeline").at("memory").at(0), Json({1000.0, 100, 110}));
  EXPECT_EQ(data.at("baselines").at(0).at("bits_per_byte"), 2.25);
}

TEST(Report, TextsAreEscaped) {
  const std::string html = report_html(small_report());
  EXPECT_THAT(html, HasSubstr("runs/&lt;odd&gt; &amp; &quot;named&quot;"));
  EXPECT_THAT(html, HasSubstr("<span class=\"prompt\">a &lt;b&gt;</span>c &amp; d"));
  EXPECT_THAT(html, Not(HasSubstr("forward </script>")));
}

TEST(Report, NothingIsFetchedFromElsewhere) {
  const std::string html = report_html(small_report());
  for (const char* part : {"src=", "href=", "@import", "url(http", "fetch(", "XMLHttpRequest"}) {
    EXPECT_THAT(html, Not(HasSubstr(part))) << part;
  }
}

TEST(Report, LongRunsAreThinnedButKeepEvaluationsAndTheEnd) {
  Report report = small_report();
  report.metrics.clear();
  for (int64_t step = 1; step <= 20000; ++step) {
    StepMetrics m;
    m.step = step;
    if (step == 12345) m.valid_loss = 2.0;
    report.metrics.push_back(m);
  }
  const Json steps = data_of(report_html(report)).at("metrics").at("step");
  EXPECT_LT(steps.size(), 3100u);
  EXPECT_EQ(steps.back(), 20000);
  EXPECT_NE(std::find(steps.begin(), steps.end(), Json(12345)), steps.end());
}

TEST(Report, AnEmptyRunIsStillAPage) {
  EXPECT_THAT(report_html(Report()), HasSubstr("</html>"));
}

TEST(ReportTest, ComparesRunsOnACommonClock) {
  Report report;
  report.title = "slow";
  EXPECT_TRUE(comparison_json(report).is_null());
  ReportRun quick{"quick", {}};
  for (int i = 0; i < 4; ++i) {
    StepMetrics m;
    m.step = i + 1;
    m.step_s = 10.0;
    m.loss = 5.0;
    report.metrics.push_back(m);
    m.step_s = 1.0;
    m.loss = 2.0;
    quick.metrics.push_back(m);
  }
  report.metrics[1].valid_loss = 4.5;
  report.compared.push_back(quick);
  const OrderedJson json = comparison_json(report);
  const auto seconds = json.at("seconds").get<std::vector<double>>();
  EXPECT_DOUBLE_EQ(seconds.back(), 40.0);
  const OrderedJson& runs = json.at("runs");
  ASSERT_EQ(runs.size(), 2u);
  EXPECT_EQ(runs[0].at("name"), "slow");
  for (size_t i = 0; i < seconds.size(); ++i) {
    EXPECT_EQ(runs[0].at("loss")[i], 5.0);
    // The quick one was done after four seconds.
    EXPECT_EQ(runs[1].at("loss")[i].is_null(), seconds[i] > 4.0 + 1e-6) << seconds[i];
    if (!runs[0].at("valid_loss")[i].is_null()) {
      EXPECT_NEAR(seconds[i], 20.0, 0.3);
    }
  }
}

}  // namespace
}  // namespace trireme::train
