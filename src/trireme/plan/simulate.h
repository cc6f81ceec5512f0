// Runs a Program in event time: what a step costs and holds, without a device.
//
// Every resource is a queue that runs its instructions in issue order, one at a time; an
// instruction starts when its queue is free and its dependencies are done. A program whose copies run on into the next
// step is simulated as one of many steps alike. Pure and deterministic.
#pragma once

#include <cstdint>
#include <vector>

#include "trireme/plan/program.h"

namespace trireme::plan {

/// The bytes held from `time_s` on, until the next point.
struct MemoryPoint {
  double time_s = 0.0;
  int64_t bytes = 0;
};

/// When an instruction ran and what was held around it. A copy that runs on into the next step ends after the step.
struct SimulatedInstruction {
  double start_s = 0.0;
  double end_s = 0.0;
  int64_t peak_bytes = 0;  ///< highest while it ran, resident bytes and all workspaces included
  int64_t held_bytes_after = 0;  ///< right after it and its frees
};

struct Simulation {
  double step_s = 0.0;                             ///< from one step's begin to the next one's
  std::vector<SimulatedInstruction> instructions;  ///< by instruction id
  /// Ids of one longest chain, from the first instruction to the one that ends last: each starts
  /// the moment its predecessor (a dependency, or the one before it in its queue) ends. The first one may wait for copies
  /// of the step before.
  std::vector<int> critical_path;
  std::vector<MemoryPoint> memory;  ///< the curve, in order of time; of the device
  int64_t peak_bytes = 0;           ///< resident bytes, buffers and workspaces on the device
  int64_t host_peak_bytes = 0;      ///< most that was offloaded: optimizer states and activations
  int peak_instruction = -1;        ///< the one that started when the peak was reached
  double compute_busy_s = 0.0;
  double copy_s = 0.0;          ///< time in which at least one copy queue runs
  double exposed_copy_s = 0.0;  ///< of it, what no compute covers
};

/// `durations_s` has one entry per instruction, none negative. Error{kInternal} otherwise.
Simulation simulate(const Program& program, const std::vector<double>& durations_s);

/// Fills in what follows from the times of all instructions: busy and copy times, memory. Not the step, not the path.
void derive_figures(const Program& program, Simulation& simulation);

/// What is held when every instruction runs alone, in issue order: what the executor of one rank does.
/// Times count instructions. simulate() may hold a batch more, because the host's queue runs ahead.
Simulation simulate_in_issue_order(const Program& program);

/// How fast the device is, as far as a first estimate needs it.
struct DeviceRates {
  double product_flops = 1e11;    ///< operations a second of matrix products
  double attention_flops = 5e10;  ///< of attention's kernel
  double memory_bytes = 1e10;     ///< bytes a second read or written
  double host_link_bytes =
      1e10;  ///< bytes a second to the host, and as many from it at the same time
  double network_bytes = 1e10;   ///< bytes a second between ranks
  double instruction_s = 20e-6;  ///< cost of an instruction that does nothing
};

/// First estimate of every instruction's duration: products and attention at their rates, plus the
/// buffers it touches once each at the memory's rate; the optimizer passes over its states. Copies to and from the host at
/// the link's rate.
std::vector<double> estimate_durations(const model::ModelSpec& spec, const Program& program,
                                       const DeviceRates& rates);

}  // namespace trireme::plan
