// What transfers of whole parts take: gradients and parameters between replicas, hidden states between stages. Internal to this room.
#pragma once

#include <vector>

#include "trireme/plan/prediction.h"

namespace trireme::plan {

/// Ownership: borrows the run and the cost model.
class PartTransfers {
 public:
  PartTransfers(const PlannedRun& run, const CostModel& cost);

  /// Of an instruction on Resource::kCommunication.
  TransferCost of(const Instruction& instruction) const;

  // By part; `gather` of the parameters, whenever that is.
  const TransferCost& reduce(int part) const { return of_part(part).reduce; }
  const TransferCost& gather_gradients(int part) const { return of_part(part).gather_gradients; }
  const TransferCost& gather(int part) const { return of_part(part).gather; }
  const TransferCost& send() const { return send_; }  ///< to the next stage, or back
  const TransferCost& tell() const { return tell_; }  ///< a few numbers to all ranks

 private:
  struct OfPart {
    TransferCost reduce;
    TransferCost gather_gradients;
    TransferCost gather;
  };

  const OfPart& of_part(int part) const { return parts_[static_cast<size_t>(part)]; }
  TransferCost shared(Collective kind, const RankParameters& own, double element_bytes) const;

  const PlannedRun& run_;
  const CostModel& cost_;
  std::vector<OfPart> parts_;
  TransferCost send_;
  TransferCost tell_;
};

}  // namespace trireme::plan
