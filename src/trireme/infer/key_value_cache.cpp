#include "trireme/infer/key_value_cache.h"

#include <ATen/ops/empty.h>

#include "trireme/base/error.h"
#include "trireme/nn/attention_part.h"

namespace trireme::infer {

KeyValueCache::KeyValueCache(const model::ModelSpec& spec, int64_t sequences, int64_t capacity,
                             at::ScalarType dtype, at::Device device)
    : capacity_(capacity), lengths_(static_cast<size_t>(sequences), 0) {
  for (int layer = 0; layer < spec.num_main_layers(); ++layer) {
    const nn::CachedShape shape =
        nn::cached_shape(spec.layers[static_cast<size_t>(layer)].attention);
    const auto room = [&](int64_t dim) {
      return at::empty({sequences, capacity, shape.heads, dim},
                       at::TensorOptions().dtype(dtype).device(device));
    };
    keys_.push_back(room(shape.key_dim));
    values_.push_back(room(shape.value_dim));
  }
}

void KeyValueCache::write(int layer, int64_t sequence, const at::Tensor& k, const at::Tensor& v) {
  const int64_t first = length(sequence), count = k.size(1);
  TRIREME_CHECK(first + count <= capacity_, "cache of {} positions is full", capacity_);
  keys_[static_cast<size_t>(layer)][sequence].narrow(0, first, count).copy_(k[0]);
  values_[static_cast<size_t>(layer)][sequence].narrow(0, first, count).copy_(v[0]);
}

void KeyValueCache::advance(int64_t sequence, int64_t positions) {
  lengths_[static_cast<size_t>(sequence)] += positions;
}

at::Tensor KeyValueCache::keys(int layer, int64_t sequence, int64_t extra) const {
  return keys_[static_cast<size_t>(layer)]
      .narrow(0, sequence, 1)
      .narrow(1, 0, length(sequence) + extra);
}

at::Tensor KeyValueCache::values(int layer, int64_t sequence, int64_t extra) const {
  return values_[static_cast<size_t>(layer)]
      .narrow(0, sequence, 1)
      .narrow(1, 0, length(sequence) + extra);
}

int64_t KeyValueCache::bytes(const model::ModelSpec& spec, int64_t sequences, int64_t capacity,
                             int64_t element_bytes) {
  int64_t total = 0;
  for (int layer = 0; layer < spec.num_main_layers(); ++layer) {
    const nn::CachedShape shape =
        nn::cached_shape(spec.layers[static_cast<size_t>(layer)].attention);
    total += sequences * capacity * shape.heads * (shape.key_dim + shape.value_dim) * element_bytes;
  }
  return total;
}

}  // namespace trireme::infer
