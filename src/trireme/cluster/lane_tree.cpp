#include "trireme/cluster/lane_tree.h"

#include <bit>

#include "trireme/base/error.h"

namespace trireme::cluster {

LaneRange lane_range(int64_t index, int64_t ranks, int64_t lanes) {
  TRIREME_CHECK(lanes >= 1 && std::has_single_bit(static_cast<uint64_t>(lanes)),
                "{} lanes are not a power of two", lanes);
  TRIREME_CHECK(ranks >= 1 && ranks <= lanes, "{} lanes for {} ranks", lanes, ranks);
  TRIREME_CHECK(index >= 0 && index < ranks, "rank {} of {}", index, ranks);
  return {index * lanes / ranks, (index + 1) * lanes / ranks};
}

int64_t rank_of_lane(int64_t lane, int64_t ranks, int64_t lanes) {
  // The last index with index * lanes / ranks <= lane.
  const int64_t index = ((lane + 1) * ranks - 1) / lanes;
  const LaneRange range = lane_range(index, ranks, lanes);
  TRIREME_CHECK(range.first <= lane && lane < range.last, "lane {} of {}", lane, lanes);
  return index;
}

std::vector<LaneNode> cover(int64_t first, int64_t last) {
  TRIREME_CHECK(first >= 0 && first <= last, "lanes {} to {}", first, last);
  std::vector<LaneNode> nodes;
  while (first < last) {
    int64_t size = 1;
    while (first % (2 * size) == 0 && first + 2 * size <= last) size *= 2;
    nodes.push_back({first, size});
    first += size;
  }
  return nodes;
}

std::vector<LaneNode> cover_of_all(int64_t ranks, int64_t lanes) {
  std::vector<LaneNode> nodes;
  for (int64_t index = 0; index < ranks; ++index) {
    const LaneRange range = lane_range(index, ranks, lanes);
    for (const LaneNode& node : cover(range.first, range.last)) nodes.push_back(node);
  }
  return nodes;
}

std::vector<LaneNode> carries(int64_t first, int64_t lane) {
  std::vector<LaneNode> left_nodes;
  const int64_t finished = lane + 1;
  for (int64_t size = 1; finished % (2 * size) == 0 && finished - 2 * size >= first; size *= 2)
    left_nodes.push_back({finished - 2 * size, size});
  return left_nodes;
}

std::vector<LaneAddition> tree_order(const std::vector<LaneNode>& nodes) {
  struct Partial {
    LaneNode node;
    int index;
  };
  std::vector<Partial> open;
  std::vector<LaneAddition> additions;
  for (size_t i = 0; i < nodes.size(); ++i) {
    TRIREME_CHECK(i == 0 || nodes[i].first >= nodes[i - 1].first + nodes[i - 1].size,
                  "lane {} follows lanes {} to {}", nodes[i].first, nodes[i - 1].first,
                  nodes[i - 1].first + nodes[i - 1].size);
    open.push_back({nodes[i], static_cast<int>(i)});
    while (open.size() >= 2) {
      Partial& left = open[open.size() - 2];
      const Partial& right = open.back();
      const bool siblings = left.node.size == right.node.size &&
                            left.node.first % (2 * left.node.size) == 0 &&
                            right.node.first == left.node.first + left.node.size;
      if (!siblings) break;
      additions.push_back({left.index, right.index});
      left.node.size *= 2;
      open.pop_back();
    }
  }
  return additions;
}

}  // namespace trireme::cluster
