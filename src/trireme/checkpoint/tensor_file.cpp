#include "trireme/checkpoint/tensor_file.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <cstring>

#include "trireme/base/hash.h"
#include "trireme/checkpoint/tensor_stream.h"

namespace trireme::checkpoint {

namespace fs = std::filesystem;

namespace {

constexpr size_t kChunkBytes = size_t{4} << 20;  // hashed while it is in the cache, then written

std::span<const std::byte> host_bytes(const at::Tensor& tensor) {
  return {static_cast<const std::byte*>(tensor.const_data_ptr()),
          static_cast<size_t>(tensor.nbytes())};
}

std::string human_bytes(uint64_t bytes) {
  return bytes < 10'000'000 ? fmt::format("{:.1f} KB", static_cast<double>(bytes) / 1e3)
                            : fmt::format("{:.1f} MB", static_cast<double>(bytes) / 1e6);
}

}  // namespace

at::ScalarType scalar_type(Dtype dtype) {
  switch (dtype) {
    case Dtype::kBool:
      return at::kBool;
    case Dtype::kU8:
      return at::kByte;
    case Dtype::kI8:
      return at::kChar;
    case Dtype::kF8E4m3:
      return at::kFloat8_e4m3fn;
    case Dtype::kI16:
      return at::kShort;
    case Dtype::kF16:
      return at::kHalf;
    case Dtype::kBf16:
      return at::kBFloat16;
    case Dtype::kI32:
      return at::kInt;
    case Dtype::kF32:
      return at::kFloat;
    case Dtype::kF64:
      return at::kDouble;
    case Dtype::kI64:
      return at::kLong;
  }
  TRIREME_CHECK(false, "unknown dtype {}", static_cast<int>(dtype));
}

Dtype dtype_of(at::ScalarType type) {
  switch (type) {
    case at::kBool:
      return Dtype::kBool;
    case at::kByte:
      return Dtype::kU8;
    case at::kChar:
      return Dtype::kI8;
    case at::kFloat8_e4m3fn:
      return Dtype::kF8E4m3;
    case at::kShort:
      return Dtype::kI16;
    case at::kHalf:
      return Dtype::kF16;
    case at::kBFloat16:
      return Dtype::kBf16;
    case at::kInt:
      return Dtype::kI32;
    case at::kFloat:
      return Dtype::kF32;
    case at::kDouble:
      return Dtype::kF64;
    case at::kLong:
      return Dtype::kI64;
    default:
      TRIREME_CHECK(false, "tensors of type {} cannot be saved", c10::toString(type));
  }
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i)
    text += fmt::format("{}{}", i == 0 ? "" : ", ", shape[i]);
  return text + "]";
}

std::string tensor_hash(const at::Tensor& tensor) {
  const at::Tensor host = tensor.detach().cpu().contiguous();
  return hash_text(xxh3(host_bytes(host)));
}

TensorFile::TensorFile(const fs::path& path)
    : path_(path),
      map_(std::make_shared<MappedFile>(path)),
      header_(parse_safetensors_header(map_->bytes(), map_->bytes().size(), path.string())) {}

std::span<const std::byte> TensorFile::bytes_of(const TensorInfo& info) const {
  return map_->bytes().subspan(header_.data_start + info.begin, info.bytes());
}

at::Tensor TensorFile::tensor(const TensorInfo& info) const {
  const std::span<const std::byte> bytes = bytes_of(info);
  const auto options = at::TensorOptions().dtype(scalar_type(info.dtype));
  if (reinterpret_cast<uintptr_t>(bytes.data()) % static_cast<uintptr_t>(dtype_size(info.dtype)) !=
      0) {
    const at::Tensor copy = at::empty(info.shape, options);
    std::memcpy(copy.mutable_data_ptr(), bytes.data(), bytes.size());
    return copy;
  }
  // The map is read-only memory; a write through the tensor would fault, so callers copy before
  // they write.
  void* data = const_cast<std::byte*>(bytes.data());
  return at::from_blob(data, info.shape, [map = map_](void*) { (void)map; }, options);
}

WrittenFile write_tensor_file(Storage& storage, const fs::path& folder, const std::string& name,
                              const std::vector<const TensorToWrite*>& tensors,
                              const std::map<std::string, std::string>& metadata) {
  std::vector<TensorInfo> infos;
  std::map<std::string, const TensorToWrite*> by_name;
  for (const TensorToWrite* tensor : tensors) {
    infos.push_back({tensor->name, tensor->dtype, tensor->shape, 0, 0});
    TRIREME_CHECK(by_name.emplace(tensor->name, tensor).second, "two tensors are named '{}'",
                  tensor->name);
  }
  const std::string head = make_safetensors_header(infos, metadata);
  const auto file = storage.create(folder / name);
  Hasher file_hash;
  const auto put = [&](std::span<const std::byte> bytes, Hasher* tensor_hash) {
    while (!bytes.empty()) {
      const auto chunk = bytes.first(std::min(bytes.size(), kChunkBytes));
      file_hash.update(chunk);
      if (tensor_hash) tensor_hash->update(chunk);
      file->write(chunk);
      bytes = bytes.subspan(chunk.size());
    }
  };
  put(std::as_bytes(std::span(head)), nullptr);

  WrittenFile written;
  for (const TensorInfo& info : infos) {
    Hasher hash;
    stream_tensor(*by_name.at(info.name),
                  [&](std::span<const std::byte> bytes) { put(bytes, &hash); });
    written.tensors.push_back({info, name, hash_text(hash.digest())});
  }
  file->sync_and_close();
  written.file = {name, head.size() + (infos.empty() ? 0 : infos.back().end),
                  hash_text(file_hash.digest())};
  return written;
}

std::vector<std::vector<const TensorToWrite*>> cut_into_shards(
    const std::vector<const TensorToWrite*>& tensors, int64_t shard_bytes) {
  std::vector<std::vector<const TensorToWrite*>> shards;
  uint64_t filled = 0;
  for (const TensorToWrite* tensor : tensors) {
    const uint64_t bytes = byte_size(*tensor);
    if (shards.empty() || filled + bytes > static_cast<uint64_t>(shard_bytes)) {
      shards.emplace_back();
      filled = 0;
    }
    shards.back().push_back(tensor);
    filled += bytes;
  }
  return shards;
}

std::string shard_name(const std::string& stem, size_t index, size_t count) {
  return count == 1 ? stem + ".safetensors"
                    : fmt::format("{}-{:05}-of-{:05}.safetensors", stem, index + 1, count);
}

uint64_t byte_size(const TensorToWrite& tensor) {
  uint64_t bytes = static_cast<uint64_t>(dtype_size(tensor.dtype));
  for (const int64_t extent : tensor.shape) bytes *= static_cast<uint64_t>(extent);
  return bytes;
}

void check_free_space(Storage& storage, const fs::path& folder, uint64_t bytes) {
  const uint64_t free = storage.free_bytes(folder);
  const uint64_t needed = bytes + bytes / 100 + 65'536;  // headers, manifest, file system blocks
  TRIREME_USER_CHECK(free >= needed, kData, "free some space there, or write to another disk",
                     "the disk of {} has {} free, and {} are needed", folder.string(),
                     human_bytes(free), human_bytes(needed));
}

}  // namespace trireme::checkpoint
