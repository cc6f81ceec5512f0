#include "trireme/nn/parameter_store.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <span>

#include "trireme/base/error.h"
#include "trireme/base/hash.h"
#include "trireme/kernels/ops.h"

namespace trireme::nn {
namespace {

/// Philox 4x32-10: a block cipher used as a random stream. Salmon, Moraes, Dror & Shaw, "Parallel
/// random numbers: as easy as 1, 2, 3", 2011.
std::array<uint32_t, 4> philox(uint64_t key, uint64_t counter) {
  std::array<uint32_t, 4> x = {static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32),
                               0, 0};
  uint32_t k0 = static_cast<uint32_t>(key);
  uint32_t k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * x[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57} * x[2];
    x = {static_cast<uint32_t>(p1 >> 32) ^ x[1] ^ k0, static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ x[3] ^ k1, static_cast<uint32_t>(p0)};
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return x;
}

/// Two independent N(0, 1) values: elements 2 * pair and 2 * pair + 1 of a stream (Box & Muller
/// 1958).
std::array<double, 2> normal_pair(uint64_t key, uint64_t pair) {
  const std::array<uint32_t, 4> bits = philox(key, pair);
  const uint64_t first = (static_cast<uint64_t>(bits[1]) << 32) | bits[0];
  const uint64_t second = (static_cast<uint64_t>(bits[3]) << 32) | bits[2];
  const double u =
      (static_cast<double>(first >> 11) + 0.5) * 0x1.0p-53;  // in (0, 1): the logarithm is finite
  const double angle = 2.0 * std::numbers::pi * (static_cast<double>(second >> 11) * 0x1.0p-53);
  const double radius = std::sqrt(-2.0 * std::log(u));
  return {radius * std::cos(angle), radius * std::sin(angle)};
}

uint64_t stream_key(uint64_t seed, const std::string& name) {
  return mix(xxh3(std::as_bytes(std::span(name.data(), name.size()))), seed);
}

/// Elements [first, first + count) of a stream.
template <typename T>
void fill_normal(T* out, int64_t first, int64_t count, uint64_t key, double std) {
  const int64_t last = first + count;
  at::parallel_for(first / 2, (last + 1) / 2, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t pair = begin; pair < end; ++pair) {
      const std::array<double, 2> values = normal_pair(key, static_cast<uint64_t>(pair));
      for (int64_t i = 0; i < 2; ++i) {
        const int64_t element = 2 * pair + i;
        if (element >= first && element < last)
          out[element - first] = static_cast<T>(values[static_cast<size_t>(i)] * std);
      }
    }
  });
}

}  // namespace

double normal_at(uint64_t seed, const std::string& name, uint64_t index) {
  return normal_pair(stream_key(seed, name), index / 2)[index % 2];
}

at::Tensor stretch(const at::Tensor& whole, const model::ParameterSpec& parameter) {
  TRIREME_CHECK(whole.sizes() == at::IntArrayRef(parameter.whole_shape()), "{} has another shape",
                parameter.name);
  if (!parameter.shard) return whole;
  const model::ParameterShard& shard = *parameter.shard;
  return whole.narrow(static_cast<int64_t>(shard.dim), shard.first, parameter.shape[shard.dim]);
}

