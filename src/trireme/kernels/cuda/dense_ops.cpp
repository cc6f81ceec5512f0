// Products, norms and the output head.
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>

#include <algorithm>

#include "trireme/kernels/cuda/cuda_kernels.h"
#include "trireme/kernels/cuda/identifiers.h"
#include "trireme/kernels/cuda/operands.h"
#include "trireme/kernels/cuda/product.h"

namespace trireme::kernels::gpu {

namespace {

at::Tensor floats_like(const at::Tensor& tensor, at::IntArrayRef sizes) {
  return at::empty(sizes, tensor.options().dtype(at::kFloat));
}
/// Workspace; one element at least, so that there is an address.
at::Tensor workspace(const at::Tensor& tensor, int64_t floats) {
  return floats_like(tensor, {std::max<int64_t>(floats, 1)});
}

}  // namespace

void product(const at::Tensor& a, const at::Tensor& b, at::Tensor out, bool accumulate) {
  if (out.scalar_type() == a.scalar_type()) {
    if (accumulate) {
      at::addmm_out(out, out, a, b);
    } else {
      at::mm_out(out, a, b);
    }
  } else if (accumulate) {
    at::addmm_out(out, out, a, b, at::kFloat);
  } else {
    at::mm_out(out, a, b, at::kFloat);
  }
}

namespace ops {

void linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
            const std::optional<at::Tensor>& residual, at::Tensor& y) {
  const at::Tensor w = weight.t();
  if (y.scalar_type() != x.scalar_type()) {
    product(x, w, y, false);
    if (bias) y.add_(*bias);
    if (residual) y.add_(*residual);
  } else if (bias && residual) {
    // The library adds one of them; the other would be a second rounding.
    const Place place(x);
    const at::Tensor sum = floats_like(x, y.sizes());
    product(x, w, sum, false);
    const at::Tensor plain_bias = bias->contiguous();
    add_bias_residual(type_of(y), data_of<float>(sum), data_of(plain_bias), rows_of(*residual),
                      rows_of(y), y.size(0), y.size(1), place.stream());
  } else if (bias || residual) {
    at::addmm_out(y, bias ? *bias : *residual, x, w);
  } else {
    product(x, w, y, false);
  }
}

void linear_backward_input(const at::Tensor& dy, const at::Tensor& weight, at::Tensor& dx,
                           bool accumulate) {
  product(dy, weight, dx, accumulate);
}

void linear_backward_weight(const at::Tensor& dy, const at::Tensor& x, at::Tensor& dweight,
                            bool accumulate) {
  product(dy.t(), x, dweight, accumulate);
}

void gram(const at::Tensor& x, at::Tensor& y) {
  product(x, x.t(), y, false);
}

void bias_gradient(const at::Tensor& dy, at::Tensor& dbias, bool accumulate) {
  const Place place(dy);
  const int64_t rows = dy.size(0);
  const int64_t width = dy.size(1);
  const at::Tensor partial = workspace(dy, column_partial_floats(rows, width));
  column_sums(type_of(dy), rows_of(dy), rows, width, data_of<float>(dbias), accumulate,
              data_of<float>(partial), place.stream());
}

// --- Norms -----------------------------------------------------------------------------------------

void rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps, at::Tensor& y,
              at::Tensor rstd, double offset) {
  const Place place(x);
  norm_forward({.type = type_of(x),
                .centred = false,
                .rows = count_rows(x),
                .width = x.size(-1),
                .eps = static_cast<float>(eps),
                .offset = static_cast<float>(offset),
                .x = rows_of(x),
                .y = rows_of(y),
                .weight = data_of(weight),
                .bias = nullptr,
                .mean = nullptr,
                .rstd = data_of<float>(rstd)},
               place.stream());
}

void layer_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps,
                at::Tensor& y, at::Tensor mean, at::Tensor rstd) {
  const Place place(x);
  norm_forward({.type = type_of(x),
                .centred = true,
                .rows = count_rows(x),
                .width = x.size(-1),
                .eps = static_cast<float>(eps),
                .offset = 0.0F,
                .x = rows_of(x),
                .y = rows_of(y),
                .weight = data_of(weight),
                .bias = data_of(bias),
                .mean = data_of<float>(mean),
                .rstd = data_of<float>(rstd)},
               place.stream());
}

namespace {

void run_backward(NormBackward norm, const at::Tensor& x) {
  const Place place(x);
  const at::Tensor partial = workspace(x, norm_partial_floats(norm));
  norm.partial = data_of<float>(partial);
  norm_backward(norm, place.stream());
}

}  // namespace

