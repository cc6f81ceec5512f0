#include "trireme/comm/exact_reduction.h"

#include <ATen/ops/add.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <utility>

#include "trireme/base/error.h"

namespace trireme::comm {

ExactReduction::ExactReduction(Group& group, std::vector<int64_t> bounds, int64_t lanes, When when)
    : group_(group), bounds_(std::move(bounds)) {
  const int size = group.size();
  TRIREME_CHECK(static_cast<int>(bounds_.size()) == size + 1 && bounds_.front() == 0 &&
                    std::ranges::is_sorted(bounds_),
                "{} boundaries of slices for {} ranks", bounds_.size(), size);
  const auto own = static_cast<size_t>(group.rank());
  slice_elements_ = bounds_[own + 1] - bounds_[own];

  std::vector<std::vector<cluster::LaneNode>> nodes;  // by rank
  size_t rounds = 0;
  for (int rank = 0; rank < size; ++rank) {
    const cluster::LaneRange range = cluster::lane_range(rank, size, lanes);
    if (when == When::kAllLanes) {
      nodes.push_back(cluster::cover(range.first, range.last));
    } else {
      nodes.emplace_back();
      for (int64_t lane = range.first; lane < range.last; ++lane) nodes.back().push_back({lane, 1});
    }
    rounds = std::max(rounds, nodes.back().size());
  }
  nodes_ = nodes[own];
  // Pieces lie as the rounds bring them.
  place_.assign(rounds, std::vector<int>(static_cast<size_t>(size), -1));
  int next = 0;
  for (size_t round = 0; round < rounds; ++round) {
    for (size_t rank = 0; rank < nodes.size(); ++rank) {
      if (round < nodes[rank].size()) place_[round][rank] = next++;
    }
  }
  num_nodes_ = static_cast<size_t>(next);
  std::vector<cluster::LaneNode> all;
  for (size_t rank = 0; rank < nodes.size(); ++rank) {
    for (size_t round = 0; round < nodes[rank].size(); ++round) {
      all.push_back(nodes[rank][round]);
      piece_of_node_.push_back(place_[round][rank]);
    }
  }
  additions_ = cluster::tree_order(all);
  TRIREME_CHECK(additions_.size() + 1 == all.size(), "{} sums of {} nodes", additions_.size(),
                all.size());
}

Group::Pending ExactReduction::send(int round, const at::Tensor& sum, const at::Tensor& pieces,
                                    device::Queue& after) {
  const std::vector<int>& places = place_.at(static_cast<size_t>(round));
  TRIREME_CHECK(sum.defined() == (static_cast<size_t>(round) < nodes_.size()),
                "round {} of a rank with {} nodes", round, nodes_.size());
  TRIREME_CHECK(pieces.dim() == 1 && pieces.numel() == pieces_elements(),
                "{} elements for pieces of {}", pieces.numel(), pieces_elements());
  std::vector<int64_t> out_counts(places.size());
  std::vector<int64_t> in_counts(places.size(), 0);
  int64_t first = -1;
  int64_t count = 0;
  for (size_t rank = 0; rank < places.size(); ++rank) {
    if (places[rank] < 0) continue;
    if (first < 0) first = places[rank];
    out_counts[rank] = slice_elements_;
    ++count;
  }
  if (sum.defined()) {
    for (size_t rank = 0; rank < places.size(); ++rank)
      in_counts[rank] = bounds_[rank + 1] - bounds_[rank];
  }
  const at::Tensor in = sum.defined() ? sum.view({-1}) : pieces.narrow(0, 0, 0);
  return group_.all_to_all(pieces.narrow(0, first * slice_elements_, count * slice_elements_),
                           out_counts, in, in_counts, after);
}

void ExactReduction::combine(const at::Tensor& pieces, const at::Tensor& slice) const {
  TRIREME_CHECK(slice.numel() == slice_elements_ && slice.scalar_type() == pieces.scalar_type(),
                "a slice of {} elements for {}", slice.numel(), slice_elements_);
  if (slice_elements_ == 0) return;
  const auto piece = [&](int node) {
    const int64_t at = piece_of_node_[static_cast<size_t>(node)];
    return pieces.narrow(0, at * slice_elements_, slice_elements_);
  };
  at::Tensor out = slice.view({-1});
  if (additions_.empty()) out.copy_(piece(0));
  for (const cluster::LaneAddition& addition : additions_) {
    at::Tensor left = piece(addition.left);
    const bool last = &addition == &additions_.back();
    at::add_out(last ? out : left, left, piece(addition.right));
  }
}

}  // namespace trireme::comm
