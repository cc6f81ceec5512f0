#include "trireme/train/plan_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <regex>

#include "trireme/base/json.h"
#include "trireme/plan/world_trace.h"

namespace trireme::train {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

plan::PlannedRun pipeline() {
  plan::PlannedRun run;
  run.spec = model::spec_from_preset("llama3-8b");
  run.strategy.precision = plan::Precision::kBf16;
  run.strategy.seq_len = 4096;
  run.strategy.sequences = 64;
  run.strategy.lanes = 8;
  run.strategy.parallel.dp = 8;
  run.strategy.parallel.zero = 1;
  run.strategy.parallel.pp = 4;
  run.cluster = plan::shipped_profiles().cluster("dgx-h100");
  run.stack = plan::shipped_profiles().stack("trireme");
  plan::use_profiles(plan::shipped_profiles(), "", run);
  return run;
}

Json data_of(const std::string& html) {
  const std::string open = "id=\"data\">";
  const size_t begin = html.find(open) + open.size();
  return Json::parse(html.substr(begin, html.find("</script>", begin) - begin));
}

TEST(PlanReport, HasTheTimelineAndBothWaterfalls) {
  const plan::PlannedRun run = pipeline();
  plan::PredictedWorld world;
  const plan::Prediction prediction = plan::predict(run, &world);
  const std::string html = plan_report_html("a <run> & more", run, prediction, world);
  EXPECT_THAT(html, HasSubstr("a &lt;run&gt; &amp; more"));
  EXPECT_THAT(html, HasSubstr("Where the time goes"));
  for (int stage = 0; stage < 4; ++stage)
    EXPECT_THAT(html, HasSubstr(fmt::format("Where the memory goes: stage {}", stage)));
  for (const char* part : {"src=", "href=", "@import", "url(http", "fetch(", "XMLHttpRequest"})
    EXPECT_THAT(html, Not(HasSubstr(part))) << part;
  const Json data = data_of(html);
  EXPECT_DOUBLE_EQ(data.at("prediction").at("step_s").get<double>(), prediction.step_s);
  // Every stage computes, and nothing of a queue overlaps.
  int computing = 0;
  for (const Json& lane : data.at("timeline").at("lanes")) {
    computing += lane.at("name").get<std::string>().ends_with("compute") ? 1 : 0;
    EXPECT_FALSE(lane.at("events").empty());
  }
  EXPECT_EQ(computing, 4);
  EXPECT_EQ(data.at("timeline").at("memory_names").size(), 1u);
}

// The bars of a waterfall follow one another without a gap, and the last one is all of them.
TEST(PlanReport, WaterfallsAddUp) {
  const plan::PlannedRun run = pipeline();
  plan::PredictedWorld world;
  const plan::Prediction prediction = plan::predict(run, &world);
  const std::string html = plan_report_html("run.toml", run, prediction, world);
  const std::regex bar("<i style=\"left:([0-9.]+)%;width:([0-9.]+)%");
  int waterfalls = 0;
  for (size_t at = html.find("<div class=\"waterfall\">"); at != std::string::npos;
       at = html.find("<div class=\"waterfall\">", at + 1)) {
    const std::string body = html.substr(at, html.find("</figure>", at) - at);
    std::vector<std::pair<double, double>> bars;
    for (std::sregex_iterator i(body.begin(), body.end(), bar), end; i != end; ++i)
      bars.emplace_back(std::stod((*i)[1]), std::stod((*i)[2]));
    ASSERT_GE(bars.size(), 2u);
    double from = 0.0;
    for (size_t i = 0; i + 1 < bars.size(); ++i) {
      EXPECT_NEAR(bars[i].first, from, 0.01);
      from += bars[i].second;
    }
    EXPECT_EQ(bars.back().first, 0.0);
    EXPECT_NEAR(bars.back().second, from, 0.02);
    EXPECT_LE(from, 100.0);
    ++waterfalls;
  }
  EXPECT_EQ(waterfalls, 5);  // time, and memory of four stages
}

TEST(PlanReport, TheChromeTraceHasEveryRank) {
  const plan::PlannedRun run = pipeline();
  plan::PredictedWorld world;
  plan::predict(run, &world);
  const Json trace = Json::parse(
      plan::to_chrome_json(plan::world_traces(run, world), plan::rank_names(run, world)));
  EXPECT_EQ(trace.at("otherData").at("format"), "trireme-world-1");
  std::map<int, double> ends;
  std::map<int, std::string> names;
  for (const Json& event : trace.at("traceEvents")) {
    const int rank = event.at("pid").get<int>();
    if (event.at("ph") == "X")
      ends[rank] =
          std::max(ends[rank], event.at("ts").get<double>() + event.at("dur").get<double>());
    if (event.at("name") == "process_name") names[rank] = event.at("args").at("name");
  }
  EXPECT_EQ(ends.size(), 4u);
  EXPECT_EQ(names.at(2), "stage 2, 8 ranks alike");
  double last = 0.0;
  for (const auto& [rank, end] : ends) last = std::max(last, end);
  EXPECT_NEAR(last * 1e-6, world.simulation.step_s, 1e-9);
  double path = 0.0;
  for (const auto& [kind, seconds] : plan::critical_seconds(world)) path += seconds;
  EXPECT_NEAR(path, world.simulation.step_s, 1e-9);
}

}  // namespace
}  // namespace trireme::train
