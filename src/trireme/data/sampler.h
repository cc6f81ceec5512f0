// The order of samples: pure functions of (seed, epoch, index), evaluable at any index in O(1).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace trireme::data {

/// A pseudo-random bijection of 0 .. size - 1, evaluated at a point without a table: a balanced
/// Feistel network over the next even power of two, walked until it falls inside (Black and
/// Rogaway, 2002). Thread-safety: immutable.
class Permutation {
 public:
  Permutation(uint64_t size, uint64_t seed, uint64_t epoch);
  uint64_t operator()(uint64_t index) const;  ///< index < size
  uint64_t size() const { return size_; }

 private:
  static constexpr int kRounds = 6;
  uint64_t size_;
  int half_bits_;
  uint64_t half_mask_;
  uint64_t keys_[kRounds];
};

/// Which data set each global sample comes from. At every prefix of n samples, data set d has been
/// used w_d * n times, off by less than one (Tijdeman, "The chairman assignment problem", 1980).
/// The weights are taken as fractions of a period of at most 2^20 samples (exact for weights of a
/// few decimals); weights() gives the fractions in force. Thread-safety: immutable. Memory: 8 bytes
/// a sample of the period.
class Blend {
 public:
  struct Pick {
    int32_t dataset;
    int64_t index;  ///< how many earlier samples came from the same data set
  };
  /// Positive weights, not necessarily summing to one; Error{kConfig} otherwise.
  explicit Blend(std::span<const double> weights);
  Pick operator()(int64_t sample) const;
  const std::vector<double>& weights() const { return weights_; }
  int64_t period() const { return period_; }

 private:
  int64_t period_ = 1;
  std::vector<int64_t> counts_;
  std::vector<double> weights_;
  std::vector<int32_t> datasets_;
  std::vector<int32_t> ranks_;
};

}  // namespace trireme::data
