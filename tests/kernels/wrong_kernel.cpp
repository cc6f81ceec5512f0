// A library whose RMSNorm forgets eps: `trireme bench conformance` must say so.
#include <ATen/ATen.h>

#include "trireme/kernels/plugin.h"

static void no_eps(const at::Tensor& x, const at::Tensor& weight, double, at::Tensor& y,
                   at::Tensor rstd, double offset) {
  const at::Tensor in = x.to(at::kFloat);
  const at::Tensor scale = in.square().mean(-1, /*keepdim=*/true).rsqrt();
  y.copy_(in * scale * (weight.to(at::kFloat) + offset));
  if (rstd.defined()) rstd.copy_(scale.squeeze(-1));
}

TRIREME_KERNELS(registrar) {
  // Of low priority: it is there, but nobody's choice.
  registrar.add<&trireme::kernels::rms_norm>({.name = "no_eps", .priority = -1}, &no_eps);
}
