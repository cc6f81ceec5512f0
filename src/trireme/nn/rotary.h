// Cosine and sine tables of rotary position embedding (Su et al. 2021), with Llama-3's frequency
// scaling.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "trireme/model/model_spec.h"

namespace trireme::nn {

/// Inverse frequencies, one per pair of dimensions, as Hugging Face computes them (rope_type
/// default, linear, llama3): float32 arithmetic in the same order.
std::vector<float> rotary_inverse_frequencies(const model::RotarySpec& spec);

/// Tables that grow to the largest position asked for; shared by all layers with the same
/// RotarySpec. Thread-safety: one thread at a time.
class RotaryTable {
 public:
  explicit RotaryTable(const model::RotarySpec& spec);
  /// Makes rows 0 .. positions - 1 exist.
  void reserve(int64_t positions);
  const model::RotarySpec& spec() const { return spec_; }
  const at::Tensor& cos() const { return cos_; }  ///< float32 [positions, dim / 2]
  const at::Tensor& sin() const { return sin_; }

 private:
  model::RotarySpec spec_;
  std::vector<float> inverse_frequencies_;
  at::Tensor cos_;
  at::Tensor sin_;
};

}  // namespace trireme::nn
