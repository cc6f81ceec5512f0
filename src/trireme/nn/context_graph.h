// The work of an attention over sequences that ranks share, cut where keys and values, or their gradients, are exchanged. Who
// exchanges them is the executor's business.
#pragma once

#include <ATen/core/Tensor.h>

namespace trireme::nn {

/// Beside the PartGraph that it belongs to (PartGraph::context()). Tensors that ranks exchange are contiguous, of the compute
/// dtype: of every place its keys, rotated, then its values; [rows, places, 2, kv heads, head_dim]. Thread-safety: the step thread
/// only. Order of calls, once the part's forward has begun: pack_keys() attend() [recompute() pack_keys() attend_again()]
/// pack_keys() backward_attention() take_key_gradients(), then PartGraph's backward_input() and backward_weight().
class ContextGraph {
 public:
  virtual ~ContextGraph() = default;
  /// Elements of what this rank packs.
  virtual int64_t packed_numel() const = 0;
  /// Writes this rank's, which the others read, to a tensor of so many elements.
  virtual void pack_keys(const at::Tensor& keys) const = 0;
  /// The rest of the forward. `all`: what every rank has packed, one after the other. Returns the part's output.
  virtual at::Tensor attend(const at::Tensor& all) = 0;
  /// After PartGraph::recompute(), which goes as far as the keys: the rest of what the backward reads.
  virtual void attend_again(const at::Tensor& all) = 0;
  /// As far as the gradients of all keys and values that this rank's queries may see, packed by the rank that has them: of each,
  /// those of its pieces that cluster::sees_second_piece() says, one rank after the other.
  virtual at::Tensor backward_attention(const at::Tensor& grad_output, const at::Tensor& all) = 0;
  /// What all ranks have made of this rank's, one rank after the other; added in their order, in float32.
  virtual void take_key_gradients(const at::Tensor& received) = 0;

  // In a ring keys come from one rank after the other, the own ones first. In place of attend() and attend_again(): begin_ring(),
  // attend_to() for every rank, finish_ring() or finish_ring_again(). In place of backward_attention() and take_key_gradients():
  // begin_ring_backward(), backward_to() for every rank and add_key_gradients() as they come, finish_ring_backward().
  virtual void begin_ring() = 0;
  virtual void attend_to(const at::Tensor& keys, int64_t rank) = 0;
  virtual at::Tensor finish_ring() = 0;
  virtual void finish_ring_again() = 0;
  virtual void begin_ring_backward(const at::Tensor& grad_output) = 0;
  /// Gradients of those of the rank's keys that a query here may see, packed for it; undefined of the own ones.
  virtual at::Tensor backward_to(const at::Tensor& keys, int64_t rank) = 0;
  virtual void add_key_gradients(const at::Tensor& received, int64_t rank) = 0;
  virtual void finish_ring_backward() = 0;
};

}  // namespace trireme::nn
