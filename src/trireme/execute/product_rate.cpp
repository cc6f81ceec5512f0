#include "trireme/execute/product_rate.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/randn.h>

#include <algorithm>
#include <optional>

#include "trireme/base/clock.h"
#include "trireme/device/probe.h"
#include "trireme/kernels/ops.h"

namespace trireme::execute {

double product_tflops(c10::ScalarType dtype) {
  constexpr int64_t kSize = 1024;
  constexpr double kSeconds = 0.25;
  constexpr int kLeast = 4;
  const double ours = [&] {
    const at::Tensor x = at::randn({kSize, kSize}, at::TensorOptions().dtype(at::kFloat)).to(dtype);
    const at::Tensor w = at::randn({kSize, kSize}, at::TensorOptions().dtype(at::kFloat)).to(dtype);
    at::Tensor y = at::empty({kSize, kSize}, x.options());
    const Clock& clock = steady_clock();
    const double start = clock.now_s();
    double best_s = 1e9;
    for (int i = 0; i < kLeast || clock.now_s() - start < kSeconds; ++i) {
      const double before = clock.now_s();
      kernels::linear(x, w, std::nullopt, std::nullopt, y);
      if (i > 0) best_s = std::min(best_s, clock.now_s() - before);
    }
    return 2e-12 * kSize * kSize * kSize / std::max(best_s, 1e-9);
  }();
  const double aten = device::measure_gemm(dtype, kSize, kSize, kSize, kSeconds).max / 1e3;
  return std::max(ours, aten);
}

}  // namespace trireme::execute
