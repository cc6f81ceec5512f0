// Seconds of an operation, and of an instruction, on a cluster. Pure.
//
// Products and attention: from the device's measured shapes, between them by the nearest ones; far from all by tiles and waves.
// Collectives: ring over each level of links, with hops (Thakur, Rabenseifner, Gropp 2005), and trees for small all-reduces.
#pragma once

#include <map>
#include <tuple>

#include "trireme/plan/part_work.h"

namespace trireme::plan {

/// What the calibrations say for one device and one stack.
struct CostFactors {
  double sustained =
      1.0;  ///< speed of products and attention in a long run, relative to alone (power, clocks)
  double memory = 1.0;   ///< the same of memory-bound work
  double host = 1.0;     ///< factor of the host's times
  double network = 1.0;  ///< share of the links' bandwidth that runs reach beside everything else
};

/// Members of a group by where they are.
struct GroupShape {
  int size = 1;
  int per_node = 1;    ///< neighbours in one node
  int span = 1;        ///< places of a node that its members there lie across
  int concurrent = 1;  ///< groups of its kind that a node's accelerators are in
  int nodes() const { return (size + per_node - 1) / per_node; }
};
/// Of the group along a dimension, whose tensor parallel ranks are neighbours (cluster/mesh.h).
GroupShape group_shape(const Parallel& parallel, int accelerators_per_node,
                       cluster::Dimension along);

struct InstructionCost {
  double seconds = 0.0;
  double products_s = 0.0;
  double attention_s = 0.0;
  double memory_s = 0.0;
  double host_s = 0.0;              ///< beyond the device's work: the host is late
  double exposed_transfer_s = 0.0;  ///< collectives inside the part that nothing hides
  double hidden_transfer_s = 0.0;
  std::map<cluster::Dimension, double> sent_bytes;  ///< by the group that talks
};

/// Ownership: borrows all that it is made of. Not thread-safe: remembers what it has computed.
class CostModel {
 public:
  CostModel(const model::ModelSpec& spec, const Strategy& strategy, const ShardingOptions& sharding,
            const StackProfile& stack, const ClusterSpec& cluster, const EfficiencyTables& tables,
            const CostFactors& factors);

  /// Of a compute instruction on a part; what it takes on one rank.
  const InstructionCost& of(int part, OpKind kind);
  /// The first part that does the same work as this one.
  int alike(int part) const { return alike_[static_cast<size_t>(part)]; }
  /// Of a collective over the group along a dimension; `bytes` of the whole tensor (of all-to-all and send-receive: of a rank).
  double collective(Collective kind, double bytes, cluster::Dimension along) const;
  /// Share of `collective` that is bandwidth and not latency.
  double latency(Collective kind, cluster::Dimension along) const;
  double sent_bytes(Collective kind, double bytes, cluster::Dimension along) const;
  double product(const ProductShape& shape, ComputeType type) const;  ///< seconds
  double attention(const AttentionShape& shape, bool causal) const;   ///< seconds
  double memory(double bytes, double kernels) const;                  ///< seconds

 private:
  ComputeType compute_type(bool low_precision) const;
  double product_efficiency(const ProductShape& shape, ComputeType type) const;
  const LinkProfile& link_of(int ranks) const;

  const model::ModelSpec& spec_;
  const Strategy& strategy_;
  const ShardingOptions& sharding_;
  const StackProfile& stack_;
  const ClusterSpec& cluster_;
  const EfficiencyTables& tables_;
  const CostFactors factors_;
  /// By what makes a part's work: kind of the part, a layer's shape, the instruction.
  std::map<std::tuple<int, OpKind>, InstructionCost> known_;
  std::vector<int> alike_;  ///< by part: the first part with the same work
};

}  // namespace trireme::plan
