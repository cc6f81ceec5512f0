// The one tree of additions over lanes, and how ranks share it.
//
// `lanes` L is a power of two; the tree's nodes are the aligned blocks of lanes. Data-parallel rank i of n computes the lanes
// of lane_range(i, n, L) and adds up what lies wholly in its range; what is left are its cover nodes, which meet those of
// other ranks at the owner of a slice. Every addition that anybody does is one of the tree's, with the same operands, so the
// sum's bits do not depend on n. Pure: no tensors, no I/O.
#pragma once

#include <cstdint>
#include <vector>

namespace trireme::cluster {

/// A partial sum: lanes [first, first + size); `size` is a power of two that divides `first`.
struct LaneNode {
  int64_t first = 0;
  int64_t size = 1;
  bool operator==(const LaneNode&) const = default;
};

/// Lanes [first, last).
struct LaneRange {
  int64_t first = 0;
  int64_t last = 0;
  bool operator==(const LaneRange&) const = default;
};

/// `left` += `right`, which are indices of a list of nodes; the left node becomes their parent, the right one is done with.
struct LaneAddition {
  int left = 0;
  int right = 0;
  bool operator==(const LaneAddition&) const = default;
};

/// The lanes of data-parallel rank `index` of `ranks`: contiguous, at least one. 1 <= ranks <= lanes.
LaneRange lane_range(int64_t index, int64_t ranks, int64_t lanes);
/// The rank that computes a lane.
int64_t rank_of_lane(int64_t lane, int64_t ranks, int64_t lanes);

/// The fewest nodes that make up the lanes [first, last), in ascending order: what a rank with these lanes is left with. One
/// where the number of ranks is a power of two.
std::vector<LaneNode> cover(int64_t first, int64_t last);
/// Of all ranks, in ascending order of lanes; the ranks' lists one after the other.
std::vector<LaneNode> cover_of_all(int64_t ranks, int64_t lanes);

/// What a rank whose lanes begin at `first` adds as soon as `lane` is finished, in order: the left nodes; each gets the node of
/// its size that follows it added. Carries of a binary counter, so that few partial sums exist at once; a rank's last ones
/// leave its cover().
std::vector<LaneNode> carries(int64_t first, int64_t lane);

/// The additions that make as few sums as can be of nodes in ascending order, e.g. one of cover_of_all(), as early as both
/// operands exist when nodes come in order. The sum of all lanes of a tree ends in node 0. A node that has no sibling in the list,
/// or among the list's sums, stays.
std::vector<LaneAddition> tree_order(const std::vector<LaneNode>& nodes);

}  // namespace trireme::cluster
