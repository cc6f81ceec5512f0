// Where a part's flat elements are cut into one slice per owner. Pure.
#pragma once

#include <cstdint>
#include <vector>

namespace trireme::cluster {

/// `ranks` + 1 ascending boundaries from 0 to `elements`; slice r is [boundary r, boundary r + 1) and may be empty. Inner
/// boundaries are multiples of `block`, and no two slices differ by more than one block (the last may lack part of its own):
/// sums of blocks are of the same blocks however many ranks there are.
std::vector<int64_t> slice_bounds(int64_t elements, int64_t ranks, int64_t block);

/// As above, but cut at some of the given places alone, which ascend from 0 to the number of elements: each boundary is the
/// place nearest to an even cut (the lower of two). For what must stay whole: matrices of Muon.
std::vector<int64_t> slice_bounds_at(const std::vector<int64_t>& places, int64_t ranks);

}  // namespace trireme::cluster
