// Which samples a rank's micro-batches are, over a whole run.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "trireme/data/loader.h"
#include "trireme/optim/schedule.h"
#include "trireme/plan/program.h"

namespace trireme::train {

/// A rank takes the micro-batches of its lanes out of each step's global batch. Thread-safe after construction.
class RankSamples {
 public:
  /// `strategy`: of the full batch; under ramp-up a step has fewer micro-batches in each lane.
  RankSamples(const plan::Strategy& strategy, const optim::BatchRampSpec& ramp, int64_t steps,
              int rank);

  /// Of this rank, before a step (0-based).
  int64_t micro_batches_before(int64_t step) const;
  /// For the loader: by number of the rank's micro-batch since the run began.
  data::SampleOrder order() const;

 private:
  struct Table;
  std::shared_ptr<const Table> table_;
};

}  // namespace trireme::train
