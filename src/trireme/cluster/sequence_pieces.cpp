#include "trireme/cluster/sequence_pieces.h"

#include "trireme/base/error.h"

namespace trireme::cluster {

std::vector<PlaceRange> zigzag_pieces(int64_t length, int64_t ranks, int64_t index) {
  TRIREME_CHECK(ranks >= 1 && index >= 0 && index < ranks, "rank {} of {}", index, ranks);
  TRIREME_CHECK(length % (2 * ranks) == 0, "{} places in {} pieces", length, 2 * ranks);
  const int64_t piece = length / (2 * ranks);
  const int64_t back = 2 * ranks - 1 - index;
  return {{index * piece, (index + 1) * piece}, {back * piece, (back + 1) * piece}};
}

}  // namespace trireme::cluster
