#include "trireme/cluster/slices.h"

#include <algorithm>

#include "trireme/base/error.h"

namespace trireme::cluster {

std::vector<int64_t> slice_bounds(int64_t elements, int64_t ranks, int64_t block) {
  TRIREME_CHECK(elements >= 0 && ranks >= 1 && block >= 1, "{} elements, {} ranks, blocks of {}",
                elements, ranks, block);
  const int64_t blocks = (elements + block - 1) / block;
  std::vector<int64_t> bounds(static_cast<size_t>(ranks) + 1);
  for (int64_t r = 0; r <= ranks; ++r)
    bounds[static_cast<size_t>(r)] = std::min(r * blocks / ranks * block, elements);
  return bounds;
}

std::vector<int64_t> slice_bounds_at(const std::vector<int64_t>& places, int64_t ranks) {
  TRIREME_CHECK(
      ranks >= 1 && !places.empty() && places.front() == 0 && std::ranges::is_sorted(places),
      "{} places for {} ranks do not ascend from 0", places.size(), ranks);
  const int64_t elements = places.back();
  std::vector<int64_t> bounds(static_cast<size_t>(ranks) + 1);
  for (int64_t r = 0; r < ranks; ++r) {
    const int64_t even = r * elements / ranks;
    const auto above = std::ranges::lower_bound(places, even);
    const bool below_is_nearer = above != places.begin() && even - *(above - 1) <= *above - even;
    bounds[static_cast<size_t>(r)] = below_is_nearer ? *(above - 1) : *above;
  }
  bounds.back() = elements;
  return bounds;
}

}  // namespace trireme::cluster
