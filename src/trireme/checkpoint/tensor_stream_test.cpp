#include "trireme/checkpoint/tensor_stream.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <fstream>

#include "trireme/base/error.h"
#include "trireme/base/file.h"
#include "trireme/base/hash.h"
#include "trireme/base/test_folder.h"
#include "trireme/checkpoint/tensor_file.h"

namespace trireme::checkpoint {
namespace {

std::string streamed(const TensorToWrite& tensor, size_t* largest = nullptr) {
  std::string bytes;
  stream_tensor(tensor, [&](std::span<const std::byte> piece) {
    bytes.append(reinterpret_cast<const char*>(piece.data()), piece.size());
    if (largest) *largest = std::max(*largest, piece.size());
  });
  return bytes;
}

std::string bytes_of(const at::Tensor& tensor) {
  const at::Tensor whole = tensor.contiguous();
  return {static_cast<const char*>(whole.const_data_ptr()), whole.nbytes()};
}

TEST(TensorStream, PiecesAreTheWholeInEveryType) {
  const at::Tensor stored = at::randn({5000, 1100});  // more than one piece
  for (const auto from : {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble}) {
    for (const auto to : {Dtype::kF32, Dtype::kBf16, Dtype::kF16}) {
      const at::Tensor made = stored.to(from);
      size_t largest = 0;
      int released = 0;
      TensorToWrite plain{"a", to, {5000, 1100}, [&] { return made; }, {}, [&] { ++released; }};
      EXPECT_EQ(streamed(plain, &largest), bytes_of(made.to(scalar_type(to))));
      EXPECT_LE(largest, static_cast<size_t>(kPieceElements * dtype_size(to)));
      EXPECT_EQ(released, 2);
      const TensorToWrite transposed{"a", to, {1100, 5000}, [&] { return made.t(); }};
      EXPECT_EQ(streamed(transposed), bytes_of(made.t().to(scalar_type(to))));
    }
  }
}

TEST(TensorStream, PiecesFollowEachOther) {
  const at::Tensor a = at::randn({3, 4}), b = at::randn({2, 4}).to(at::kBFloat16);
  const TensorToWrite both{"x", Dtype::kF32, {5, 4}, {}, {[&] { return a; }, [&] { return b; }}};
  EXPECT_EQ(streamed(both), bytes_of(at::cat({a, b.to(at::kFloat)}, 0)));
  EXPECT_EQ(streamed({"s", Dtype::kF32, {}, [] { return at::randn({}).fill_(2); }}),
            std::string("\0\0\0\x40", 4));
  EXPECT_EQ(streamed({"e", Dtype::kF32, {0, 3}, [] { return at::randn({0, 3}); }}), "");
}

TEST(TensorStream, RefusesWhatWasNotAnnounced) {
  const at::Tensor a = at::randn({3, 4});
  EXPECT_THROW(streamed({"x", Dtype::kF32, {4, 3}, [&] { return a; }}), Error);
  EXPECT_THROW(streamed({"x", Dtype::kI64, {3, 4}, [&] { return a; }}), Error);
  EXPECT_THROW(streamed({"x", Dtype::kF32, {5, 4}, {}, {[&] { return a; }}}), Error) << "too few";
  EXPECT_THROW(streamed({"x", Dtype::kF32, {3, 5}, {}, {[&] { return a; }}}), Error);
}

/// Pages of files that this process has mapped and read.
int64_t mapped_bytes() {
  int64_t size = 0, resident = 0, shared = 0;
  std::ifstream("/proc/self/statm") >> size >> resident >> shared;
  return shared * 4096;
}

TEST(TensorStream, LetsGoOfWhatItHasHashed) {
  const TestFolder folder;
  const std::string content(size_t{96} << 20, 'x');
  std::ofstream(folder / "file", std::ios::binary) << content;
  const MappedFile map(folder / "file");
  const int64_t before = mapped_bytes();
  EXPECT_EQ(hash_of_map(map.bytes()), xxh3(std::as_bytes(std::span(content))));
  EXPECT_LT(mapped_bytes() - before, int64_t{8} << 20);
  EXPECT_EQ(xxh3(map.bytes()), xxh3(std::as_bytes(std::span(content)))) << "it comes back";
  EXPECT_GT(mapped_bytes() - before, int64_t{80} << 20) << "the measure sees what is held";
  release_pages(map.bytes());
  EXPECT_LT(mapped_bytes() - before, int64_t{8} << 20);
}

}  // namespace
}  // namespace trireme::checkpoint
