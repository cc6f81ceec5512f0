// The trace of a step, predicted or measured: one format, so that the two compare.
//
// On disk it is Chrome trace JSON (docs/formats/trace.md), which Perfetto opens as it is.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trireme/base/json.h"
#include "trireme/plan/program.h"
#include "trireme/plan/simulate.h"

namespace trireme::plan {

/// One instruction of one step of one rank. Times in microseconds since the step began; those of a copy that runs on into
/// the next step (runs_on()) are of the step before's, and may be negative: steps are taken to be alike.
struct TraceEvent {
  int instruction = -1;  ///< id in the program
  std::string name;      ///< describe()
  std::string kind;      ///< to_string(OpKind)
  std::string part;      ///< part name; empty if it works on none
  std::string resource;  ///< to_string(Resource)
  int64_t micro_batch = -1;
  int64_t lane = -1;
  double start_us = 0.0;
  double duration_us = 0.0;
  double flops = 0.0;
  int64_t held_bytes_after = 0;
  int64_t peak_bytes = 0;  ///< highest while it ran
  bool operator==(const TraceEvent&) const = default;
};

struct Trace {
  std::string source;  ///< "measured" or "predicted"
  std::string model;   ///< for people
  int64_t step = -1;
  int rank = 0;
  int64_t peak_bytes = 0;          ///< of the step
  std::vector<TraceEvent> events;  ///< in issue order
  bool operator==(const Trace&) const = default;
};

/// What the executor measured of one instruction.
struct Measurement {
  double start_s = 0.0;
  double duration_s = 0.0;
  int64_t held_bytes_after = 0;
  int64_t peak_bytes = 0;
};

/// A measured step; `measurements` by instruction id.
Trace measured_trace(const model::ModelSpec& spec, const Program& program,
                     const std::vector<Measurement>& measurements, int64_t step);

/// The same step as simulated.
Trace predicted_trace(const model::ModelSpec& spec, const Program& program,
                      const Simulation& simulation);

/// Durations in seconds by instruction id, to feed simulate() with a measured trace. Error{kData}
/// if the trace is not of `program`.
std::vector<double> durations_of(const Trace& trace, const Program& program);

/// Chrome trace JSON text: one complete event per instruction, a counter of the bytes held.
std::string to_chrome_json(const Trace& trace);

/// One step of several ranks, in one file: a process each, named by `names`. Format "trireme-world-1", for viewers.
std::string to_chrome_json(const std::vector<Trace>& ranks, const std::vector<std::string>& names);

/// Reads what to_chrome_json wrote of one rank, also after another tool re-formatted it. Error{kData} naming
/// `origin` for anything else.
Trace parse_chrome_json(std::string_view text, const std::string& origin);

/// One line per instruction, with a header line: for spreadsheets.
std::string to_csv(const Trace& trace);

}  // namespace trireme::plan
