// Attention of some places of a sequence over keys of all of it, as calls of the kernel that each are plain causal attention.
#pragma once

#include <cstdint>
#include <vector>

#include "trireme/cluster/sequence_pieces.h"
#include "trireme/kernels/ops.h"

namespace trireme::nn {

/// Queries of one stretch of one document, or of rows that are one document each, over the keys that they may see. Both end at
/// the same place of the sequence: what kernels::attention() asks for.
struct AttentionTile {
  int64_t row = 0;  ///< of the batch: rows [row, row + rows)
  int64_t rows = 1;
  int64_t query = 0;    ///< the first one's place among those that are here
  int64_t queries = 0;  ///< one after the other
  int64_t key = 0;      ///< the first one's place in the sequence
  int64_t keys = 0;     ///< queries <= keys, but for ring_tiles()
  int64_t past = -1;    ///< AttentionOptions::past
  bool own = true;      ///< the keys are those of the queries' own piece
};

/// All tiles of `rows` rows whose places `pieces` are here, one after the other, in order: piece by piece, and in it row by row.
/// `segments`: bounds of the documents in the whole sequences; null: every row is one. `window`: keys that a query sees; 0: all.
std::vector<AttentionTile> attention_tiles(int64_t rows,
                                           const std::vector<cluster::PlaceRange>& pieces,
                                           const kernels::Segments* segments, int64_t window);

/// The same over the keys of one rank's pieces, which lie one after the other, as `key` counts them: a query's keys of all ranks
/// together are those of attention_tiles(). A query has one tile that is its own.
std::vector<AttentionTile> ring_tiles(int64_t rows, const std::vector<cluster::PlaceRange>& queries,
                                      const std::vector<cluster::PlaceRange>& keys,
                                      const kernels::Segments* segments, int64_t window);

}  // namespace trireme::nn
