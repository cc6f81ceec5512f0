// Which places of a sequence a rank has where ranks share sequences (context parallelism). Pure.
#pragma once

#include <cstdint>
#include <vector>

namespace trireme::cluster {

/// Places [first, last) of a sequence.
struct PlaceRange {
  int64_t first = 0;
  int64_t last = 0;
  int64_t count() const { return last - first; }
  bool operator==(const PlaceRange&) const = default;
};

/// The sequence in 2 `ranks` pieces: rank i has the i-th from the front and the i-th from the back, so that under the causal mask
/// all have as much to do. `ranks` >= 1, and 2 `ranks` divides `length`.
std::vector<PlaceRange> zigzag_pieces(int64_t length, int64_t ranks, int64_t index);

/// Whether rank `reader` has a query that may see keys of the second of rank `owner`'s zigzag pieces. The first one every rank sees.
inline bool sees_second_piece(int64_t reader, int64_t owner) {
  return owner >= reader;
}

}  // namespace trireme::cluster
