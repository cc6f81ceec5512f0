#include "trireme/data/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "trireme/base/error.h"
#include "trireme/base/hash.h"

namespace trireme::data {

namespace {

constexpr int64_t kMaxPeriod = int64_t{1} << 20;

/// Integer parts of the period for each weight: exact if the weights are multiples of a small
/// decimal unit, else rounded to kMaxPeriod parts, each at least one.
std::vector<int64_t> whole_parts(std::span<const double> weights) {
  std::vector<int64_t> counts(weights.size());
  for (const double unit : {1.0, 10.0, 100.0, 1000.0, 10000.0, 100000.0}) {
    bool exact = true;
    int64_t total = 0;
    for (size_t d = 0; d < weights.size() && exact; ++d) {
      const double scaled = weights[d] * unit;
      exact = scaled < static_cast<double>(kMaxPeriod) * 1024 &&
              std::abs(scaled - std::round(scaled)) < 1e-9 * std::max(1.0, scaled) &&
              std::round(scaled) >= 1;
      counts[d] = exact ? static_cast<int64_t>(std::round(scaled)) : 0;
      total += counts[d];
    }
    if (!exact) continue;
    int64_t divisor = 0;
    for (const int64_t count : counts) divisor = std::gcd(divisor, count);
    if (total / divisor > kMaxPeriod) continue;
    for (int64_t& count : counts) count /= divisor;
    return counts;
  }
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  for (size_t d = 0; d < weights.size(); ++d) {
    counts[d] = std::max<int64_t>(
        1, static_cast<int64_t>(std::round(weights[d] / sum * static_cast<double>(kMaxPeriod))));
  }
  return counts;
}

}  // namespace

Permutation::Permutation(uint64_t size, uint64_t seed, uint64_t epoch) : size_(size) {
  TRIREME_CHECK(size > 0, "a permutation of nothing");
  half_bits_ = std::max(1, (static_cast<int>(std::bit_width(size - 1)) + 1) / 2);
  half_mask_ = (uint64_t{1} << half_bits_) - 1;
  for (int round = 0; round < kRounds; ++round) {
    keys_[round] = mix(seed, epoch, static_cast<uint64_t>(round));
  }
}

uint64_t Permutation::operator()(uint64_t index) const {
  TRIREME_CHECK(index < size_, "index {} of {}", index, size_);
  // The network permutes 0 .. 4^half_bits - 1, less than four times `size`: the walk is short, and
  // it ends because a cycle that starts inside 0 .. size - 1 comes back there.
  uint64_t value = index;
  do {
    uint64_t left = value >> half_bits_;
    uint64_t right = value & half_mask_;
    for (const uint64_t key : keys_) {
      const uint64_t next = left ^ (mix(key, right) & half_mask_);
      left = right;
      right = next;
    }
    value = (left << half_bits_) | right;
  } while (value >= size_);
  return value;
}

Blend::Blend(std::span<const double> weights) {
  TRIREME_CHECK(!weights.empty(), "a blend of nothing");
  for (const double weight : weights) {
    TRIREME_USER_CHECK(std::isfinite(weight) && weight > 0, kConfig,
                       "give every entry a positive weight", "data weight {} is not positive",
                       weight);
  }
  counts_ = whole_parts(weights);
  period_ = std::accumulate(counts_.begin(), counts_.end(), int64_t{0});
  for (const int64_t count : counts_) {
    weights_.push_back(static_cast<double>(count) / static_cast<double>(period_));
  }
  // Tijdeman's rule in whole numbers. After n picks data set d is owed lag = count * n - period *
  // used (in units of 1 / period samples). Among those owed at least 1 / (2D - 2) of a sample, the
  // one whose turn must come soonest is used.
  const auto num = static_cast<int64_t>(counts_.size());
  const int64_t scale = std::max<int64_t>(1, 2 * num - 2);
  std::vector<int64_t> used(counts_.size(), 0);
  datasets_.reserve(static_cast<size_t>(period_));
  ranks_.reserve(static_cast<size_t>(period_));
  for (int64_t n = 1; n <= period_; ++n) {
    size_t best = counts_.size();
    double best_deadline = 0;
    for (size_t d = 0; d < counts_.size(); ++d) {
      const int64_t lag = counts_[d] * n - period_ * used[d];
      if (scale * lag < period_ && num > 1) continue;
      const double deadline = static_cast<double>((scale - 1) * period_ - scale * lag) /
                              static_cast<double>(counts_[d]);
      if (best == counts_.size() || deadline < best_deadline) {
        best = d;
        best_deadline = deadline;
      }
    }
    TRIREME_CHECK(best < counts_.size(), "no data set is owed a sample at {}", n);
    datasets_.push_back(static_cast<int32_t>(best));
    ranks_.push_back(static_cast<int32_t>(used[best]++));
  }
}

Blend::Pick Blend::operator()(int64_t sample) const {
  TRIREME_CHECK(sample >= 0, "sample {}", sample);
  const int64_t period = sample / period_;
  const auto slot = static_cast<size_t>(sample % period_);
  const int32_t dataset = datasets_[slot];
  return {dataset, period * counts_[static_cast<size_t>(dataset)] + ranks_[slot]};
}

}  // namespace trireme::data
