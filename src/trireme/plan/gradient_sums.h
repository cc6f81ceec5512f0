// Sums of gradients, from a lane's accumulators to the optimizer's step, on one rank or over many. Internal to this room.
#pragma once

#include <deque>
#include <map>
#include <utility>
#include <vector>

#include "trireme/cluster/mesh.h"
#include "trireme/plan/program_writer.h"

namespace trireme::plan {

/// Writes what adds up lanes' gradients and what follows from them. docs/reduction.md says why the sum does not depend on the
/// ranks. Only of parts that the rank has. Ownership: borrows the spec and the writer, whose program has its strategy.
class GradientSums {
 public:
  GradientSums(const model::ModelSpec& spec, ProgramWriter& writer, int rank);

  bool has_parameters(int part) const { return has_parameters_[static_cast<size_t>(part)] != 0; }
  /// Index of the pipeline's ranks in Program::groups; -1: no pipeline.
  int pipeline_group() const { return pipeline_group_; }
  /// By part: of the ranks that share its states; -1: nobody does.
  std::vector<int> owner_groups() const;
  /// Of the ranks over which experts are spread; -1: none.
  int expert_group() const { return expert_group_; }
  /// Of the ranks that share sequences; -1: nobody does.
  int context_group() const { return context_group_; }

  /// Before the first loss: the number of the instruction that counts targets, or kNone of one rank.
  int count_targets();
  /// At the begin: owners' weights of the step before become whole, part by part in the order of the forward pass; not of parts
  /// that are gathered for every use.
  void gather_weights();
  /// Of the tensor parallel ranks; -1: there is one.
  int tensor_group() const { return tensor_group_; }

  /// The gather that a part's first use waits for; kNone after that, and where there is none.
  int take_gather(int part);
  /// The current instruction adds to the accumulator of a part and a lane.
  void accumulate(int64_t lane, int part);
  /// The part's gradients of the lane are complete: adds and sends what can be.
  void lane_done(int part, int64_t lane);
  /// The norm waits for a transfer, and keeps the buffer that it reads until then.
  void wait_at_end(int transfer, int buffer) { at_end_.push_back({transfer, buffer}); }
  /// After the last lane: norm, optimizer steps, commit.
  void finish_step();

 private:
  static constexpr int kNone = ProgramWriter::kNone;

  /// The ranks that share a part's states and add up its gradients.
  struct Owners {
    int count = 1;
    int group = -1;                           ///< index in Program::groups; -1: one rank alone
    std::vector<std::vector<int64_t>> lanes;  ///< of each, in the order in which it computes them
  };

  /// Pieces that were sent and are not added yet.
  struct Sent {
    int part;
    std::vector<int> sources;  ///< accumulators that the transfer reads until it is waited for
    int pieces;                ///< the buffer
    std::vector<Piece> nodes;
    bool last;  ///< of the part
    bool of_replicas = false;
  };

  const Owners& owners(int part) const {
    return writer_.program().spreads(part) ? expert_owners_ : owners_;
  }
  int slice_in(int part) const { return writer_.program().slice_of(part); }
  /// Of this rank, in the order in which it computes them, with absent ones.
  const std::vector<int64_t>& lanes_of_part(int part) const {
    return writer_.program().spreads(part) ? writer_.program().expert_lanes
                                           : writer_.program().lanes;
  }
  void find_groups(const cluster::Mesh& mesh, int rank);
  void spread_experts(const cluster::Mesh& mesh, int rank);
  /// A part's gradients of a lane, of which tensor parallel ranks exchange those that they hold alike.
  struct Shared {
    int part;
    int64_t lane;
    std::vector<int> buffers;  ///< of the transfers; none: it has none such
  };
  void find_tensor_groups(const cluster::Mesh& mesh);
  void share(int part, int64_t lane);
  void add_oldest_shares();
  /// This rank's gradients of the lane are as they stay: adds and sends what can be.
  void complete(int part, int64_t lane);

  /// Each lane's gradient goes to its owners by itself: under ZeRO 2 and 3 to hold no more, and where a rank's leaves have no
  /// neighbours that it could add.
  bool sends_by_lane(const Owners& owners) const {
    const bool apart =
        strategy_.parallel.cp > 1 && strategy_.parallel.reduction == Reduction::kExact;
    return owners.count > 1 && (strategy_.parallel.zero >= 2 || apart);
  }
  int& accumulator(int part, int64_t lane) {
    return accumulators_[static_cast<size_t>(part)]
                        [static_cast<size_t>(writer_.program().accumulator_of(part, lane))];
  }

  void combine_lanes(int part, int64_t lane);
  void reduce(int part, std::vector<Piece> pieces, std::vector<int> sources, bool last);
  void combine_oldest();
  void combine_in_tree(const Sent& sent);
  void reduce_over_replicas(int part);
  void gather_gradients(int part, bool of_replicas);
  static size_t num_rounds(const Owners& owners);
  static std::vector<Piece> one_of_each(const Owners& owners);
  std::vector<Piece> round_of_lane(int part, size_t round) const;
  int64_t slice_elements(int part) const;
  int64_t slice_bytes(int part) const;  ///< of a sum of this rank's slice
  int64_t replica_slice_bytes(int part) const;
  int64_t widened_bytes(int part) const;
  int slice_of(int part) const { return slices_[static_cast<size_t>(part)].at(block_.first); }
  int finished_gradient(int part) const;

  const model::ModelSpec& spec_;  ///< as the rank has it
  ProgramWriter& writer_;
  const Strategy& strategy_;
  const int num_parts_;
  std::vector<char> has_parameters_;
  std::vector<std::vector<int>>
      accumulators_;  ///< [part][lane]: buffer of the lane, then of its group
  Owners owners_;
  Owners expert_owners_;      ///< of parts whose experts are spread
  int replicas_ = 1;          ///< blocks of them
  cluster::LaneRange block_;  ///< lanes of this rank's
  int replica_group_ = -1;
  std::vector<int> replica_sums_;  ///< by part: kReplicaSlice
  std::map<int, int> widened_;     ///< by part: what is gathered of sums that are not float32
  int world_group_ = -1;
  int expert_group_ = -1;
  int pipeline_group_ = -1;
  int context_group_ = -1;
  std::vector<int> gathered_;  ///< by part: the gather that nobody has waited for yet
  int counted_ = kNone;        ///< the instruction of count_targets()
  std::vector<std::map<int64_t, int>>
      slices_;  ///< [part]: by first lane of a node, its sum's buffer
  std::vector<std::vector<cluster::LaneNode>> held_;  ///< [part]: the nodes of slices_, ascending
  std::deque<Sent> sent_;
  int tensor_group_ = -1;
  /// Of tensor parallel ranks that hold the same stretches of something: indices in Program::groups, by their number.
  std::map<int64_t, int> holder_groups_;
  std::deque<Shared> shared_;
  std::vector<std::pair<int, int>> at_end_;  ///< transfers and their buffers
  std::vector<int> order_;                   ///< parts as they are done in a lane
};

}  // namespace trireme::plan
