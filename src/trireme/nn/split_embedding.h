// The embedding on one of several tensor parallel ranks: each has some rows of the token table, and of the other tokens zeros to
// add. Learned positions are whole on every rank, and their gradients, of all tokens, the same on each.
#pragma once

#include "trireme/nn/parameter_store.h"
#include "trireme/nn/part.h"

namespace trireme::nn {

/// Ownership: borrows the store. Thread-safety: one thread at a time.
class SplitEmbedding {
 public:
  /// Of the part `part` of a spec that is cut.
  SplitEmbedding(const ParameterStore& store, int part);

  /// A new [N, d]: this rank's rows, zeros for others' tokens. One rank alone adds to a token, so the sum is exact.
  at::Tensor look_up(const BatchTensors& batch) const;
  /// pieces [ranks, n, d] -> a new [1, n, d], with positions and scale.
  at::Tensor finish(const BatchTensors& batch, const at::Tensor& pieces) const;
  /// `gathered` [N, d]: the output's gradient of all tokens; is changed.
  void backward_weight(at::Tensor gathered, const BatchTensors& batch, GradientSink& sink) const;

 private:
  /// Of all tokens: the row of this rank's table, or 0, and whether it is another's.
  struct Rows {
    at::Tensor ids;
    at::Tensor others;
  };
  Rows rows_of(const BatchTensors& batch) const;

  model::TensorShare share_;
  int64_t first_ = 0;     ///< row of the whole table
  at::Tensor tokens_;     ///< [V / ranks, d]
  at::Tensor positions_;  ///< [P, d] or undefined
  double scale_ = 1.0;
};

}  // namespace trireme::nn
