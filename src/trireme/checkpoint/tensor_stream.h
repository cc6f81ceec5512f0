// A tensor's bytes piece by piece, so that converting a model needs memory for a piece and not for
// its largest tensor.
#pragma once

#include <cstddef>
#include <functional>
#include <span>

#include "trireme/checkpoint/checkpoint.h"

namespace trireme::checkpoint {

/// Elements of a piece: rows along dimension 0, at least one.
inline constexpr int64_t kPieceElements = int64_t{1} << 22;

/// Makes `tensor` and hands out its contiguous bytes in its announced type, in order. Views of a memory
/// map are converted by rows, and what was read is released behind (TensorToWrite::release). Blocks.
/// Error{kInternal} if what is made is not what was announced.
void stream_tensor(const TensorToWrite& tensor,
                   const std::function<void(std::span<const std::byte>)>& put);

/// Lets go of the pages of a read-only memory map that `bytes` touches; they are read again when they
/// are needed. Only for a map of a file.
void release_pages(std::span<const std::byte> bytes);

/// xxh3 of the bytes of a memory map, its pages released behind.
uint64_t hash_of_map(std::span<const std::byte> bytes);

}  // namespace trireme::checkpoint
