#include "trireme/execute/step_counts.h"

#include <utility>

#include "trireme/data/tokens_ahead.h"

namespace trireme::execute {

std::vector<int64_t> StepCounts::values() const {
  std::vector<int64_t> values = targets;
  values.insert(values.end(), {bytes, tokens});
  return values;
}

StepCounts StepCounts::from_values(std::vector<int64_t> values) {
  StepCounts counts;
  for (int64_t* count : {&counts.tokens, &counts.bytes}) {
    *count = values.back();
    values.pop_back();
  }
  counts.targets = std::move(values);
  return counts;
}

StepCounts count(const std::vector<data::Batch>& batches, size_t modules) {
  StepCounts counts;
  counts.targets.resize(1 + modules);
  for (const data::Batch& batch : batches) {
    counts.targets[0] += batch.num_targets;
    for (size_t depth = 1; depth <= modules; ++depth)
      counts.targets[depth] += data::tokens_ahead(batch, static_cast<int64_t>(depth)).num_targets;
    counts.bytes += batch.num_bytes;
    counts.tokens += batch.rows * batch.seq_len;
  }
  return counts;
}

}  // namespace trireme::execute
