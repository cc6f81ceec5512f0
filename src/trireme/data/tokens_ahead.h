// What multi-token prediction reads and predicts: a micro-batch seen from further ahead.
#pragma once

#include <cstdint>
#include <vector>

#include "trireme/data/batch.h"

namespace trireme::data {

/// Arrays are row-major [rows, seq_len], as a batch's.
struct TokensAhead {
  std::vector<int32_t> tokens;
  std::vector<int32_t> targets;
  int64_t num_targets = 0;  ///< targets that count
};

/// At every position the token and the target that `batch` has `ahead` positions later: module k of multi-token
/// prediction reads t_{i+k} and predicts t_{i+k+1}. Only within the document (Batch::segments): where that position lies
/// beyond its end, or the row's, the target is kIgnoredTarget and the token the document's last one in this row, which no
/// counted target depends on.
TokensAhead tokens_ahead(const Batch& batch, int64_t ahead);

}  // namespace trireme::data
