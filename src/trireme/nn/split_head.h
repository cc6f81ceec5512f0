// The head and its loss on one of several tensor parallel ranks, each of which has the logits of some tokens of the vocabulary
// (Megatron, arXiv 1909.08053). A chunk of rows at a time, and no rank has all logits of a row:
//   normalize [n, d] | all ranks' rows | chunk by chunk: measure | all ranks' statistics | spread | its own rows of all sums | finish
// Nothing here talks to other ranks.
#pragma once

#include "trireme/nn/norm.h"
#include "trireme/nn/parameter_store.h"
#include "trireme/nn/part.h"

namespace trireme::nn {

/// Ownership: borrows the store. Thread-safety: const calls from one thread at a time.
class SplitHead {
 public:
  /// Of a spec that is cut, the head at `part`.
  SplitHead(const ParameterStore& store, int part);
  int64_t vocabulary() const { return weight_.size(0); }  ///< tokens of this rank's slice
  /// As HeadPart's: indices into ModelSpec::parameters.
  const std::vector<int>& gradient_parameters() const { return parameters_; }

  /// hidden [1, n, d] -> a new [n, d].
  at::Tensor normalize(const at::Tensor& hidden, bool keep_statistics,
                       NormStatistics& statistics) const;

  /// Some rows of logits over this rank's slice, float32 [R, V / ranks], and of each row the largest one, the sum of exponentials
  /// above it, and the target's logit or 0, float32 [3, R].
  struct Rows {
    at::Tensor logits;  ///< exponentials, where there is no softcap; what spread() reads
    at::Tensor statistics;
  };
  /// normed [R, d], targets [R] int64.
  Rows measure(const at::Tensor& normed, const at::Tensor& targets) const;
  /// Each row's loss, float64 [R], 0 where ignored; from all ranks' statistics [ranks, 3, R], in the order of the ranks: the same bits
  /// on each of them.
  at::Tensor losses(const at::Tensor& statistics, const at::Tensor& targets) const;
  /// From the logits, which become their own gradient: d_normed [R, d], this rank's part of a sum, and the gradient of its weights
  /// in the sink.
  void spread(at::Tensor logits, const at::Tensor& statistics, const at::Tensor& normed,
              const at::Tensor& targets, double gradient_scale, at::Tensor d_normed,
              GradientSink& sink) const;

  /// pieces [ranks, n, d] of d_normed -> a new [1, n, d]: the gradient of `hidden`. Adds the norm's.
  at::Tensor finish(const at::Tensor& hidden, const NormStatistics& statistics,
                    const at::Tensor& pieces, GradientSink& sink) const;

 private:
  /// Of each target its place in this rank's slice, or 0, and 1 where it is there and counts, else 0.
  struct Places {
    at::Tensor ids;   ///< int64 [R, 1]
    at::Tensor mine;  ///< float32 [R, 1]
  };
  Places places_of(const at::Tensor& targets) const;

  std::vector<int> parameters_;
  Norm norm_;
  at::Tensor weight_;  ///< [V / ranks, d]
  int64_t first_ = 0;  ///< token of the vocabulary
  int64_t place_ = 0;  ///< among the ranks
  double softcap_ = 0.0;
  int sink_weight_;
};

/// sum + the losses of some rows, one after the other. Waits for them.
double add_losses(double sum, const at::Tensor& losses);

}  // namespace trireme::nn
