// The optimizer's passes over flat buffers.
#include <ATen/TensorOperators.h>
#include <ATen/ops/constant_pad_nd.h>

#include <cmath>

#include "trireme/kernels/aten/accumulation.h"
#include "trireme/kernels/aten/aten_kernels.h"

namespace trireme::kernels::aten {

void adamw_(at::Tensor& weights, const at::Tensor& gradients, at::Tensor& exp_avg,
            at::Tensor& exp_avg_sq, at::Tensor compute, const AdamWParams& params) {
  const at::Tensor gradient = gradients * params.gradient_scale;
  const auto step = static_cast<double>(params.step);
  const double correction1 = 1.0 - std::pow(params.beta1, step);
  const double correction2 = 1.0 - std::pow(params.beta2, step);
  weights.mul_(1.0 - params.lr * params.weight_decay);
  exp_avg.lerp_(gradient, 1.0 - params.beta1);
  exp_avg_sq.mul_(params.beta2).addcmul_(gradient, gradient, 1.0 - params.beta2);
  const at::Tensor denominator = exp_avg_sq.sqrt().div_(std::sqrt(correction2)).add_(params.eps);
  weights.addcdiv_(exp_avg, denominator, -params.lr / correction1);
  if (compute.defined()) compute.copy_(weights);
}

double sum_of_squares(const at::Tensor& x) {
  if (x.numel() == 0) return 0.0;
  // In blocks: ATen splits one sum over threads, but not the sums of several rows.
  constexpr int64_t kBlock = 65536;
  const at::Tensor flat = x.view(-1).to(at::kDouble);
  const int64_t padding = (kBlock - flat.numel() % kBlock) % kBlock;
  const at::Tensor blocks = at::constant_pad_nd(flat, {0, padding}).view({-1, kBlock});
  return blocks.square().sum(1).cumsum(0).select(0, -1).item<double>();
}

void squares_by_block(const at::Tensor& x, at::Tensor& out) {
  if (x.numel() == 0) return;
  const at::Tensor flat = x.view(-1).to(at::kDouble);
  const int64_t padding = (kSquaresBlock - flat.numel() % kSquaresBlock) % kSquaresBlock;
  const at::Tensor blocks = at::constant_pad_nd(flat, {0, padding}).view({-1, kSquaresBlock});
  out.copy_(blocks.square().sum(1));
}

void add_(at::Tensor& a, const at::Tensor& b) {
  a.add_(b);
}

void scaled_sum(const at::Tensor& x, double a, const at::Tensor& y, double b, at::Tensor& out) {
  put(out, x * a + wide(y).to(x.scalar_type()) * b);
}

void convert(const at::Tensor& src, at::Tensor& dst) {
  dst.copy_(src);
}

}  // namespace trireme::kernels::aten
