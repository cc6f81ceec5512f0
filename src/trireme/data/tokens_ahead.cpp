#include "trireme/data/tokens_ahead.h"

#include <algorithm>

namespace trireme::data {

TokensAhead tokens_ahead(const Batch& batch, int64_t ahead) {
  TokensAhead result;
  result.tokens.resize(batch.tokens.size());
  result.targets.assign(batch.targets.size(), kIgnoredTarget);
  for (int64_t row = 0; row < batch.rows; ++row) {
    const int64_t start = row * batch.seq_len;
    const std::vector<int32_t>& segments = batch.segments[static_cast<size_t>(row)];
    for (size_t s = 0; s < segments.size(); ++s) {
      const int64_t end = start + (s + 1 < segments.size() ? segments[s + 1] : batch.seq_len);
      for (int64_t i = start + segments[s]; i < end; ++i) {
        const auto at = static_cast<size_t>(i);
        const auto from = static_cast<size_t>(std::min(i + ahead, end - 1));
        result.tokens[at] = batch.tokens[from];
        if (i + ahead >= end) continue;
        result.targets[at] = batch.targets[from];
        result.num_targets += result.targets[at] != kIgnoredTarget ? 1 : 0;
      }
    }
  }
  return result;
}

}  // namespace trireme::data
