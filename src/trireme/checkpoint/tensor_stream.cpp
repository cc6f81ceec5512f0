#include "trireme/checkpoint/tensor_stream.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

#include "trireme/base/error.h"
#include "trireme/base/hash.h"
#include "trireme/checkpoint/tensor_file.h"

namespace trireme::checkpoint {

namespace {

constexpr size_t kReleaseBytes = size_t{16} << 20;

/// Hands out one made tensor and returns how many rows it had.
int64_t stream_made(const TensorToWrite& tensor, const at::Tensor& made, at::ScalarType type,
                    const std::function<void(std::span<const std::byte>)>& put) {
  const auto put_host = [&](const at::Tensor& piece) {
    const at::Tensor host = piece.cpu().to(type).contiguous();
    put({static_cast<const std::byte*>(host.const_data_ptr()), static_cast<size_t>(host.nbytes())});
    if (tensor.release) tensor.release();
  };
  if (made.dim() == 0 || made.numel() == 0) {
    put_host(made);
    return made.dim() == 0 ? 1 : made.size(0);
  }
  at::Tensor rest = made;
  while (rest.dim() > 1 && rest.size(0) == 1) rest = rest.select(0, 0);  // one expert of a stack
  const int64_t row = rest.numel() / rest.size(0);
  const int64_t rows = std::max<int64_t>(1, kPieceElements / row);
  for (int64_t first = 0; first < rest.size(0); first += rows)
    put_host(rest.narrow(0, first, std::min(rows, rest.size(0) - first)));
  return made.size(0);
}

}  // namespace

void stream_tensor(const TensorToWrite& tensor,
                   const std::function<void(std::span<const std::byte>)>& put) {
  const at::ScalarType type = scalar_type(tensor.dtype);
  const auto check = [&](const at::Tensor& made, bool whole) {
    const std::vector<int64_t> sizes = made.sizes().vec();
    const bool same_rows = sizes.size() == tensor.shape.size() &&
                           std::equal(sizes.begin() + (whole || sizes.empty() ? 0 : 1), sizes.end(),
                                      tensor.shape.begin() + (whole || sizes.empty() ? 0 : 1));
    const bool convertible =
        made.scalar_type() == type || (made.is_floating_point() && at::isFloatingType(type));
    TRIREME_CHECK(same_rows && convertible, "tensor '{}' was announced as {} {} and came as {} {}",
                  tensor.name, dtype_name(tensor.dtype), shape_text(tensor.shape),
                  c10::toString(made.scalar_type()), shape_text(sizes));
  };
  if (tensor.pieces.empty()) {
    const at::Tensor made = tensor.make().detach();
    check(made, true);
    stream_made(tensor, made, type, put);
    return;
  }
  int64_t rows = 0;
  for (const auto& make : tensor.pieces) {
    const at::Tensor made = make().detach();
    check(made, false);
    rows += stream_made(tensor, made, type, put);
  }
  TRIREME_CHECK(rows == tensor.shape.at(0), "tensor '{}' has {} rows in its pieces instead of {}",
                tensor.name, rows, tensor.shape.at(0));
}

void release_pages(std::span<const std::byte> bytes) {
  static const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(bytes.data()) / page * page;
  const auto end = reinterpret_cast<uintptr_t>(bytes.data()) + bytes.size();
  // A page shared with a neighbour is read again, too: the map is of a file and never written.
  if (end > begin) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

uint64_t hash_of_map(std::span<const std::byte> bytes) {
  Hasher hash;
  while (!bytes.empty()) {
    const auto piece = bytes.first(std::min(bytes.size(), kReleaseBytes));
    hash.update(piece);
    release_pages(piece);
    bytes = bytes.subspan(piece.size());
  }
  return hash.digest();
}

}  // namespace trireme::checkpoint
