// What a trace says: where a step's time went, and where two traces of one program differ.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "trireme/plan/trace.h"

namespace trireme::plan {

/// Seconds of one step of one rank. Communication has its own resources, which one rank does not
/// have: its figures are 0 then.
struct TraceSummary {
  double step_s = 0.0;
  double compute_s = 0.0;          ///< union of the intervals on the compute queue
  double comm_s = 0.0;             ///< union of the intervals on communication queues
  double exposed_comm_s = 0.0;     ///< of those, what no compute covers
  double hidden_comm_share = 0.0;  ///< (comm - exposed) / comm; 1 where there is none
  double copy_s = 0.0;             ///< union of the intervals on the copy queues
  double exposed_copy_s = 0.0;     ///< of those, what no compute covers
  double hidden_copy_share = 0.0;  ///< (copy - exposed) / copy; 1 where there is none
  double host_s = 0.0;
  double idle_s = 0.0;          ///< neither compute, copies nor communication run
  double achieved_flops = 0.0;  ///< operations a second over the step
  int64_t peak_bytes = 0;
  std::map<std::string, double> seconds_by_kind;
};
TraceSummary summarize(const Trace& trace);

/// One instruction in both traces; durations in microseconds.
struct ComparedInstruction {
  int instruction = -1;
  std::string name;
  std::string kind;
  double a_us = 0.0;
  double b_us = 0.0;
  double a_start_us = 0.0;
  double b_start_us = 0.0;
  int64_t a_held_bytes = 0;
  int64_t b_held_bytes = 0;
  int64_t a_peak_bytes = 0;
  int64_t b_peak_bytes = 0;
};

struct ComparedKind {
  double a_us = 0.0;
  double b_us = 0.0;
};

struct TraceComparison {
  std::vector<ComparedInstruction> instructions;  ///< in issue order
  std::vector<std::string> only_in_a;             ///< names; also where one id is two things
  std::vector<std::string> only_in_b;
  std::map<std::string, ComparedKind> by_kind;
  double a_step_us = 0.0;
  double b_step_us = 0.0;
  int64_t a_peak_bytes = 0;
  int64_t b_peak_bytes = 0;
  /// Largest |a - b| / a of the bytes held after an instruction, and the instruction.
  double worst_held_error = 0.0;
  int worst_held_instruction = -1;
};

/// Matches instructions by id and name.
TraceComparison compare(const Trace& a, const Trace& b);

}  // namespace trireme::plan
