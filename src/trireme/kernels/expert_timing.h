// Times the grouped products of experts beside one dense product of the same operations, for `trireme bench experts`.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <string>
#include <vector>

namespace trireme::kernels {

/// A layer of experts. `rows` are those of all experts: tokens times experts a token.
struct TimedExperts {
  int64_t rows = 4096;
  int64_t experts = 8;
  int64_t hidden = 512;
  int64_t expert_hidden = 1024;
  bool skewed =
      false;  ///< expert e takes a share in proportion to 1 / (e + 1) (Zipf), else all take the same
  c10::ScalarType dtype = c10::kFloat;
};

/// One product, in rounds: the dense and the grouped one right after the other.
struct ExpertTiming {
  std::string name;             ///< "gate_up", "gate_up.dx", "gate_up.dw"
  std::vector<double> grouped;  ///< GFLOP/s of each round
  std::vector<double> dense;    ///< GFLOP/s of one product of all rows with one expert's weight
};

/// Rows of each expert; they add up to layer.rows.
std::vector<int64_t> rows_of_experts(const TimedExperts& layer);

/// `rounds` rounds of about `budget_s` seconds each. Blocks; call from one thread.
std::vector<ExpertTiming> time_experts(const TimedExperts& layer, int rounds, double budget_s);

}  // namespace trireme::kernels
