// Sums of partial gradients over data-parallel ranks whose bits do not depend on the number of ranks.
//
// Every rank has the sums of its cover nodes of the one tree of lanes (cluster/lane_tree.h). The flat elements are cut into a
// slice per rank; each rank sends each of its nodes' slices to their owners, and the owner adds them in the tree's order.
// Sent per rank: (n-1)/n of the elements for each of its nodes, of which it has one where n is a power of two.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "trireme/cluster/lane_tree.h"
#include "trireme/comm/group.h"

namespace trireme::comm {

/// Of one flat vector of elements. One thread. Borrows the group, whose ranks are the data-parallel ones in order.
class ExactReduction {
 public:
  /// When a rank's sums leave.
  enum class When {
    kAllLanes,  ///< once it has added its lanes as far as it can: its cover nodes
    kEachLane  ///< lane by lane, as each is done: more bytes, but no more than a lane's sum is held
  };
  /// `bounds`: group.size() + 1 boundaries of the slices (cluster/slices.h). 1 <= group.size() <= lanes.
  ExactReduction(Group& group, std::vector<int64_t> bounds, int64_t lanes,
                 When when = When::kAllLanes);

  /// How often send() is called, by every rank alike.
  int rounds() const { return static_cast<int>(place_.size()); }
  /// What this rank sends, one a round; it may have fewer than there are rounds.
  const std::vector<cluster::LaneNode>& nodes() const { return nodes_; }
  /// Elements of this rank's slice, and of what comes for it: of all nodes of all ranks.
  int64_t slice_elements() const { return slice_elements_; }
  int64_t pieces_elements() const { return slice_elements_ * static_cast<int64_t>(num_nodes_); }

  /// Collective: issues round `round`. `sum`: the whole vector, of nodes()[round]; undefined where there is none. `pieces`:
  /// pieces_elements() of the same type, all rounds' together. Both stay as they are until the transfer was waited for.
  Group::Pending send(int round, const at::Tensor& sum, const at::Tensor& pieces,
                      device::Queue& after);
  /// Issues to the current queue: `slice` = the sum of the pieces, in the tree's order and in their own type at every node
  /// (bfloat16 is rounded at each). Spoils the pieces. After the current queue has waited for all rounds.
  void combine(const at::Tensor& pieces, const at::Tensor& slice) const;

 private:
  Group& group_;
  const std::vector<int64_t> bounds_;
  int64_t slice_elements_ = 0;
  size_t num_nodes_ = 0;
  std::vector<cluster::LaneNode> nodes_;
  std::vector<std::vector<int>> place_;  ///< [round][rank]: which piece it is; -1: none
  std::vector<int> piece_of_node_;       ///< nodes of all ranks in ascending order
  std::vector<cluster::LaneAddition> additions_;
};

}  // namespace trireme::comm
