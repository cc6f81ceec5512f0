// A safetensors header from anywhere: refused with Error{kData}, or it keeps the format's promises.
#include <cstdint>
#include <cstdlib>
#include <span>

#include "trireme/base/error.h"
#include "trireme/checkpoint/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace trireme::checkpoint;
  const std::span<const std::byte> bytes = std::as_bytes(std::span(data, size));
  try {
    SafetensorsHeader header = parse_safetensors_header(bytes, size, "input");
    uint64_t position = 0;
    for (const TensorInfo& tensor : header.tensors) {
      if (tensor.begin != position) std::abort();
      if (tensor.bytes() !=
          static_cast<uint64_t>(tensor.numel()) * static_cast<uint64_t>(dtype_size(tensor.dtype))) {
        std::abort();
      }
      position = tensor.end;
    }
    if (header.data_start + position != size) std::abort();
    // What was read is written and read back the same.
    std::vector<TensorInfo> tensors = header.tensors;
    const std::string head = make_safetensors_header(tensors, header.metadata);
    const SafetensorsHeader again =
        parse_safetensors_header(std::as_bytes(std::span(head)), head.size() + position, "written");
    if (again.tensors.size() != header.tensors.size() || again.metadata != header.metadata)
      std::abort();
    for (const TensorInfo& tensor : again.tensors) {
      const TensorInfo* before = header.find(tensor.name);
      if (before == nullptr || before->shape != tensor.shape || before->dtype != tensor.dtype)
        std::abort();
    }
  } catch (const trireme::Error& error) {
    if (error.code() != trireme::ErrorCode::kData) std::abort();
  }
  return 0;
}
