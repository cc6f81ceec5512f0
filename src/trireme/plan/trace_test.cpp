#include "trireme/plan/trace.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "trireme/base/error.h"
#include "trireme/plan/trace_analysis.h"

namespace trireme::plan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

struct Example {
  model::ModelSpec spec = model::spec_from_preset("trireme-default");
  Program program;
  std::vector<double> durations;
  Simulation simulation;
  Trace trace;

  Example() {
    Strategy strategy;
    strategy.sequences = 4;
    strategy.micro = 1;
    strategy.lanes = 2;
    strategy.seq_len = 32;
    strategy.recompute = recompute_from_names(spec, {"mlp"});
    program = build_program(spec, strategy);
    std::mt19937 random(3);
    for (size_t i = 0; i < program.instructions.size(); ++i) {
      durations.push_back(1e-6 * static_cast<double>(1 + random() % 1000));
    }
    simulation = simulate(program, durations);
    trace = predicted_trace(spec, program, simulation);
  }
};

TEST(Trace, ComesBackFromItsText) {
  const Example example;
  const Trace read = parse_chrome_json(to_chrome_json(example.trace), "trace.json");
  EXPECT_EQ(read, example.trace);
  // Another tool's formatting changes nothing.
  const Json reformatted = parse_json(to_chrome_json(example.trace), "test");
  EXPECT_EQ(parse_chrome_json(reformatted.dump(4), "trace.json"), example.trace);
}

TEST(Trace, SimulatingItsDurationsGivesItBack) {
  const Example example;
  const std::vector<double> durations = durations_of(example.trace, example.program);
  ASSERT_EQ(durations.size(), example.durations.size());
  for (size_t i = 0; i < durations.size(); ++i) {
    EXPECT_NEAR(durations[i], example.durations[i], 1e-15);
  }
  EXPECT_NEAR(simulate(example.program, durations).step_s, example.simulation.step_s, 1e-12);
}

TEST(Trace, MeasurementsBecomeEvents) {
  const Example example;
  std::vector<Measurement> measurements;
  for (size_t i = 0; i < example.program.instructions.size(); ++i) {
    measurements.push_back({static_cast<double>(i), 0.5, static_cast<int64_t>(100 + i),
                            static_cast<int64_t>(200 + i)});
  }
  const Trace trace = measured_trace(example.spec, example.program, measurements, 17);
  EXPECT_EQ(trace.step, 17);
  EXPECT_EQ(trace.source, "measured");
  EXPECT_EQ(trace.peak_bytes, static_cast<int64_t>(199 + measurements.size()));
  EXPECT_EQ(trace.events[3].start_us, 3e6);
  EXPECT_EQ(trace.events[3].duration_us, 5e5);
  EXPECT_EQ(trace.events[3].held_bytes_after, 103);
  EXPECT_EQ(trace.events[3].name, describe(example.spec, example.program.instructions[3]));
  EXPECT_EQ(parse_chrome_json(to_chrome_json(trace), "trace.json"), trace);
}

TEST(Trace, HasWhatPerfettoNeeds) {
  const Example example;
  const Json document = parse_json(to_chrome_json(example.trace), "test");
  int complete = 0;
  int counters = 0;
  int names = 0;
  for (const Json& event : document.at("traceEvents")) {
    const std::string phase = event.at("ph");
    ASSERT_TRUE(event.at("pid").is_number());
    if (phase == "X") {
      ++complete;
      EXPECT_TRUE(event.at("ts").is_number() && event.at("dur").is_number());
      EXPECT_TRUE(event.at("tid").is_number() && event.at("name").is_string());
    } else if (phase == "C") {
      ++counters;
      EXPECT_TRUE(event.at("args").at("bytes").is_number());
    } else {
      EXPECT_EQ(phase, "M");
      ++names;
    }
  }
  EXPECT_EQ(complete, static_cast<int>(example.program.instructions.size()));
  EXPECT_EQ(counters, 2 * complete);
  EXPECT_EQ(names, 3);
}