ParameterStore::ParameterStore(model::ModelSpec spec, at::ScalarType compute_dtype,
                               at::ScalarType master_dtype, at::Device device,
                               const std::vector<model::ElementRange>& masters,
                               const std::vector<char>& parts, const std::vector<char>& gathered)
    : spec_(std::move(spec)),
      compute_dtype_(compute_dtype),
      master_dtype_(master_dtype),
      device_(device) {
  const size_t num_parts = spec_.parts.size();
  parts_ = parts.empty() ? std::vector<char>(num_parts, 1) : parts;
  TRIREME_CHECK(parts_.size() == num_parts, "{} of {} parts", parts_.size(), num_parts);
  gathered_ = gathered.empty() ? std::vector<char>(num_parts, 0) : gathered;
  TRIREME_CHECK(gathered_.size() == num_parts, "{} of {} parts", gathered_.size(), num_parts);
  part_numel_.assign(num_parts, 0);
  part_parameters_.resize(num_parts);
  offsets_.reserve(spec_.parameters.size());
  for (size_t i = 0; i < spec_.parameters.size(); ++i) {
    const model::ParameterSpec& parameter = spec_.parameters[i];
    TRIREME_CHECK(parameter.part >= 0 && parameter.part < static_cast<int>(num_parts),
                  "{} is in part {} of {}", parameter.name, parameter.part, num_parts);
    offsets_.push_back(part_numel_[parameter.part]);
    part_numel_[parameter.part] += parameter.numel();
    part_parameters_[parameter.part].push_back(static_cast<int>(i));
  }
  for (size_t part = 0; part < num_parts; ++part) {
    const int64_t numel = parts_[part] != 0 ? part_numel_[part] : 0;
    master_ranges_.push_back(masters.empty() || numel == 0 ? model::ElementRange{0, numel}
                                                           : masters.at(part));
    const bool comes = is_gathered(static_cast<int>(part));
    TRIREME_CHECK(has_compute_copy() || comes || master_ranges_.back().count() == numel,
                  "part {}: products read masters, which are not all here", part);
    const auto options = at::TensorOptions().device(device_);
    master_.push_back(at::empty({master_ranges_.back().count()}, options.dtype(master_dtype_)));
    compute_.push_back(has_compute_copy() || comes
                           ? at::empty({numel}, options.dtype(compute_dtype_))
                           : master_.back());
    if (comes) drop(static_cast<int>(part));
  }
}

bool ParameterStore::has_room(int part) const {
  return compute_[part].storage().data() != nullptr;
}

// Views of the parts share the storage: its memory comes and goes, and they stay.
void ParameterStore::make_room(int part) {
  TRIREME_CHECK(is_gathered(part), "part {} has its memory all the time", part);
  const c10::Storage& storage = compute_[part].storage();
  if (storage.nbytes() == 0) return;
  TRIREME_CHECK(!has_room(part), "part {} is whole already", part);
  const at::Tensor fresh = at::empty({static_cast<int64_t>(storage.nbytes())},
                                     at::TensorOptions().dtype(at::kByte).device(device_));
  storage.unsafeGetStorageImpl()->set_data_ptr_noswap(
      fresh.storage().unsafeGetStorageImpl()->set_data_ptr(
          c10::DataPtr(nullptr, storage.device())));
}

void ParameterStore::drop(int part) {
  const c10::Storage& storage = compute_[part].storage();
  TRIREME_CHECK(is_gathered(part), "part {} has its memory all the time", part);
  storage.unsafeGetStorageImpl()->set_data_ptr_noswap(c10::DataPtr(nullptr, storage.device()));
}

at::Tensor ParameterStore::master(const std::string& name) const {
  const int index = spec_.parameter_index(name);
  TRIREME_CHECK(index >= 0, "no parameter is called {}", name);
  return master(index);
}

at::Tensor ParameterStore::view(const at::Tensor& flat, int parameter) const {
  const model::ParameterSpec& spec = spec_.parameters[parameter];
  TRIREME_CHECK(flat.numel() == part_numel_[spec.part], "{} elements for part {} of {}",
                flat.numel(), spec.part, part_numel_[spec.part]);
  return flat.narrow(0, offsets_[parameter], spec.numel()).view(spec.shape);
}

at::Tensor ParameterStore::fused_view(const at::Tensor& flat, int first, int count) const {
  const model::ParameterSpec& head = spec_.parameters[first];
  int64_t rows = 0;
  for (int i = first; i < first + count; ++i) {
    const model::ParameterSpec& parameter = spec_.parameters[i];
    TRIREME_CHECK(parameter.part == head.part && parameter.shape.size() == head.shape.size() &&
                      (parameter.shape.size() < 2 || parameter.shape[1] == head.shape[1]),
                  "{} and {} do not form one matrix", head.name, parameter.name);
    rows += parameter.shape[0];
  }
  const int64_t columns = head.shape.size() < 2 ? 1 : head.shape[1];
  const at::Tensor piece = flat.narrow(0, offsets_[first], rows * columns);
  return head.shape.size() < 2 ? piece : piece.view({rows, columns});
}

