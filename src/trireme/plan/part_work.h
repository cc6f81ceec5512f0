// What an instruction on a part consists of: products, attention, passes over memory, collectives, as data. Pure.
//
// Tensor, context and expert parallelism are not in programs yet. Here they are: a part's shapes are those of one rank, and the
// collectives inside a part are operations of it, with the dimension they go along, so that each can become an instruction of its
// own. docs/design/0018 says why. Notation: N tokens of a micro-batch on a rank, h hidden.
// Sharding of layers: Megatron-LM (arXiv 1909.08053), sequence parallelism (2205.05198), Ulysses (2309.14509), experts (2006.16668,
// folding: 2504.14960).
#pragma once

#include <vector>

#include "trireme/cluster/mesh.h"
#include "trireme/plan/efficiency.h"
#include "trireme/plan/profile.h"
#include "trireme/plan/program.h"

namespace trireme::plan {

enum class Collective { kAllReduce, kAllGather, kReduceScatter, kAllToAll, kSendReceive };
const char* to_string(Collective collective);

enum class WorkKind { kProduct, kAttention, kMemory, kCollective };

/// One kernel, several alike, or one collective.
struct Operation {
  WorkKind kind = WorkKind::kMemory;
  ProductShape product;        ///< kProduct
  bool low_precision = false;  ///< kProduct: in the recipe's low precision
  AttentionShape attention;    ///< kAttention
  bool causal = true;          ///< kAttention: what the mask hides is skipped
  double bytes =
      0.0;  ///< kMemory: read and written; kCollective: of the whole tensor that the group has
  double kernels = 1.0;
  Collective collective = Collective::kAllReduce;
  cluster::Dimension along = cluster::Dimension::kTensor;  ///< kCollective
  bool hidden = false;  ///< kCollective: runs beside the product before it
};

/// How a model is spread, beyond what Strategy::parallel says; of a run that is not Trireme's own, what its software did.
struct ShardingOptions {
  bool sequence_parallel = true;  ///< norms and residuals are cut along the sequence too
  bool fp8 = false;               ///< products of layers in fp8; head and router stay
  bool fp8_attention = false;
  bool dropout = false;  ///< after both blocks of a layer
  bool recompute_whole =
      false;  ///< recomputation repeats a part's last product and its collectives too
  double capacity_factor = 0.0;  ///< rows of an expert; 0: as many as are routed there
};

/// `kind` is kForward, kRecompute, kBackwardInput, kBackwardWeight, kLoss or kOptimizerStep.
std::vector<Operation> part_operations(const model::ModelSpec& spec, const Strategy& strategy,
                                       const ShardingOptions& sharding, const StackProfile& stack,
                                       int part, OpKind kind);

/// Parameters of a part that one rank holds, cut by tensor and expert parallelism; those of experts apart, because other ranks
/// share them.
struct RankParameters {
  double shared = 0.0;  ///< the same on all ranks of kDataContext
  double expert = 0.0;  ///< the same on all ranks of kExpertData
};
RankParameters rank_parameters(const model::ModelSpec& spec, const Parallel& parallel, int part);

/// Trainable elements of a part by how tensor and expert parallelism treat them.
struct PartElements {
  double cut = 0.0;    ///< by tensor parallelism
  double whole = 0.0;  ///< norms, routers: on every rank
  double expert = 0.0;
  bool operator==(const PartElements&) const = default;
};
std::vector<PartElements> part_elements(const model::ModelSpec& spec);  ///< by part
RankParameters rank_parameters(const PartElements& elements, const Parallel& parallel);

/// Tokens of a micro-batch on one rank.
double rank_tokens(const Strategy& strategy);

}  // namespace trireme::plan
