// Measures what this machine can do: matrix products, memory, disk, and whether the rows of a
// product depend on how many there are. Used by `trireme doctor`, `trireme bench gemm`, precision =
// "auto" and the share of the GEMM rate in the progress line.
//
// All calls block, run on ATen's threads of the calling process and allocate what they need for the
// time of the call. Thread-safety: call from one thread at a time; concurrent work falsifies the
// figures.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <vector>

namespace trireme::device {

/// One rate measured `repeats` times.
struct Rate {
  double median = 0;
  double min = 0;
  double max = 0;
  int repeats = 0;
};

/// GFLOP/s (2 m n k per product) of y = x w^T with x [m, k], w [n, k], y [m, n], all of `dtype`,
/// through ATen (MKL for float32, oneDNN for bfloat16 in the published wheel). Takes about
/// `budget_s` seconds and at least three products after a warm-up.
Rate measure_gemm(c10::ScalarType dtype, int64_t m, int64_t n, int64_t k, double budget_s = 0.5);

/// GB/s read plus written while all threads copy a buffer far larger than the caches.
Rate measure_memory_bandwidth(int64_t buffer_bytes = int64_t{256} << 20, double budget_s = 0.5);

/// MB/s of writing and syncing a file in `folder`, which is removed again. Error{kData} if it
/// cannot be written.
Rate measure_disk_write(const std::filesystem::path& folder, int64_t file_bytes = int64_t{64} << 20,
                        double budget_s = 2.0);

/// Row counts at which the first rows of a product differ in a bit from the same rows of a larger
/// one.
struct RowDependence {
  int64_t inner = 0;                ///< K of the product
  std::vector<int64_t> row_counts;  ///< M in 1..64 and some above that differ; empty: independent
};

/// y [M, N] = x [M, K] w [N, K]^T.
using Product = std::function<void(const at::Tensor& x, const at::Tensor& w, at::Tensor& y)>;
/// The one of ATen.
void aten_product(const at::Tensor& x, const at::Tensor& w, at::Tensor& y);

/// For each K: compares the rows of x[:M] w^T (x [512, K], w [768, K]) with those of x w^T for M = 1..65 and ten
/// counts up to 511. Generation, expert parallelism and the exact reduction lean on equality.
std::vector<RowDependence> find_row_dependence(c10::ScalarType dtype,
                                               const Product& product = aten_product,
                                               const std::vector<int64_t>& inners = {64, 384, 768,
                                                                                     1024, 2048});

/// The smallest number of rows from which no tested K depends on it; 1 if none ever does.
int64_t independent_from(const std::vector<RowDependence>& dependences);

}  // namespace trireme::device