TEST(Trace, RefusesOtherFiles) {
  const Example example;
  Json other = parse_json(to_chrome_json(example.trace), "test");
  other["otherData"]["format"] = "something-2";
  Json no_duration = parse_json(to_chrome_json(example.trace), "test");
  Json wrong_type = no_duration;
  for (Json& event : no_duration["traceEvents"]) event.erase("dur");
  for (Json& event : wrong_type["traceEvents"]) event["args"] = 5;
  for (const std::string& text :
       {std::string(), std::string("{"), std::string("[]"), std::string("{\"traceEvents\": []}"),
        std::string("{\"traceEvents\": 3, \"otherData\": {}}"),
        std::string("{\"traceEvents\": [], \"otherData\": []}"), other.dump(), no_duration.dump(),
        wrong_type.dump()}) {
    try {
      parse_chrome_json(text, "my-trace.json");
      ADD_FAILURE() << text.substr(0, 80);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kData);
      EXPECT_THAT(error.what(), HasSubstr("my-trace.json"));
    }
  }
  Trace short_trace = example.trace;
  short_trace.events.pop_back();
  EXPECT_THROW(durations_of(short_trace, example.program), Error);
  Trace twice = example.trace;
  twice.events[1].instruction = 0;
  EXPECT_THROW(durations_of(twice, example.program), Error);
}

TEST(Trace, SurvivesRandomDamage) {
  const Example example;
  std::mt19937 random(9);
  for (int i = 0; i < 2000; ++i) {
    std::string text = to_chrome_json(Trace{"measured", "m", 1, 0, 5, {example.trace.events[0]}});
    for (int change = 0; change < 2; ++change) {
      text[random() % text.size()] = static_cast<char>(random() % 256);
    }
    try {
      parse_chrome_json(text, "trace.json");
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kData) << error.what();
    }
  }
}

TraceEvent event_of(int id, const char* resource, double start, double duration) {
  TraceEvent event;
  event.instruction = id;
  event.name = fmt::format("event {}", id);
  event.kind = "forward";
  event.resource = resource;
  event.start_us = start;
  event.duration_us = duration;
  return event;
}

TEST(Summary, SeparatesComputeCommunicationAndIdleness) {
  // compute [0,4) [6,8), communication [3,5) [6.5,7.5): 1 us exposed of 3, idle [5,6) and [8,9).
  Trace trace;
  trace.events = {event_of(0, "compute", 0e6, 4e6), event_of(1, "communication", 3e6, 2e6),
                  event_of(2, "compute", 6e6, 2e6), event_of(3, "communication", 6.5e6, 1e6),
                  event_of(4, "host", 2e6, 7e6)};
  const TraceSummary summary = summarize(trace);
  EXPECT_DOUBLE_EQ(summary.step_s, 9.0);
  EXPECT_DOUBLE_EQ(summary.compute_s, 6.0);
  EXPECT_DOUBLE_EQ(summary.comm_s, 3.0);
  EXPECT_DOUBLE_EQ(summary.exposed_comm_s, 1.0);
  EXPECT_DOUBLE_EQ(summary.hidden_comm_share, 2.0 / 3.0);
  EXPECT_DOUBLE_EQ(summary.host_s, 7.0);
  EXPECT_DOUBLE_EQ(summary.idle_s, 2.0);
  EXPECT_EQ(summarize(Trace{}).step_s, 0.0);
  EXPECT_EQ(summarize(Trace{}).hidden_comm_share, 1.0);
}

TEST(Compare, FindsWhatDiffers) {
  const Example example;
  Trace other = example.trace;
  other.events[5].duration_us += 40.0;
  other.events[7].held_bytes_after *= 2;
  other.events.back().name = "something else";
  const TraceComparison same = compare(example.trace, example.trace);
  EXPECT_EQ(same.instructions.size(), example.trace.events.size());
  EXPECT_EQ(same.worst_held_error, 0.0);
  EXPECT_THAT(same.only_in_a, IsEmpty());
  EXPECT_EQ(same.a_step_us, same.b_step_us);

  const TraceComparison result = compare(example.trace, other);
  EXPECT_EQ(result.instructions.size(), example.trace.events.size() - 1);
  EXPECT_THAT(result.only_in_a, ElementsAre("commit"));
  EXPECT_THAT(result.only_in_b, ElementsAre("something else"));
  EXPECT_NEAR(result.instructions[5].b_us - result.instructions[5].a_us, 40.0, 1e-9);
  EXPECT_EQ(result.instructions[4].a_us, result.instructions[4].b_us);
  EXPECT_EQ(result.worst_held_instruction, 7);
  EXPECT_DOUBLE_EQ(result.worst_held_error, 1.0);
  const ComparedKind kind = result.by_kind.at(example.trace.events[5].kind);
  EXPECT_NEAR(kind.b_us - kind.a_us, 40.0, 1e-6);
}

TEST(Csv, HasALinePerInstruction) {
  const Example example;
  const std::string text = to_csv(example.trace);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'),
            static_cast<std::ptrdiff_t>(example.trace.events.size()) + 1);
  EXPECT_THAT(text, HasSubstr("\n0,load-batch,,0,0,host,0.000,"));
}

}  // namespace
}  // namespace trireme::plan