// Elements of a parameter from `first` on, as many as `values` has; of a stretch those of the whole tensor.
void ParameterStore::fill(int index, uint64_t seed, int64_t first, at::Tensor values) const {
  const model::ParameterSpec& parameter = spec_.parameters[index];
  const int64_t row = parameter.elements_in_a_row();
  switch (parameter.init.kind) {
    case model::InitKind::kOnes:
      values.fill_(1.0);
      break;
    case model::InitKind::kZeros:
      values.fill_(0.0);
      break;
    case model::InitKind::kNormal: {
      const uint64_t key = stream_key(seed, parameter.name);
      // Drawn on the host: the same bits on every device.
      at::Tensor host = values.is_cpu() ? values : at::empty(values.sizes(), master_dtype_);
      for (int64_t at = 0; at < host.numel();) {
        const int64_t element = first + at;
        const int64_t count = std::min(host.numel() - at, row - element % row);
        const int64_t whole = parameter.whole_element(element);
        if (master_dtype_ == at::kDouble) {
          fill_normal(host.data_ptr<double>() + at, whole, count, key, parameter.init.std);
        } else {
          fill_normal(host.data_ptr<float>() + at, whole, count, key, parameter.init.std);
        }
        at += count;
      }
      if (!values.is_cpu()) values.copy_(host);
      break;
    }
  }
}

/// The parameter's elements whose masters are here, as elements of its part.
model::ElementRange ParameterStore::held_of(int parameter) const {
  const model::ElementRange here = master_ranges_[part_of(parameter)];
  const int64_t begin = offsets_[parameter];
  const int64_t first = std::max(begin, here.first);
  const int64_t last = std::min(begin + spec_.parameters[parameter].numel(), here.last);
  return {first, std::max(first, last)};
}

void ParameterStore::initialize(uint64_t seed) {
  for (int i = 0; i < num_parameters(); ++i) {
    const int part = part_of(i);
    if (!has_part(part)) continue;
    if (has_whole_master(part) || is_gathered(part)) {
      const model::ElementRange here = held_of(i);
      if (here.count() > 0)
        fill(i, seed, here.first - offsets_[i],
             master_[part].narrow(0, here.first - master_ranges_[part].first, here.count()));
      continue;
    }
    // One parameter's float32 at a time: the compute copy is of all of it.
    at::Tensor values = at::empty(spec_.parameters[i].shape,
                                  at::TensorOptions().dtype(master_dtype_).device(device_));
    fill(i, seed, 0, values);
    set(i, values);
  }
  refresh_compute();
}

void ParameterStore::set(int parameter, const at::Tensor& values) {
  const int part = part_of(parameter);
  TRIREME_CHECK(has_part(part), "{} is not here", spec_.parameters[parameter].name);
  const int64_t begin = offsets_[parameter];
  const int64_t numel = spec_.parameters[parameter].numel();
  const at::Tensor flat = values.reshape({-1});
  TRIREME_CHECK(flat.numel() == numel, "{} elements for {}", flat.numel(),
                spec_.parameters[parameter].name);
  const model::ElementRange here = held_of(parameter);
  if (here.count() > 0)
    master_[part]
        .narrow(0, here.first - master_ranges_[part].first, here.count())
        .copy_(flat.narrow(0, here.first - begin, here.count()));
  if (has_compute_copy() && !is_gathered(part)) compute_[part].narrow(0, begin, numel).copy_(flat);
}

void ParameterStore::refresh_compute(int part) {
  if (compute_[part].is_same(master_[part]) || (is_gathered(part) && !has_room(part))) return;
  const model::ElementRange here = master_ranges_[part];
  at::Tensor compute = compute_[part].narrow(0, here.first, here.count());
  if (has_compute_copy()) {
    kernels::convert(master_[part], compute);
  } else {
    compute.copy_(master_[part]);
  }
}

void ParameterStore::refresh_compute() {
  for (int part = 0; part < num_parts(); ++part) refresh_compute(part);
}

}  // namespace trireme::nn
