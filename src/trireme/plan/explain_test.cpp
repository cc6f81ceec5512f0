#include "trireme/plan/explain.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "trireme/plan/explain_layout.h"
#include "trireme/plan/local_spec.h"
#include "trireme/plan/trace_report.h"

namespace trireme::plan {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class Explain : public ::testing::Test {
 protected:
  void SetUp() override {
    Strategy strategy;
    strategy.sequences = 8;
    strategy.micro = 1;
    strategy.lanes = 4;
    strategy.seq_len = 64;
    strategy.recompute = recompute_from_names(spec_, {"layer.1.mlp", "layer.2.mlp:selective"});
    program_ = build_program(spec_, strategy);
    simulation_ = simulate(program_, estimate_durations(spec_, program_, {}));
  }

  model::ModelSpec spec_ = model::spec_from_preset("trireme-default");
  Program program_;
  Simulation simulation_;
};

TEST_F(Explain, ShowsEveryInstructionOnceWithAll) {
  const std::string text = explain(spec_, program_, true);
  for (const Instruction& instruction : program_.instructions) {
    EXPECT_THAT(text, HasSubstr(describe(spec_, instruction)));
  }
  EXPECT_THAT(text, HasSubstr("8 sequences of 64 tokens a step: 4 lanes of 2 micro-batches of 1"));
  EXPECT_THAT(text, HasSubstr("selective: layer.2.mlp; full: layer.1.mlp"));
  EXPECT_THAT(text, HasSubstr("6 N + 6 L T a"));
  EXPECT_THAT(text, HasSubstr("optimizer states"));
  EXPECT_THAT(text, Not(HasSubstr("alike")));
}

TEST_F(Explain, SumsUpWhatIsAlike) {
  const std::string text = explain(spec_, program_, false);
  EXPECT_THAT(text, HasSubstr("forward layer.0.mlp micro-batch 0 (lane 0)"));
  EXPECT_THAT(text, Not(HasSubstr("forward layer.0.mlp micro-batch 3")));
  EXPECT_THAT(text, HasSubstr("forward layer.0.mlp micro-batch 7 (lane 3)"));
  EXPECT_THAT(text, HasSubstr("instructions alike"));
  EXPECT_THAT(text, HasSubstr("commit"));
}

// Of a model of which the rank has some heads and columns, the layout is that of the whole.
TEST_F(Explain, SaysHowRanksThatShareEveryLayerAreLaidOut) {
  Strategy strategy = program_.strategy;
  strategy.parallel.tp = strategy.parallel.cp = 2;
  const model::ModelSpec own = local_spec(spec_, strategy.parallel, 0);
  const Program program = build_program(spec_, strategy);
  EXPECT_THAT(explain(own, program, false), HasSubstr(explain_layout(spec_, program.strategy)));
  EXPECT_EQ(explain_json(own, program)["layout"], layout_json(spec_, program.strategy));
}

TEST_F(Explain, NamesAKindWhereAllItsPartsAreRecomputed) {
  Strategy strategy = program_.strategy;
  strategy.recompute = recompute_from_names(spec_, {"mlp"});
  EXPECT_THAT(explain(spec_, build_program(spec_, strategy), false),
              HasSubstr("recompute full: mlp;"));
  strategy.recompute = recompute_from_names(spec_, {"selective"});
  EXPECT_THAT(explain(spec_, build_program(spec_, strategy), false),
              HasSubstr("recompute selective;"));
}

TEST_F(Explain, JsonHoldsTheProgram) {
  const OrderedJson json = explain_json(spec_, program_);
  ASSERT_EQ(json.at("instructions").size(), program_.instructions.size());
  ASSERT_EQ(json.at("buffers").size(), program_.buffers.size());
  EXPECT_EQ(json.at("parameters"), spec_.num_parameters());
  for (size_t i = 0; i < program_.instructions.size(); ++i) {
    const OrderedJson& instruction = json.at("instructions")[i];
    EXPECT_EQ(instruction.at("id"), static_cast<int>(i));
    EXPECT_EQ(instruction.at("depends_on"), OrderedJson(program_.instructions[i].depends_on));
  }
  EXPECT_GT(json.at("peak_bytes").get<int64_t>(), program_.resident_bytes);
}

TEST_F(Explain, SimulationHasTheKeysOfTheInterface) {
  const OrderedJson json = simulation_json(spec_, program_, simulation_);
  for (const char* key : {"step_s", "tokens_per_s", "peak_bytes", "exposed_comm_s",
                          "hidden_comm_share", "bubble_share", "flops_model", "flops_hardware"}) {
    EXPECT_TRUE(json.contains(key)) << key;
  }
  EXPECT_DOUBLE_EQ(json.at("tokens_per_s").get<double>() * json.at("step_s").get<double>(), 8 * 64);
  EXPECT_GT(json.at("flops_hardware"), json.at("flops_model"));
  EXPECT_GE(json.at("bubble_share"), 0.0);
  EXPECT_THAT(describe(spec_, program_, simulation_), HasSubstr("critical path of"));
}

TEST_F(Explain, TraceReportsNameWhatTheyShow) {
  const Trace a = predicted_trace(spec_, program_, simulation_);
  const OrderedJson summary = to_json(a, summarize(a));
  ASSERT_EQ(summary.at("ranks").size(), 1U);
  for (const char* key :
       {"step_s", "compute_s", "comm_s", "exposed_comm_s", "hidden_comm_share", "idle_s"}) {
    EXPECT_TRUE(summary.at("ranks")[0].contains(key)) << key;
  }
  EXPECT_THAT(describe(a, summarize(a)), HasSubstr("backward-weight"));

  Trace b = a;
  b.events[10].duration_us += 5000;
  const TraceComparison comparison = compare(a, b);
  const std::string brief = describe(comparison, 1);
  EXPECT_THAT(brief, HasSubstr(b.events[10].name));
  EXPECT_THAT(brief, Not(HasSubstr(b.events[11].name)));
  const std::string whole = describe(comparison, 0);
  for (const TraceEvent& event : a.events) EXPECT_THAT(whole, HasSubstr(event.name));
  EXPECT_EQ(to_json(comparison).at("instructions").size(), a.events.size());
}

}  // namespace
}  // namespace trireme::plan
