#include "trireme/plan/parallel.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trireme/plan/refused_names.h"

namespace trireme::plan {
namespace {

TEST(Parallel, NamesGoBothWays) {
  for (const std::string& name : schedule_names()) {
    EXPECT_EQ(to_string(schedule_from_name(name)), name);
    EXPECT_FALSE(names_schedule_file(name));
  }
  EXPECT_EQ(schedule_names().size(), static_cast<size_t>(ScheduleKind::kText));
  for (const char* name : {"ring", "gather", "ulysses"})
    EXPECT_STREQ(to_string(context_kind_from_name(name)), name);
  for (const char* name : {"exact", "fast"})
    EXPECT_STREQ(to_string(reduction_from_name(name)), name);
  EXPECT_TRUE(names_schedule_file("mine.txt"));
  EXPECT_TRUE(names_schedule_file("schedules/mine"));
}

TEST(Parallel, UnknownNamesSuggestTheNearest) {
  expect_refused([](const std::vector<std::string>& names) { schedule_from_name(names[0]); },
                 {{"1f2b", "parallel.schedule = \"1f2b\"", "'1f1b'"},
                  {"zb-v", "zb-v", "'zbv'"},
                  {"something", "something", "known: gpipe, 1f1b"}});
  expect_refused([](const std::vector<std::string>& names) { context_kind_from_name(names[0]); },
                 {{"rings", "parallel.cp_kind", "'ring'"}});
  expect_refused([](const std::vector<std::string>& names) { reduction_from_name(names[0]); },
                 {{"exakt", "parallel.reduction", "'exact'"}});
}

TEST(Parallel, SaysWhatDiffersFromOneRank) {
  EXPECT_EQ(describe(Parallel{}), "one rank");
  Parallel parallel;
  parallel.dp = 4;
  parallel.zero = 3;
  parallel.pp = 2;
  parallel.chunks = 2;
  parallel.schedule = ScheduleKind::kZeroBubbleV;
  EXPECT_EQ(describe(parallel), "dp 4 zero 3 pp 2 zbv chunks 2");
  EXPECT_EQ(parallel.world(), 8);
  EXPECT_EQ(parallel.stages(), 4);
  EXPECT_EQ(mesh_shape(parallel), (cluster::MeshShape{.dp = 4, .pp = 2}));
}

}  // namespace
}  // namespace trireme::plan
