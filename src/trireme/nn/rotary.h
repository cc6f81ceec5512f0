// Cosine and sine tables of rotary position embedding (Su et al. 2021) with the scalings that stretch it to longer
// contexts: linear, Llama-3's, YaRN (Peng et al. 2023) and LongRoPE (Ding et al. 2024).
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "trireme/model/model_spec.h"

namespace trireme::nn {

/// Inverse frequencies, one per pair of dimensions, as Hugging Face computes them: float32 arithmetic in the same order.
/// `long_sequence`: LongRoPE's second set, for sequences past the original context.
std::vector<float> rotary_inverse_frequencies(const model::RotarySpec& spec,
                                              bool long_sequence = false);

/// Tables that grow to the largest position asked for; shared by all layers with the same
/// RotarySpec. Thread-safety: one thread at a time.
class RotaryTable {
 public:
  struct Rows {
    at::Tensor cos;  ///< float32 [positions, dim / 2]
    at::Tensor sin;
  };

  explicit RotaryTable(const model::RotarySpec& spec, at::Device device = at::kCPU)
      : spec_(spec), device_(device) {}
  /// At least rows 0 .. length - 1, for positions of a sequence of `length` tokens: LongRoPE turns all positions of a long
  /// sequence otherwise.
  const Rows& rows(int64_t length);
  /// Turns `heads` [N, heads, at least dim], last dimension contiguous, in place by `positions` (N of int64) of sequences
  /// of `length` tokens; inverse: the backward.
  void turn(at::Tensor heads, const at::Tensor& positions, int64_t length, bool inverse);
  /// The same for `positions` [B, T] whose rows are sequences of their own, as long as their last position says.
  void turn_rows(const at::Tensor& heads, const at::Tensor& positions);
  const model::RotarySpec& spec() const { return spec_; }

 private:
  model::RotarySpec spec_;
  at::Device device_;  ///< of the tables
  Rows usual_;
  Rows long_;  ///< LongRoPE only
  /// On devices, what larger tables have taken the place of: recorded work goes on reading it.
  std::vector<Rows> replaced_;
};

}  // namespace trireme::nn
