#include "trireme/device/probe.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <system_error>
#include <utility>

#include "trireme/base/clock.h"
#include "trireme/base/error.h"

namespace trireme::device {

namespace {

/// Repeats `work` (of `amount` units) for about `budget_s` and at least `least` times.
Rate repeat(double amount, double budget_s, int least, const std::function<void()>& work) {
  const Clock& clock = steady_clock();
  std::vector<double> rates;
  const double start = clock.now_s();
  while (static_cast<int>(rates.size()) < least || clock.now_s() - start < budget_s) {
    const double before = clock.now_s();
    work();
    rates.push_back(amount / std::max(clock.now_s() - before, 1e-9));
  }
  std::sort(rates.begin(), rates.end());
  return {rates[rates.size() / 2], rates.front(), rates.back(), static_cast<int>(rates.size())};
}

at::Tensor random_matrix(int64_t rows, int64_t cols, c10::ScalarType dtype) {
  return at::randn({rows, cols}, at::TensorOptions().dtype(c10::kFloat)).to(dtype);
}

constexpr int64_t kReferenceRows = 512;
constexpr int64_t kReferenceCols = 768;

std::vector<int64_t> tested_row_counts() {
  std::vector<int64_t> counts;
  for (int64_t rows = 1; rows <= 65; ++rows) counts.push_back(rows);
  for (const int64_t rows : {96, 100, 127, 128, 200, 255, 256, 300, 384, 511})
    counts.push_back(rows);
  return counts;
}

[[noreturn]] void fail_disk(const std::filesystem::path& path, int error) {
  throw Error(
      ErrorCode::kData,
      fmt::format("cannot write '{}': {}", path.string(), std::generic_category().message(error)),
      "name a folder with free space that you may write to");
}

}  // namespace

Rate measure_gemm(c10::ScalarType dtype, int64_t m, int64_t n, int64_t k, double budget_s) {
  TRIREME_CHECK(m > 0 && n > 0 && k > 0, "a product of {} x {} x {}", m, n, k);
  const c10::AutoGradMode no_grad(false);
  const at::Tensor x = random_matrix(m, k, dtype);
  const at::Tensor w = random_matrix(n, k, dtype).t();
  at::Tensor y = at::empty({m, n}, x.options());
  const auto product = [&] { at::mm_out(y, x, w); };
  for (int i = 0; i < 2; ++i) product();
  const double gflop =
      2e-9 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  return repeat(gflop, budget_s, 3, product);
}

Rate measure_memory_bandwidth(int64_t buffer_bytes, double budget_s) {
  const c10::AutoGradMode no_grad(false);
  const at::Tensor from = at::zeros({buffer_bytes / 4}, at::TensorOptions().dtype(c10::kFloat));
  at::Tensor to = at::zeros_like(from);
  const auto copy = [&] { to.copy_(from); };
  copy();
  return repeat(2e-9 * static_cast<double>(buffer_bytes), budget_s, 3, copy);
}

Rate measure_disk_write(const std::filesystem::path& folder, int64_t file_bytes, double budget_s) {
  const std::filesystem::path path = folder / fmt::format(".trireme-probe-{}", ::getpid());
  // Not zeros: a file system may store them as nothing.
  std::string block(1 << 20, '\0');
  for (size_t i = 0; i < block.size(); ++i) block[i] = static_cast<char>(i * 2654435761u >> 13);
  const int64_t blocks = std::max<int64_t>(1, file_bytes >> 20);
  const auto write_once = [&] {
    const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) fail_disk(path, errno);
    int error = 0;
    for (int64_t i = 0; i < blocks && error == 0; ++i) {
      const ssize_t written = ::write(fd, block.data(), block.size());
      if (written != static_cast<ssize_t>(block.size())) error = written < 0 ? errno : ENOSPC;
    }
    if (error == 0 && ::fsync(fd) != 0) error = errno;
    ::close(fd);
    ::unlink(path.c_str());
    if (error != 0) fail_disk(path, error);
  };
  return repeat(static_cast<double>(blocks << 20) * 1e-6, budget_s, 1, write_once);
}

void aten_product(const at::Tensor& x, const at::Tensor& w, at::Tensor& y) {
  at::mm_out(y, x, w.t());
}

std::vector<RowDependence> find_row_dependence(c10::ScalarType dtype, const Product& product,
                                               const std::vector<int64_t>& inners) {
  const c10::AutoGradMode no_grad(false);
  std::vector<RowDependence> result;
  for (const int64_t inner : inners) {
    const at::Tensor x = random_matrix(kReferenceRows, inner, dtype);
    const at::Tensor w = random_matrix(kReferenceCols, inner, dtype);
    at::Tensor whole = at::empty({kReferenceRows, kReferenceCols}, x.options());
    product(x, w, whole);
    RowDependence dependence{inner, {}};
    for (const int64_t rows : tested_row_counts()) {
      at::Tensor part = at::empty({rows, kReferenceCols}, x.options());
      product(x.narrow(0, 0, rows), w, part);
      const auto bytes = static_cast<size_t>(rows * kReferenceCols) * part.element_size();
      if (std::memcmp(part.const_data_ptr(), whole.const_data_ptr(), bytes) != 0) {
        dependence.row_counts.push_back(rows);
      }
    }
    result.push_back(std::move(dependence));
  }
  return result;
}

int64_t independent_from(const std::vector<RowDependence>& dependences) {
  int64_t last = 0;
  for (const RowDependence& dependence : dependences) {
    for (const int64_t rows : dependence.row_counts) last = std::max(last, rows);
  }
  return last + 1;
}

}  // namespace trireme::device
