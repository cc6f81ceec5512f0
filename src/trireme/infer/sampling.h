// How the next token is chosen from a row of logits. Pure: no tensors, no state but what is passed.
//
// Order of the steps, as in Hugging Face transformers: repetition penalty (Keskar et al. 2019,
// arXiv:1909.05858), temperature, top-k, top-p (Holtzman et al. 2019, arXiv:1904.09751), min-p
// (Nguyen et al. 2024, arXiv:2407.01082).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace trireme::infer {

struct SamplingOptions {
  double temperature = 1.0;         ///< 0 means greedy
  int64_t top_k = 0;                ///< 0: off
  double top_p = 1.0;               ///< 1: off
  double min_p = 0.0;               ///< 0: off
  double repetition_penalty = 1.0;  ///< 1: off
  uint64_t seed = 1234;
  bool greedy() const { return temperature == 0.0 || top_k == 1; }
};

/// Throws Error{kConfig} that names the first option out of range.
void check_sampling_options(const SamplingOptions& options);

/// Lowers the logits of tokens that already occurred: divides positive ones, multiplies negative
/// ones.
void apply_repetition_penalty(std::span<float> logits, std::span<const int32_t> seen,
                              double penalty);

/// The candidates left after temperature, top-k, top-p and min-p with their probabilities (summing
/// to 1), in order of falling probability, ties by smaller id. At least one.
struct Candidate {
  int32_t id;
  double probability;
};
std::vector<Candidate> filter_candidates(std::span<const float> logits,
                                         const SamplingOptions& options);

/// The id with the largest logit; of equal ones the smallest.
int32_t arg_max(std::span<const float> logits);

/// Draws one id. The draw depends only on (options.seed, sequence, position): neither on what else
/// is generated beside it nor on timing. `seen` are the ids of the prompt and of the text so far.
int32_t sample(std::span<const float> logits, std::span<const int32_t> seen,
               const SamplingOptions& options, uint64_t sequence, uint64_t position);

}  // namespace trireme::infer
