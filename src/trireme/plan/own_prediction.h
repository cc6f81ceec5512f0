// A run of Trireme's own on a machine whose instructions were measured: every rank's program as the executor runs it, each
// instruction with the device's own price. Pure.
#pragma once

#include <map>
#include <vector>

#include "trireme/plan/prediction.h"

namespace trireme::plan {

/// Prices the instructions of one rank's program by the device's profile. Ownership: borrows the run and the program. Not
/// thread-safe.
class InstructionPrices {
 public:
  InstructionPrices(const PlannedRun& run, const Program& program);

  InstructionClass class_of(const Instruction& instruction) const;
  /// What the profile's tables say; of any instruction that is no transfer.
  TableSeconds tables_of(const Instruction& instruction);
  /// Seconds, by instruction_rate.h; the tables' where nothing of its kind was measured.
  double seconds(const Instruction& instruction);
  /// The rate that seconds() takes: of its class, else of its class with fewer modes behind its kind; null if there is none.
  const InstructionRate* rate_of(const Instruction& instruction) const;

 private:
  double moved_bytes(const Instruction& instruction) const;
  bool adds_to_gradients(const Instruction& instruction) const;

  const PlannedRun& run_;
  const Program& program_;
  CostModel cost_;
  std::map<InstructionClass, const InstructionRate*> rates_;
};

/// Whether a run is predicted so: the device's profile has measured instructions, and the run is Trireme's own on at most
/// kMostOwnRanks ranks.
inline constexpr int64_t kMostOwnRanks = 256;
bool has_own_rates(const PlannedRun& run);

/// Of a device whose work the host's thread does: everything but transfers takes its turn in the order of issue.
void in_order_of_issue(Program& program);

/// predict() of such a run.
Prediction predict_own(const PlannedRun& run, PredictedWorld* world);

}  // namespace trireme::plan
