// The functions of ops.h: each goes to the kernel that the registry has for its tensors.
#include "trireme/kernels/ops.h"

#include <utility>

#include "trireme/kernels/registry.h"

namespace trireme::kernels {

void linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
            const std::optional<at::Tensor>& residual, at::Tensor& y) {
  kernel_for<&kernels::linear>(x)(x, weight, bias, residual, y);
}

void linear_backward_input(const at::Tensor& dy, const at::Tensor& weight, at::Tensor& dx,
                           bool accumulate) {
  kernel_for<&kernels::linear_backward_input>(dy)(dy, weight, dx, accumulate);
}

void linear_backward_weight(const at::Tensor& dy, const at::Tensor& x, at::Tensor& dweight,
                            bool accumulate) {
  kernel_for<&kernels::linear_backward_weight>(dy)(dy, x, dweight, accumulate);
}

void bias_gradient(const at::Tensor& dy, at::Tensor& dbias, bool accumulate) {
  kernel_for<&kernels::bias_gradient>(dy)(dy, dbias, accumulate);
}

void gram(const at::Tensor& x, at::Tensor& y) {
  kernel_for<&kernels::gram>(x)(x, y);
}

void rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps, at::Tensor& y,
              at::Tensor rstd, double offset) {
  kernel_for<&kernels::rms_norm>(x)(x, weight, eps, y, std::move(rstd), offset);
}

void rms_norm_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weight,
                       const at::Tensor& rstd, at::Tensor dx, bool add_to_dx, at::Tensor dweight,
                       bool accumulate, double offset) {
  kernel_for<&kernels::rms_norm_backward>(x)(dy, x, weight, rstd, std::move(dx), add_to_dx,
                                             std::move(dweight), accumulate, offset);
}

void layer_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps,
                at::Tensor& y, at::Tensor mean, at::Tensor rstd) {
  kernel_for<&kernels::layer_norm>(x)(x, weight, bias, eps, y, std::move(mean), std::move(rstd));
}

void layer_norm_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weight,
                         const at::Tensor& mean, const at::Tensor& rstd, at::Tensor dx,
                         bool add_to_dx, at::Tensor dweight, at::Tensor dbias, bool accumulate) {
  kernel_for<&kernels::layer_norm_backward>(x)(dy, x, weight, mean, rstd, std::move(dx), add_to_dx,
                                               std::move(dweight), std::move(dbias), accumulate);
}

void activation(Activation act, const at::Tensor& x, at::Tensor& y) {
  kernel_for<&kernels::activation>(x)(act, x, y);
}

void activation_backward(Activation act, const at::Tensor& dy, const at::Tensor& x,
                         at::Tensor& dx) {
  kernel_for<&kernels::activation_backward>(x)(act, dy, x, dx);
}

void gated_activation(Activation act, const at::Tensor& gate_up, at::Tensor& y) {
  kernel_for<&kernels::gated_activation>(gate_up)(act, gate_up, y);
}

void gated_activation_backward(Activation act, const at::Tensor& dy, const at::Tensor& gate_up,
                               at::Tensor& d_gate_up, at::Tensor y) {
  kernel_for<&kernels::gated_activation_backward>(gate_up)(act, dy, gate_up, d_gate_up,
                                                           std::move(y));
}

void rotary_(at::Tensor& x, const at::Tensor& positions, const at::Tensor& cos,
             const at::Tensor& sin, bool inverse, bool interleaved) {
  kernel_for<&kernels::rotary_>(x)(x, positions, cos, sin, inverse, interleaved);
}

void join_shared_key(const at::Tensor& own, const at::Tensor& shared, at::Tensor& k) {
  kernel_for<&kernels::join_shared_key>(k)(own, shared, k);
}

void join_shared_key_backward(const at::Tensor& dk, at::Tensor& d_own, at::Tensor& d_shared) {
  kernel_for<&kernels::join_shared_key_backward>(dk)(dk, d_own, d_shared);
}

void embedding(const at::Tensor& tokens, const at::Tensor& weight, const at::Tensor& positions,
               const at::Tensor& position_weight, at::Tensor& out) {
  kernel_for<&kernels::embedding>(weight)(tokens, weight, positions, position_weight, out);
}

void embedding_backward(const at::Tensor& tokens, const at::Tensor& dy, at::Tensor& dweight,
                        bool accumulate) {
  kernel_for<&kernels::embedding_backward>(dy)(tokens, dy, dweight, accumulate);
}

void attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
               const AttentionOptions& options, at::Tensor& out, at::Tensor logsumexp) {
  kernel_for<&kernels::attention>(q)(q, k, v, options, out, std::move(logsumexp));
}

void attention_backward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k,
                        const at::Tensor& v, const at::Tensor& out, const at::Tensor& logsumexp,
                        const AttentionOptions& options, at::Tensor& dq, at::Tensor& dk,
                        at::Tensor& dv, at::Tensor d_sinks) {
  kernel_for<&kernels::attention_backward>(q)(dout, q, k, v, out, logsumexp, options, dq, dk, dv,
                                              std::move(d_sinks));
}

double linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& weight,
                            const at::Tensor& targets, double scale, int64_t chunk_rows,
                            CrossEntropyOutputs outputs, double softcap) {
  return kernel_for<&kernels::linear_cross_entropy>(hidden)(
      hidden, weight, targets, scale, chunk_rows, std::move(outputs), softcap);
}

void adamw_(at::Tensor& weights, const at::Tensor& gradients, at::Tensor& exp_avg,
            at::Tensor& exp_avg_sq, at::Tensor compute, const AdamWParams& params) {
  kernel_for<&kernels::adamw_>(weights)(weights, gradients, exp_avg, exp_avg_sq, std::move(compute),
                                        params);
}

double sum_of_squares(const at::Tensor& x) {
  return kernel_for<&kernels::sum_of_squares>(x)(x);
}

void squares_by_block(const at::Tensor& x, at::Tensor& out) {
  kernel_for<&kernels::squares_by_block>(x)(x, out);
}

void add_(at::Tensor& a, const at::Tensor& b) {
  kernel_for<&kernels::add_>(a)(a, b);
}

void scaled_sum(const at::Tensor& x, double a, const at::Tensor& y, double b, at::Tensor& out) {
  kernel_for<&kernels::scaled_sum>(x)(x, a, y, b, out);
}

void convert(const at::Tensor& src, at::Tensor& dst) {
  kernel_for<&kernels::convert>(src)(src, dst);
}

}  // namespace trireme::kernels
