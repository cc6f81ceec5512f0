// Which rank is where: the dimensions of a parallel run and the groups along them. Pure.
//
// world = pp x dp x cp x tp, tensor parallel ranks next to one another: rank = ((pp_i dp + dp_i) cp + cp_i) tp + tp_i.
// Experts see the ranks of one pipeline stage, their number n = dp cp tp, as another mesh (folding, arXiv 2504.14960):
// place in the stage = (edp_i ep + ep_i) etp + etp_i, with edp = n / (ep etp).
#pragma once

#include <array>
#include <vector>

namespace trireme::cluster {

struct MeshShape {
  int dp = 1;
  int tp = 1;
  int pp = 1;
  int cp = 1;
  int ep = 1;     ///< ep etp divides dp cp tp
  int etp = 1;    ///< tensor parallel ranks of an expert
  int shard = 0;  ///< data parallel ranks among which ZeRO shards, divides dp; 0: all
  bool operator==(const MeshShape&) const = default;
};

/// Ranks that differ in one respect only. Every rank is in exactly one group of each.
enum class Dimension {
  kTensor,
  kContext,
  kData,
  kPipeline,
  kDataContext,  ///< data and context: ranks that hold the same parameters outside of experts
  kStage,        ///< all of a pipeline stage
  kShard,  ///< of kDataContext, a contiguous block of `shard` data parallel ranks: they share states of ZeRO
  kReplicate,     ///< of kDataContext, one of every such block: they hold the same slice
  kExpertTensor,  ///< share an expert's matrices
  kExpert,        ///< hold different experts of a layer, tokens go to and fro
  kExpertData     ///< hold the same share of the same experts
};
inline constexpr std::array kDimensions = {
    Dimension::kTensor,       Dimension::kContext, Dimension::kData,      Dimension::kPipeline,
    Dimension::kDataContext,  Dimension::kStage,   Dimension::kShard,     Dimension::kReplicate,
    Dimension::kExpertTensor, Dimension::kExpert,  Dimension::kExpertData};
/// "tensor", "data-context" ...
const char* to_string(Dimension dimension);

struct Coordinates {
  int dp = 0;
  int tp = 0;
  int pp = 0;
  int cp = 0;
  bool operator==(const Coordinates&) const = default;
};

/// In the experts' mesh.
struct ExpertCoordinates {
  int pp = 0;
  int edp = 0;
  int ep = 0;
  int etp = 0;
  bool operator==(const ExpertCoordinates&) const = default;
};

/// Immutable. Thread-safe.
class Mesh {
 public:
  /// Error{kInternal} if a size is below 1 or does not divide what it must: plan/validate_parallel.h says so to users.
  explicit Mesh(const MeshShape& shape);

  const MeshShape& shape() const { return shape_; }
  int size() const { return shape_.pp * stage_size(); }
  int stage_size() const { return shape_.dp * shape_.cp * shape_.tp; }  ///< ranks of a stage
  int expert_data_size() const { return stage_size() / (shape_.ep * shape_.etp); }
  int shard_size() const { return shape_.shard == 0 ? shape_.dp : shape_.shard; }

  Coordinates coordinates(int rank) const;
  int rank(const Coordinates& where) const;
  ExpertCoordinates expert_coordinates(int rank) const;
  int rank(const ExpertCoordinates& where) const;

  /// Size of every group along a dimension.
  int group_size(Dimension dimension) const;
  /// Members of the group that `rank` is in, ascending: of kPipeline from the first stage to the last.
  std::vector<int> group(Dimension dimension, int rank) const;
  /// Place of `rank` in group(dimension, rank).
  int index_in_group(Dimension dimension, int rank) const;
  /// All groups, by their first member: the same list on every rank.
  std::vector<std::vector<int>> groups(Dimension dimension) const;

 private:
  /// Equal for two ranks exactly if they are in one group.
  int group_id(Dimension dimension, int rank) const;

  MeshShape shape_;
};

}  // namespace trireme::cluster
