#include "trireme/infer/sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "trireme/base/error.h"
#include "trireme/base/hash.h"

namespace trireme::infer {

void check_sampling_options(const SamplingOptions& options) {
  TRIREME_USER_CHECK(std::isfinite(options.temperature) && options.temperature >= 0.0, kConfig,
                     "give 0 for greedy decoding or a positive number such as 0.8",
                     "temperature = {} is not usable", options.temperature);
  TRIREME_USER_CHECK(options.top_k >= 0, kConfig, "give 0 to switch it off, or a positive number",
                     "top-k = {} is negative", options.top_k);
  TRIREME_USER_CHECK(options.top_p > 0.0 && options.top_p <= 1.0, kConfig,
                     "give a number above 0 and at most 1", "top-p = {} is out of range",
                     options.top_p);
  TRIREME_USER_CHECK(options.min_p >= 0.0 && options.min_p <= 1.0, kConfig,
                     "give a number from 0 to 1", "min-p = {} is out of range", options.min_p);
  TRIREME_USER_CHECK(std::isfinite(options.repetition_penalty) && options.repetition_penalty > 0.0,
                     kConfig, "give 1 to switch it off, or a number such as 1.1",
                     "repetition penalty = {} is not positive", options.repetition_penalty);
}

void apply_repetition_penalty(std::span<float> logits, std::span<const int32_t> seen,
                              double penalty) {
  if (penalty == 1.0) return;
  std::vector<int32_t> ids(seen.begin(), seen.end());
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  for (const int32_t id : ids) {
    if (id < 0 || static_cast<size_t>(id) >= logits.size()) continue;
    float& logit = logits[static_cast<size_t>(id)];
    logit = static_cast<float>(logit > 0 ? logit / penalty : logit * penalty);
  }
}

int32_t arg_max(std::span<const float> logits) {
  TRIREME_CHECK(!logits.empty(), "arg_max of no logits");
  size_t best = 0;
  for (size_t i = 1; i < logits.size(); ++i) {
    if (logits[i] > logits[best]) best = i;
  }
  return static_cast<int32_t>(best);
}

std::vector<Candidate> filter_candidates(std::span<const float> logits,
                                         const SamplingOptions& options) {
  TRIREME_CHECK(!logits.empty(), "no logits to sample from");
  if (options.greedy()) return {{arg_max(logits), 1.0}};

  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto before = [&](int32_t a, int32_t b) {
    const float left = logits[static_cast<size_t>(a)], right = logits[static_cast<size_t>(b)];
    return left != right ? left > right : a < b;
  };
  size_t kept = logits.size();
  if (options.top_k > 0) kept = std::min(kept, static_cast<size_t>(options.top_k));
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(kept), order.end(),
                    before);

  const double top = logits[static_cast<size_t>(order[0])];
  std::vector<Candidate> candidates(kept);
  double total = 0.0;
  for (size_t i = 0; i < kept; ++i) {
    const double weight =
        std::exp((logits[static_cast<size_t>(order[i])] - top) / options.temperature);
    candidates[i] = {order[i], weight};
    total += weight;
  }
  // Top-p keeps the smallest head whose probability reaches top_p; min-p is relative to the
  // largest.
  double cumulative = 0.0;
  size_t last = 0;
  for (; last < kept; ++last) {
    if (last > 0 && cumulative >= options.top_p * total) break;
    if (last > 0 && candidates[last].probability < options.min_p * candidates[0].probability) break;
    cumulative += candidates[last].probability;
  }
  candidates.resize(last);
  for (Candidate& candidate : candidates) candidate.probability /= cumulative;
  return candidates;
}

int32_t sample(std::span<const float> logits, std::span<const int32_t> seen,
               const SamplingOptions& options, uint64_t sequence, uint64_t position) {
  std::vector<float> adjusted(logits.begin(), logits.end());
  apply_repetition_penalty(adjusted, seen, options.repetition_penalty);
  if (options.greedy()) return arg_max(adjusted);
  const std::vector<Candidate> candidates = filter_candidates(adjusted, options);
  const double draw = static_cast<double>(mix(options.seed, sequence, position) >> 11) * 0x1.0p-53;
  double cumulative = 0.0;
  for (const Candidate& candidate : candidates) {
    cumulative += candidate.probability;
    if (draw < cumulative) return candidate.id;
  }
  return candidates.back().id;
}

}  // namespace trireme::infer
