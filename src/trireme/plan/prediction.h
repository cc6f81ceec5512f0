// What a run will cost on a cluster: step time, where it goes, memory. Pure.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "trireme/base/json.h"
#include "trireme/plan/cost.h"
#include "trireme/plan/simulate_world.h"

namespace trireme::plan {

/// A run to be predicted. The strategy's tensor, context and expert parallelism are in the parts' cost (part_work.h).
struct PlannedRun {
  model::ModelSpec spec;
  Strategy strategy;
  ShardingOptions sharding;
  StackProfile stack;
  ClusterSpec cluster;
  EfficiencyTables tables;  ///< that apply to the cluster's device
  CostFactors factors;
  double interval = 0.15;  ///< half width of the 90 % interval, as a share of the step
  bool own_memory = true;  ///< memory as Trireme holds it; else as the stack does (stack_memory.h)
};

/// Whether Trireme's programs say all of this layout: else memory is held as other software holds it (docs/design/0018).
bool programs_say(const Parallel& parallel);

/// Tables and calibrations of the library for the run's device and stack, without what `without` published.
void use_profiles(const ProfileLibrary& library, const std::string& without, PlannedRun& run);

struct MemoryByKind {
  double weights = 0.0;
  double gradients = 0.0;
  double optimizer = 0.0;
  double activations = 0.0;  ///< and what instructions hold while they run
  double context = 0.0;
  double total() const { return weights + gradients + optimizer + activations + context; }
};

/// Ranks that do and hold the same: those of one pipeline stage.
struct RankClass {
  int stage = 0;
  int64_t ranks = 1;
  MemoryByKind peak;
  double busy_s = 0.0;
  double bubble_share = 0.0;
};

struct Prediction {
  double step_s = 0.0;
  double low_s = 0.0;  ///< of the 90 % interval
  double high_s = 0.0;
  double tokens_per_s = 0.0;  ///< of one accelerator
  double flops_model = 0.0;   ///< of a step, of one accelerator
  double flops_hardware = 0.0;
  double peak_flops = 0.0;  ///< a second, of the accelerator, in the recipe's type
  double bubble_share = 0.0;
  double exposed_comm_s = 0.0;  ///< of the rank that has most
  double hidden_comm_share = 1.0;
  std::map<std::string, double>
      exposed_by_kind_s;  ///< of that rank: "tensor", "expert", "reduce-gradients" ...
  std::map<std::string, double> sent_bytes;  ///< of that rank in a step, by the same names
  std::map<std::string, double>
      time_by_kind_s;  ///< "products", "attention", "memory", "host", "transfers", "idle"
  std::vector<RankClass> classes;
  double usable_bytes = 0.0;
  /// Where the device's profile has measured instructions: share of the computed time that is of measured kinds; else none.
  std::optional<double> measured_share;
  double peak_bytes() const;
  bool fits() const { return peak_bytes() <= usable_bytes; }
};

/// What was simulated: a rank of every pipeline stage (fold.h), or all ranks where the device's own instructions are known.
struct PredictedWorld {
  std::vector<Program> programs;
  WorldSimulation simulation;
  /// Of a rank, in these programs; the run has more where the schedule repeats itself and a part of it tells the rest.
  int64_t micro_batches = 1;
  bool whole = false;  ///< every rank is there
};

/// Error{kConfig} with the reason if the model cannot run so. `world`: receives what was simulated, unless null.
Prediction predict(const PlannedRun& run, PredictedWorld* world = nullptr);

/// Tokens and operations a second, the interval, the device's peak, of a prediction whose step is known.
void add_rates(const PlannedRun& run, Prediction& prediction);

OrderedJson prediction_json(const PlannedRun& run, const Prediction& prediction);
std::string describe(const PlannedRun& run, const Prediction& prediction);

/// Bytes of the activations that software like Megatron-LM keeps, written over those of Trireme in the program's buffers
/// (stack_memory.cpp); returns what is held all the time.
MemoryByKind use_stack_memory(const PlannedRun& run, Program& program);

}  // namespace trireme::plan
