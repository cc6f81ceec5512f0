// RMSNorm and LayerNorm, and their gradients by formula.
#include <ATen/TensorOperators.h>

#include "trireme/kernels/aten/accumulation.h"
#include "trireme/kernels/aten/aten_kernels.h"

namespace trireme::kernels::aten {

namespace {

at::Tensor row_mean(const at::Tensor& x) {
  return x.mean(-1, /*keepdim=*/true);
}

/// A statistic, one value a row, as a factor of the rows of x.
at::Tensor of_rows(const at::Tensor& statistic, const at::Tensor& x) {
  return wide(statistic)
      .reshape(x.sizes().slice(0, static_cast<size_t>(x.dim()) - 1))
      .unsqueeze(-1);
}

at::Tensor sum_of_rows(const at::Tensor& x) {
  return x.flatten(0, -2).sum(0);
}

}  // namespace

void rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps, at::Tensor& y,
              at::Tensor rstd, double offset) {
  const at::Tensor in = wide(x);
  const at::Tensor scale = (row_mean(in.square()) + eps).rsqrt();
  if (rstd.defined()) put(rstd, scale);
  put(y, in * scale * (wide(weight) + offset));
}

void rms_norm_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weight,
                       const at::Tensor& rstd, at::Tensor dx, bool add_to_dx, at::Tensor dweight,
                       bool accumulate, double offset) {
  const at::Tensor grad = wide(dy);
  const at::Tensor scale = of_rows(rstd, x);
  const at::Tensor normed = wide(x) * scale;
  if (dweight.defined()) put(dweight, sum_of_rows(grad * normed), accumulate);
  if (!dx.defined()) return;
  const at::Tensor scaled = grad * (wide(weight) + offset);
  put(dx, scale * (scaled - normed * row_mean(scaled * normed)), add_to_dx);
}

void layer_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps,
                at::Tensor& y, at::Tensor mean, at::Tensor rstd) {
  const at::Tensor in = wide(x);
  const at::Tensor centre = row_mean(in);
  const at::Tensor centred = in - centre;
  const at::Tensor scale = (row_mean(centred.square()) + eps).rsqrt();
  if (mean.defined()) put(mean, centre);
  if (rstd.defined()) put(rstd, scale);
  const at::Tensor result = centred * scale * wide(weight);
  put(y, bias.defined() ? result + wide(bias) : result);
}

void layer_norm_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weight,
                         const at::Tensor& mean, const at::Tensor& rstd, at::Tensor dx,
                         bool add_to_dx, at::Tensor dweight, at::Tensor dbias, bool accumulate) {
  const at::Tensor grad = wide(dy);
  const at::Tensor scale = of_rows(rstd, x);
  const at::Tensor normed = (wide(x) - of_rows(mean, x)) * scale;
  if (dweight.defined()) put(dweight, sum_of_rows(grad * normed), accumulate);
  if (dbias.defined()) put(dbias, sum_of_rows(grad), accumulate);
  if (!dx.defined()) return;
  const at::Tensor scaled = grad * wide(weight);
  put(dx, scale * (scaled - row_mean(scaled) - normed * row_mean(scaled * normed)), add_to_dx);
}

}  // namespace trireme::kernels::aten
