// Attention whose keys come one rank's after another's (Liu et al. 2023), over zigzag pieces: partial results of a query meet by
// their sums of exponentials, in float32.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "trireme/kernels/ops.h"
#include "trireme/nn/part.h"

namespace trireme::nn {

/// The queries of one rank and what they have met so far. Keys are as ContextGraph packs them, [rows, places, 2, kv heads, d].
/// `options`: of the part, without segments; sinks count once. Ownership: borrows the batch. Thread-safety: the step thread.
class RingAttention {
 public:
  RingAttention(const BatchTensors& batch, bool cut, kernels::AttentionOptions options)
      : batch_(batch), cut_(cut), options_(std::move(options)) {}

  struct Sums {
    at::Tensor out;        ///< float32 [rows, places, heads, d]
    at::Tensor logsumexp;  ///< float32 [rows, heads, places]
  };
  Sums begin(const at::Tensor& q) const;
  /// The keys of a rank, its own first.
  void attend(const at::Tensor& q, const at::Tensor& keys, int64_t rank, const Sums& sums) const;
  /// Adds gradients, float32 all: dq [rows, places, heads, d], d_keys as the keys. `out` and `logsumexp`: over all keys. d_sinks
  /// [heads] or undefined.
  void backward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& keys, int64_t rank,
                const at::Tensor& out, const at::Tensor& logsumexp, const at::Tensor& dq,
                const at::Tensor& d_keys, const at::Tensor& d_sinks) const;

 private:
  template <class Body>
  void each_tile(int64_t rank, Body&& body) const;

  const BatchTensors& batch_;
  bool cut_;
  kernels::AttentionOptions options_;
};

}  // namespace trireme::nn
