#include "trireme/plan/part_transfers.h"

#include <algorithm>

namespace trireme::plan {

using cluster::Dimension;

PartTransfers::PartTransfers(const PlannedRun& run, const CostModel& cost)
    : run_(run), cost_(cost) {
  const Parallel& parallel = run.strategy.parallel;
  const std::vector<PartElements> elements = part_elements(run.spec);
  for (size_t part = 0; part < elements.size(); ++part) {
    // Most parts have as many parameters as one before them.
    const auto same = std::ranges::find(elements, elements[part]);
    const auto first = static_cast<size_t>(same - elements.begin());
    if (first < part) {
      parts_.push_back(parts_[first]);
      continue;
    }
    const RankParameters own = rank_parameters(elements[part], parallel);
    parts_.push_back({shared(Collective::kReduceScatter, own, run.stack.gradient_bytes),
                      shared(Collective::kAllGather, own, run.stack.gradient_bytes),
                      shared(Collective::kAllGather, own, run.stack.gathered_bytes)});
  }
  const bool sliced = run.sharding.sequence_parallel;
  const double element = run.strategy.precision == Precision::kFp32 ? 4.0 : 2.0;
  send_.bytes = rank_tokens(run.strategy) * static_cast<double>(run.spec.hidden) * element /
                (sliced ? static_cast<double>(parallel.tp) : 1.0);
  send_.seconds = cost.collective(Collective::kSendReceive, send_.bytes, Dimension::kPipeline);
  const int node = run.cluster.node.accelerators;
  if (group_shape(parallel, node, Dimension::kPipeline).nodes() > 1)
    send_.seconds = std::max(send_.seconds, run.stack.network_send_s);
  tell_.seconds = cost.latency(Collective::kAllReduce, Dimension::kDataContext) +
                  cost.latency(Collective::kAllReduce, Dimension::kPipeline);
}

TransferCost PartTransfers::of(const Instruction& instruction) const {
  switch (instruction.kind) {
    case OpKind::kSend:
      return send_;
    case OpKind::kReceive:
      return {send_.seconds, 0.0};
    case OpKind::kReduceGradients:
      return reduce(instruction.part);
    case OpKind::kGatherGradients:
      return gather_gradients(instruction.part);
    case OpKind::kGatherParameters: {
      const bool for_use = instruction.micro_batch >= 0;
      if ((run_.strategy.parallel.zero >= 3) != for_use) return {};
      return gather(instruction.part);
    }
    default:
      return tell_;
  }
}

TransferCost PartTransfers::shared(Collective kind, const RankParameters& own,
                                   double element_bytes) const {
  TransferCost result;
  const bool hybrid = run_.strategy.parallel.shard > 0;
  const auto add = [&](Collective of, double bytes, Dimension along) {
    if (bytes <= 0.0) return;
    const double latency = cost_.latency(of, along);
    // Small parts travel together: they pay their share of a bucket's latency.
    const double calls = std::min(1.0, bytes / run_.stack.bucket_bytes);
    result.seconds += cost_.collective(of, bytes, along) - (1.0 - calls) * latency;
    result.bytes += cost_.sent_bytes(of, bytes, along);
  };
  add(kind, own.shared * element_bytes, hybrid ? Dimension::kShard : Dimension::kDataContext);
  if (hybrid && kind == Collective::kReduceScatter) {
    const auto shard = static_cast<double>(run_.strategy.parallel.shard);
    add(Collective::kAllReduce, own.shared * element_bytes / shard, Dimension::kReplicate);
  }
  add(kind, own.expert * element_bytes, Dimension::kExpertData);
  return result;
}

}  // namespace trireme::plan
