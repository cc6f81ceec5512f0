// Keys and values of the positions already seen, per layer and sequence.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "trireme/model/model_spec.h"

namespace trireme::infer {

/// Room for `capacity` positions of `sequences` sequences. Sequences grow independently.
/// Ownership: owns its tensors, per layer [sequences, capacity, heads, key_dim or value_dim] of
/// nn::cached_shape() in the compute dtype (latent attention: one compressed vector a position).
/// Thread-safety: one thread at a time.
class KeyValueCache {
 public:
  KeyValueCache(const model::ModelSpec& spec, int64_t sequences, int64_t capacity,
                at::ScalarType dtype, at::Device device = at::kCPU);

  int64_t capacity() const { return capacity_; }
  int64_t length(int64_t sequence) const { return lengths_[static_cast<size_t>(sequence)]; }

  /// Writes k and v [1, T, heads, key_dim or value_dim] after the positions that the sequence has.
  /// The length grows with advance(), once all layers have written.
  void write(int layer, int64_t sequence, const at::Tensor& k, const at::Tensor& v);
  /// Forgets what is held for a sequence.
  void clear(int64_t sequence) { lengths_[static_cast<size_t>(sequence)] = 0; }
  void advance(int64_t sequence, int64_t positions);

  /// Views [1, length + extra, heads, key_dim or value_dim]; `extra` counts positions written and
  /// not yet advanced over.
  at::Tensor keys(int layer, int64_t sequence, int64_t extra) const;
  at::Tensor values(int layer, int64_t sequence, int64_t extra) const;

  static int64_t bytes(const model::ModelSpec& spec, int64_t sequences, int64_t capacity,
                       int64_t element_bytes);

 private:
  int64_t capacity_;
  std::vector<at::Tensor> keys_;
  std::vector<at::Tensor> values_;
  std::vector<int64_t> lengths_;
};

}  // namespace trireme::infer
