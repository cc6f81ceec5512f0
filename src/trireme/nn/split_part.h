// A layer's attention or MLP on one of several tensor parallel ranks, with sequence parallelism (Megatron, arXiv 1909.08053 and
// 2205.05198).
//
// Between parts a rank has n of the micro-batch's N tokens (model::TensorShare). In a part's products it has all tokens, and of
// the part some heads, or some columns of the MLP. So the part's work is cut in three, each way, at what ranks exchange:
//   forward   normalize [n, d] | all ranks' rows | multiply: a partial sum [N, d] | its own rows of all sums | finish [n, d]
//   backward  begin_backward   | all ranks' rows | backward_input [N, d]          | its own rows of all      | finish_backward
// Of an attention whose sequences are shared as well, multiply and backward_input are cut again, at the exchanges of keys
// (context_graph.h). Nothing here talks to other ranks: what came from them is an argument.
//
// Held between forward and backward beside what the products keep (grouped_attention_part.h, mlp_part.h): of n tokens the norms'
// statistics, and what the norm after the part reads. The gathered input is kept, unless the mode leaves something to be made
// again: then it is given up, and gathered again before the backward.
#pragma once

#include <memory>

#include "trireme/nn/linear.h"
#include "trireme/nn/norm.h"
#include "trireme/nn/part.h"

namespace trireme::nn {

/// Ownership: borrows the store and the products. Thread-safety: one thread at a time.
class SplitPart {
 public:
  /// `products`: the part of PartScope::kProducts.
  SplitPart(const ParameterStore& store, Part& products);
  bool has_norm_before() const { return norms_.before.has_value(); }
  bool has_norm_after() const { return norms_.after.has_value(); }
  /// Whether the part's parameter at this place is the norm's before, or after.
  bool is_before(size_t place) const {
    return norms_.before && static_cast<int>(place) < norms_.before->num_parameters();
  }
  bool is_after(size_t place) const {
    return norms_.after && static_cast<int>(place) >= norms_.after_place;
  }
  Part& products() const { return products_; }

 private:
  friend class SplitGraph;
  Part& products_;
  PartNorms norms_;
  at::Tensor bias_;  ///< [d], of the last product; or undefined
};

/// One micro-batch's. Calls in the order of the picture above; without a backward the first three. Sinks have an entry for each of
/// the part's parameters; a call adds to the entries that it names. Thread-safety: the step thread only.
class SplitGraph {
 public:
  /// `batch` outlives it.
  SplitGraph(const SplitPart& part, const BatchTensors& batch, bool with_backward, SaveMode mode);

  /// Of a part with a norm before it. hidden [1, n, d] -> a new [n, d]; again, with the same bits, whenever it is called.
  at::Tensor normalize(const at::Tensor& hidden);
  /// gathered [N, d], normed -> a new [N, d].
  at::Tensor multiply(const at::Tensor& gathered);
  /// Of an attention whose keys other ranks have too, in place of multiply(), as far as its keys; context() goes on from there, to
  /// a new [1, N, d]; on the way back too, before backward_input().
  void begin_multiply(const at::Tensor& gathered);
  ContextGraph& context() const;
  /// pieces [ranks, n, d]: of each rank's partial sum the rows of this one. -> a new [1, n, d].
  at::Tensor finish(const at::Tensor& hidden, const at::Tensor& pieces);

  /// Of a mode that gave the gathered input up: it is back.
  void give_input(const at::Tensor& gathered);
  /// SaveMode::kInputOnly, after give_input(); with a context() as far as its keys.
  void recompute();
  /// Of a part with a norm after it, whose weights' gradients it adds. grad_output [1, n, d] -> a new [n, d].
  at::Tensor begin_backward(const at::Tensor& grad_output, GradientSink& sink);
  /// gathered [N, d]: what begin_backward() returned, or the output's gradient -> a new [N, d]. Keeps `gathered`.
  at::Tensor backward_input(const at::Tensor& gathered);
  /// -> a new [1, n, d]: the gradient of `hidden`. Adds the gradients of the weights of the norm before.
  at::Tensor finish_backward(const at::Tensor& hidden, const at::Tensor& grad_output,
                             const at::Tensor& pieces, GradientSink& sink);
  /// All other parameters' gradients; before or after finish_backward(). Frees what is left.
  void backward_weight(GradientSink& sink);

 private:
  const SplitPart& part_;
  const BatchTensors& batch_;
  const bool with_backward_;
  const SaveMode mode_;
  NormStatistics statistics_;
  at::Tensor projected_;  ///< [n, d], what the norm after the part reads
  NormStatistics after_statistics_;
  std::unique_ptr<PartGraph> products_;
};

}  // namespace trireme::nn
