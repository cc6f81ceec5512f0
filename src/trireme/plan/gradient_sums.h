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
  /// Of the ranks that share states; -1: nobody does.
  int owner_group() const { return owner_group_; }
  /// Of the ranks that share sequences; -1: nobody does.
  int context_group() const { return context_group_; }

  /// Before the first loss: the number of the instruction that counts targets, or kNone of one rank.
  int count_targets();
  /// At the begin: owners' weights of the step before become whole, part by part in the order of the forward pass; not of parts
  /// that are gathered for every use.
  void gather_weights();
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

  /// Pieces that were sent and are not added yet.
  struct Sent {
    int part;
    std::vector<int> sources;  ///< accumulators that the transfer reads until it is waited for
    int pieces;                ///< the buffer
    std::vector<Piece> nodes;
    bool last;  ///< of the part
    bool of_replicas = false;
  };

  /// Each lane's gradient goes to its owners by itself: under ZeRO 2 and 3 to hold no more, and where a rank's leaves have no
  /// neighbours that it could add.
  bool sends_by_lane() const {
    return owners_ > 1 && (strategy_.parallel.zero >= 2 || strategy_.parallel.cp > 1);
  }
  void combine_lanes(int part, int64_t lane);
  void reduce(int part, std::vector<Piece> pieces, std::vector<int> sources, bool last);
  void combine_oldest();
  void reduce_over_replicas(int part);
  void gather_gradients(int part, bool of_replicas);
  std::vector<Piece> round_of_lane(size_t round) const;
  int64_t slice_bytes(int part) const;
  int64_t replica_slice_bytes(int part) const;
  int slice_of(int part) const { return slices_[static_cast<size_t>(part)].at(block_.first); }
  int finished_gradient(int part) const;

  const model::ModelSpec& spec_;
  ProgramWriter& writer_;
  const Strategy& strategy_;
  const int num_parts_;
  std::vector<char> has_parameters_;
  std::vector<std::vector<int>>
      accumulators_;          ///< [part][lane]: buffer of the lane, then of its group
  int owners_ = 1;            ///< ranks that share states
  int replicas_ = 1;          ///< blocks of them
  cluster::LaneRange block_;  ///< lanes of this rank's
  int replica_group_ = -1;
  std::vector<int> replica_sums_;  ///< by part: kReplicaSlice
  int world_group_ = -1;
  int owner_group_ = -1;
  int pipeline_group_ = -1;
  int context_group_ = -1;
  std::vector<int> gathered_;  ///< by part: the gather that nobody has waited for yet
  int counted_ = kNone;        ///< the instruction of count_targets()
  std::vector<std::map<int64_t, int>>
      slices_;  ///< [part]: by first lane of a node, its sum's buffer
  std::vector<std::vector<cluster::LaneNode>> held_;  ///< [part]: the nodes of slices_, ascending
  std::deque<Sent> sent_;
  std::vector<std::pair<int, int>> at_end_;  ///< transfers and their buffers
  std::vector<int> order_;                   ///< parts as they are done in a lane
};

}  // namespace trireme::plan
