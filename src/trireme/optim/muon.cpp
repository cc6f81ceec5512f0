#include "trireme/optim/muon.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/lerp.h>
#include <ATen/ops/mul.h>

#include <algorithm>
#include <cmath>

#include "trireme/kernels/ops.h"

namespace trireme::optim {
namespace {

// Coefficients of the quintic iteration: the slope at zero is as large as the basin of convergence allows.
constexpr double kA = 3.4445;
constexpr double kB = -4.7750;
constexpr double kC = 2.0315;

at::Tensor wide(const at::Tensor& like, int64_t rows, int64_t cols) {
  return at::empty({rows, cols}, like.options().dtype(at::kFloat));
}

}  // namespace

double adjusted_lr(double lr, MuonLrAdjust adjust, int64_t rows, int64_t cols) {
  const auto a = static_cast<double>(rows);
  const auto b = static_cast<double>(cols);
  if (adjust == MuonLrAdjust::kOriginal) return lr * std::sqrt(std::max(1.0, a / b));
  return lr * 0.2 * std::sqrt(std::max(a, b));
}

at::Tensor orthogonalize(const at::Tensor& matrix, int steps, double eps) {
  // Work on the wide orientation: the Gram matrix is then the smaller one.
  const bool tall = matrix.size(0) > matrix.size(1);
  at::Tensor x = matrix.to(at::kBFloat16);
  if (tall) x = x.t().contiguous();
  const int64_t m = x.size(0);
  const int64_t n = x.size(1);
  at::Tensor sum = wide(x, m, n);
  sum.copy_(x);
  // The norm is rounded to bfloat16, as that of a bfloat16 tensor is; its sum is exact for any number of threads.
  const auto norm =
      static_cast<at::BFloat16>(static_cast<float>(std::sqrt(kernels::sum_of_squares(sum))));
  sum.div_(std::max(static_cast<double>(static_cast<float>(norm)), eps));
  kernels::convert(sum, x);
  at::Tensor gram = at::empty({m, m}, x.options());
  at::Tensor polynomial = wide(x, m, m);
  for (int step = 0; step < steps; ++step) {
    kernels::gram(x, polynomial);  // A = X X^T
    kernels::convert(polynomial, gram);
    kernels::gram(gram, polynomial);                      // A A, for A is symmetric
    kernels::scaled_sum(polynomial, kC, gram, kB, gram);  // b A + c A A
    kernels::linear_backward_input(gram, x, sum);
    kernels::scaled_sum(sum, 1.0, x, kA, x);
  }
  return tall ? x.t().contiguous() : x;
}

void muon_step(const OptimizerConfig& config, const StepParams& params, bool decays,
               const at::Tensor& gradients, at::Tensor& weights, at::Tensor& momentum) {
  at::Tensor update = at::mul(gradients, params.gradient_scale);
  momentum.lerp_(update, 1.0 - config.momentum);
  if (config.nesterov) {
    update.lerp_(momentum, config.momentum);
  } else {
    update.copy_(momentum);
  }
  update = orthogonalize(update, config.ns_steps, config.ns_eps);
  kernels::scaled_sum(weights, decays ? 1.0 - params.lr * config.weight_decay : 1.0, update,
                      -adjusted_lr(params.lr, config.adjust, weights.size(0), weights.size(1)),
                      weights);
}

int64_t num_matrices(const model::ParameterSpec& parameter) {
  return parameter.shape.size() == 3 ? parameter.shape.front() : 1;
}

int64_t matrices_at_once(const model::ParameterSpec& parameter) {
  constexpr int64_t kSmall = 1 << 20;  // elements: its products are too short for many threads
  const int64_t matrices = num_matrices(parameter);
  const int64_t threads = at::get_num_threads();
  return matrices >= 4 * threads && parameter.numel() / matrices <= kSmall ? threads : 1;
}

int64_t muon_workspace_bytes(const model::ParameterSpec& parameter, at::Device device) {
  const int64_t rows = parameter.shape[parameter.shape.size() - 2];
  const int64_t cols = parameter.shape.back();
  const int64_t m = std::min(rows, cols);
  const int64_t n = std::max(rows, cols);
  if (!device.is_cpu()) return (4 + 2 + 2 + 4) * m * n + (2 + 4) * m * m;
  // The update in float32 and bfloat16 (twice when transposed), the sum, the two Gram matrices and the largest product's own.
  const int64_t products = std::max(kernels::product_workspace_bytes(m, m, n, at::kBFloat16),
                                    kernels::product_workspace_bytes(m, n, m, at::kBFloat16));
  return matrices_at_once(parameter) * ((4 + 2 + 2 + 4) * m * n + (2 + 4) * m * m + products);
}

}  // namespace trireme::optim
