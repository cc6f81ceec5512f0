// Bytes of what a tensor parallel rank holds of a part, phase by phase. Mirrors nn/split_part.cpp, nn/split_embedding.cpp and
// nn/split_head.cpp. Internal to this room.
#pragma once

#include "trireme/plan/memory.h"

namespace trireme::plan {

/// Of a spec that is cut, for one micro-batch. Workspaces are what is held only while the phase runs.
struct SplitBytes {
  int64_t rows = 0;        ///< [n, d]: of the rank's own tokens
  int64_t all = 0;         ///< [N, d]: of all tokens
  int64_t statistics = 0;  ///< of the norm before, from the first phase to the backward's last
  int64_t projected =
      0;  ///< what the norm after keeps, from the forward's last phase to the backward's first
  PartBytes products;  ///< of the phases in the middle
  int64_t finish_workspace = 0;
  int64_t begin_backward_workspace = 0;
  int64_t finish_backward_workspace = 0;
};

/// The layers of a spec without norms around their parts: what is left is what the products are given.
model::ModelSpec products_of(const model::ModelSpec& spec);

/// Of attention or an MLP; `products` is products_of(spec).
SplitBytes split_bytes(const model::ModelSpec& spec, const model::ModelSpec& products,
                       const Strategy& strategy, int part, Recompute mode);
/// Of the embedding: its phases are first and last forward, and backward-weight.
SplitBytes split_embedding_bytes(const model::ModelSpec& spec, const Strategy& strategy);

/// Of the head with its loss; `rows` of logits.
struct SplitLossBytes {
  int64_t logits = 0;
  int64_t statistics = 0;      ///< this rank's
  int64_t all_statistics = 0;  ///< of all ranks
  int64_t norm_statistics = 0;
  int64_t measure_workspace = 0;
  int64_t spread_workspace = 0;
  int64_t finish_workspace = 0;
};
SplitLossBytes split_loss_bytes(const model::ModelSpec& spec, const Strategy& strategy,
                                int64_t rows);

}  // namespace trireme::plan
