#include "trireme/train/rank_samples.h"

#include <algorithm>

#include "trireme/base/error.h"
#include "trireme/cluster/mesh.h"

namespace trireme::train {

struct RankSamples::Table {
  plan::Strategy strategy;
  int64_t index = 0;          ///< data parallel
  std::vector<int64_t> ours;  ///< micro-batches of this rank before each step, and before the end
  std::vector<int64_t> samples;  ///< sequences of all ranks before each step

  /// Micro-batches of a lane in a step of so many sequences.
  int64_t per_lane(int64_t sequences) const { return sequences / strategy.micro / strategy.lanes; }
};

RankSamples::RankSamples(const plan::Strategy& strategy, const optim::BatchRampSpec& ramp,
                         int64_t steps, int rank) {
  auto table = std::make_shared<Table>();
  table->strategy = strategy;
  const cluster::Mesh mesh(plan::mesh_shape(strategy.parallel));
  table->index = mesh.index_in_group(cluster::Dimension::kData, rank);
  const auto lanes =
      static_cast<int64_t>(plan::lanes_of(strategy, table->index, strategy.parallel.dp).size());
  table->ours.push_back(0);
  table->samples.push_back(0);
  for (int64_t step = 0; step < steps; ++step) {
    const int64_t sequences = optim::batch_sequences(ramp, step);
    table->ours.push_back(table->ours.back() + lanes * table->per_lane(sequences));
    table->samples.push_back(table->samples.back() + sequences);
  }
  table_ = std::move(table);
}

int64_t RankSamples::micro_batches_before(int64_t step) const {
  TRIREME_CHECK(step >= 0 && step < static_cast<int64_t>(table_->ours.size()), "step {} of {}",
                step, table_->ours.size() - 1);
  return table_->ours[static_cast<size_t>(step)];
}

data::SampleOrder RankSamples::order() const {
  return [table = table_](int64_t micro_batch) {
    const auto after = std::ranges::upper_bound(table->ours, micro_batch);
    // The loader reads ahead; what lies behind the last step is never taken.
    const auto step =
        std::min(static_cast<size_t>(after - table->ours.begin()) - 1, table->ours.size() - 2);
    const int64_t sequences = table->samples[step + 1] - table->samples[step];
    const int64_t per_lane = table->per_lane(sequences);
    const std::vector<int64_t> lanes =
        plan::lanes_of(table->strategy, table->index, table->strategy.parallel.dp);
    const int64_t place =
        (micro_batch - table->ours[step]) % (static_cast<int64_t>(lanes.size()) * per_lane);
    const int64_t index =
        lanes[static_cast<size_t>(place / per_lane)] * per_lane + place % per_lane;
    return data::SampleRange{table->samples[step] + index * table->strategy.micro,
                             table->strategy.micro};
  };
}

}  // namespace trireme::train