void rms_norm_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weight,
                       const at::Tensor& rstd, at::Tensor dx, bool add_to_dx, at::Tensor dweight,
                       bool accumulate, double offset) {
  run_backward({.type = type_of(x),
                .centred = false,
                .rows = count_rows(x),
                .width = x.size(-1),
                .offset = static_cast<float>(offset),
                .dy = rows_of(dy),
                .x = rows_of(x),
                .dx = rows_of(dx),
                .add_to_dx = add_to_dx,
                .weight = data_of(weight),
                .mean = nullptr,
                .rstd = data_of<float>(rstd),
                .dweight = data_of<float>(dweight),
                .dbias = nullptr,
                .accumulate = accumulate,
                .partial = nullptr},
               x);
}

void layer_norm_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weight,
                         const at::Tensor& mean, const at::Tensor& rstd, at::Tensor dx,
                         bool add_to_dx, at::Tensor dweight, at::Tensor dbias, bool accumulate) {
  run_backward({.type = type_of(x),
                .centred = true,
                .rows = count_rows(x),
                .width = x.size(-1),
                .offset = 0.0F,
                .dy = rows_of(dy),
                .x = rows_of(x),
                .dx = rows_of(dx),
                .add_to_dx = add_to_dx,
                .weight = data_of(weight),
                .mean = data_of<float>(mean),
                .rstd = data_of<float>(rstd),
                .dweight = data_of<float>(dweight),
                .dbias = data_of<float>(dbias),
                .accumulate = accumulate,
                .partial = nullptr},
               x);
}

// --- The output head -------------------------------------------------------------------------------

double linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& weight,
                            const at::Tensor& targets, double scale, int64_t chunk_rows,
                            CrossEntropyOutputs outputs, double softcap) {
  TRIREME_CHECK(chunk_rows > 0 && weight.size(0) > 0,
                "chunk_rows and the vocabulary must be positive");
  const Place place(hidden);
  const int64_t rows = hidden.size(0);
  const int64_t vocab = weight.size(0);
  if (rows == 0) {
    if (outputs.d_weight.defined() && !outputs.accumulate) outputs.d_weight.zero_();
    return 0.0;
  }
  const at::Tensor ids = targets.reshape(-1);
  check_ids(ids, vocab, kIgnoredTarget, "target id", place.stream());

  const bool gradients = outputs.d_hidden.defined() || outputs.d_weight.defined();
  const int64_t most = std::min(chunk_rows, rows);
  const at::Tensor losses = outputs.losses.defined() ? outputs.losses : floats_like(hidden, {rows});
  const at::Tensor all_logits = floats_like(hidden, {most, vocab});
  at::Tensor all_d_logits;
  if (gradients)
    all_d_logits = hidden.scalar_type() == at::kFloat ? all_logits
                                                      : at::empty({most, vocab}, hidden.options());
  for (int64_t first = 0; first < rows; first += most) {
    const int64_t count = std::min(most, rows - first);
    const at::Tensor h = hidden.narrow(0, first, count);
    const at::Tensor logits = all_logits.narrow(0, 0, count);
    const at::Tensor d_logits = gradients ? all_d_logits.narrow(0, 0, count) : at::Tensor();
    product(h, weight.t(), logits, false);
    cross_entropy({.type = type_of(hidden),
                   .rows = count,
                   .vocab = vocab,
                   .logits = data_of<float>(logits),
                   .targets = data_of<int64_t>(ids) + first,
                   .ignored = kIgnoredTarget,
                   .scale = static_cast<float>(scale),
                   .softcap = static_cast<float>(softcap),
                   .losses = data_of<float>(losses) + first,
                   .d_logits = data_of(d_logits)},
                  place.stream());
    if (outputs.d_hidden.defined())
      product(d_logits, weight, outputs.d_hidden.narrow(0, first, count), false);
    if (outputs.d_weight.defined())
      product(d_logits.t(), h, outputs.d_weight, outputs.accumulate || first > 0);
  }
  // Waits. In the order of the rows, as on every device.
  const at::Tensor here = losses.to(at::kCPU);
  const float* values = here.const_data_ptr<float>();
  double sum = 0.0;
  for (int64_t i = 0; i < rows; ++i) sum += static_cast<double>(values[i]);
  return sum;
}

}  // namespace ops

}  // namespace trireme::kernels::gpu
