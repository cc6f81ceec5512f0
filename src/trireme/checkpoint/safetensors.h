// The safetensors format on bytes: a strict header parser and a deterministic header writer.
//
// Layout of a file: u64 little-endian N | N bytes of JSON, padded with spaces | tensor data without
// gaps. Format: https://github.com/huggingface/safetensors#format. Torch-free and free of I/O, so
// that it can be fuzzed alone; tensor_file.h adds files and tensors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace trireme::checkpoint {

/// Element types of the format, in its own order (files are sorted by descending type, then by
/// name).
enum class Dtype { kBool, kU8, kI8, kF8E4m3, kI16, kF16, kBf16, kI32, kF32, kF64, kI64 };

const char* dtype_name(Dtype dtype);  ///< the format's own name: "F32", "BF16", ...
int64_t dtype_size(Dtype dtype);      ///< bytes of one element

/// One tensor of a file. `begin` and `end` count bytes from the start of the data section.
struct TensorInfo {
  std::string name;
  Dtype dtype = Dtype::kF32;
  std::vector<int64_t> shape;
  uint64_t begin = 0;
  uint64_t end = 0;
  int64_t numel() const;
  uint64_t bytes() const { return end - begin; }
};

struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;  ///< in the order of their data
  std::map<std::string, std::string> metadata;
  uint64_t data_start = 0;                              ///< from the start of the file
  const TensorInfo* find(std::string_view name) const;  ///< nullptr if absent; O(number of tensors)
};

/// The largest header accepted, as in the reference implementation.
inline constexpr uint64_t kMaxHeaderBytes = 100'000'000;

/// Parses the header of a file of `file_size` bytes whose first bytes are `head` (at least the
/// header). Error{kData} naming `origin` unless: the length is in range, the JSON is an object
/// without duplicate names, every type is known, bytes match type and shape without overflow, and
/// the data has no gap, overlap or rest. Pure; never reads beyond `head`.
SafetensorsHeader parse_safetensors_header(std::span<const std::byte> head, uint64_t file_size,
                                           const std::string& origin);

/// Sorts `tensors` as the reference implementation does (type descending, then name), sets begin
/// and end, and returns the file's first bytes (length and padded JSON), byte-equal to what that
/// implementation writes.
std::string make_safetensors_header(std::vector<TensorInfo>& tensors,
                                    const std::map<std::string, std::string>& metadata);

}  // namespace trireme::checkpoint
