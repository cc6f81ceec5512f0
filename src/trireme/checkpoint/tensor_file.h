// One safetensors file: memory-mapped for reading, streamed for writing.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "trireme/base/file.h"
#include "trireme/checkpoint/checkpoint.h"

namespace trireme::checkpoint {

at::ScalarType scalar_type(Dtype dtype);
/// Error{kInternal} for a type that the format does not have here.
Dtype dtype_of(at::ScalarType type);

/// "[2, 3]".
std::string shape_text(const std::vector<int64_t>& shape);

/// xxh3 of a tensor's contiguous bytes on the host.
std::string tensor_hash(const at::Tensor& tensor);

/// A safetensors file mapped for reading. Tensors keep the map alive; they are read-only.
/// Thread-safety: const calls from any thread.
class TensorFile {
 public:
  explicit TensorFile(
      const std::filesystem::path& path);  ///< Error{kData} as parse_safetensors_header
  const SafetensorsHeader& header() const { return header_; }
  const std::filesystem::path& path() const { return path_; }
  std::span<const std::byte> bytes() const { return map_->bytes(); }
  std::span<const std::byte> bytes_of(const TensorInfo& info) const;
  at::Tensor tensor(const TensorInfo& info) const;

 private:
  std::filesystem::path path_;
  std::shared_ptr<MappedFile> map_;
  SafetensorsHeader header_;
};

/// What one written file became.
struct WrittenFile {
  FileEntry file;
  std::vector<TensorEntry> tensors;  ///< in the order of the file
};

/// Writes and syncs `folder`/`name`; tensors are made one at a time, in the order of the file.
WrittenFile write_tensor_file(Storage& storage, const std::filesystem::path& folder,
                              const std::string& name,
                              const std::vector<const TensorToWrite*>& tensors,
                              const std::map<std::string, std::string>& metadata);

/// Cuts `tensors`, in their order, into files of at most `shard_bytes` of data (one tensor at
/// least).
std::vector<std::vector<const TensorToWrite*>> cut_into_shards(
    const std::vector<const TensorToWrite*>& tensors, int64_t shard_bytes);

/// "stem.safetensors" of one, "stem-00002-of-00003.safetensors" of several (index from 0).
std::string shard_name(const std::string& stem, size_t index, size_t count);

uint64_t byte_size(const TensorToWrite& tensor);

/// Error{kData} unless `folder` has room for `bytes` and a little more.
void check_free_space(Storage& storage, const std::filesystem::path& folder, uint64_t bytes);

}  // namespace trireme::checkpoint
