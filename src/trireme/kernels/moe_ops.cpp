// The functions of moe_ops.h: each goes to the kernel that the registry has for its tensors.
#include "trireme/kernels/moe_ops.h"

#include <utility>

#include "trireme/kernels/registry.h"

namespace trireme::kernels {

void route(const at::Tensor& logits, const at::Tensor& selection_bias, const RouterOptions& options,
           at::Tensor& choice, at::Tensor& weights) {
  kernel_for<&kernels::route>(logits)(logits, selection_bias, options, choice, weights);
}

void route_backward(const at::Tensor& logits, const at::Tensor& choice, const at::Tensor& d_weights,
                    const RouterOptions& options, const at::Tensor& d_scores, double z_gradient,
                    at::Tensor& d_logits) {
  kernel_for<&kernels::route_backward>(logits)(logits, choice, d_weights, options, d_scores,
                                               z_gradient, d_logits);
}

RouterBalance balance(const at::Tensor& logits, const at::Tensor& choice,
                      const RouterOptions& options, int64_t sets,
                      const std::vector<int64_t>& load_of_all) {
  return kernel_for<&kernels::balance>(logits)(logits, choice, options, sets, load_of_all);
}

ExpertRows sort_by_expert(const at::Tensor& choice, const at::Tensor& weights, int64_t num_experts,
                          int64_t capacity, bool pad) {
  return registry().find<&kernels::sort_by_expert>(choice.device().type(), at::kFloat)(
      choice, weights, num_experts, capacity, pad);
}

void gather_rows(const at::Tensor& x, const ExpertRows& rows, at::Tensor& y) {
  kernel_for<&kernels::gather_rows>(x)(x, rows, y);
}

void sum_rows(const at::Tensor& y, const ExpertRows& rows, const at::Tensor& start,
              at::Tensor& out) {
  kernel_for<&kernels::sum_rows>(y)(y, rows, start, out);
}

void weights_of_rows(const at::Tensor& weights, const ExpertRows& rows, at::Tensor& of_rows) {
  kernel_for<&kernels::weights_of_rows>(weights)(weights, rows, of_rows);
}

void weights_of_choices(const at::Tensor& of_rows, const ExpertRows& rows, at::Tensor& weights) {
  kernel_for<&kernels::weights_of_choices>(of_rows)(of_rows, rows, weights);
}

void weighted_gated_activation(const ExpertActivation& act, const at::Tensor& gate_up,
                               const at::Tensor& weights, at::Tensor& y) {
  kernel_for<&kernels::weighted_gated_activation>(gate_up)(act, gate_up, weights, y);
}

void weighted_gated_activation_backward(const ExpertActivation& act, const at::Tensor& dy,
                                        const at::Tensor& gate_up, const at::Tensor& weights,
                                        at::Tensor& d_gate_up, at::Tensor& d_weights,
                                        const at::Tensor& y) {
  kernel_for<&kernels::weighted_gated_activation_backward>(gate_up)(act, dy, gate_up, weights,
                                                                    d_gate_up, d_weights, y);
}

void grouped_linear(const at::Tensor& x, const std::vector<at::Tensor>& weights,
                    const GroupOffsets& offsets, bool accumulate, at::Tensor& y) {
  kernel_for<&kernels::grouped_linear>(x)(x, weights, offsets, accumulate, y);
}

void grouped_linear_backward_input(const at::Tensor& dy, const std::vector<at::Tensor>& weights,
                                   const GroupOffsets& offsets, at::Tensor& dx) {
  kernel_for<&kernels::grouped_linear_backward_input>(dy)(dy, weights, offsets, dx);
}

void grouped_linear_backward_weight(const at::Tensor& dy, const at::Tensor& x,
                                    const GroupOffsets& offsets,
                                    const std::vector<at::Tensor>& dweights, bool accumulate) {
  kernel_for<&kernels::grouped_linear_backward_weight>(dy)(dy, x, offsets, dweights, accumulate);
}

void grouped_bias(const at::Tensor& bias, const at::Tensor& weights, const GroupOffsets& offsets,
                  at::Tensor& y) {
  kernel_for<&kernels::grouped_bias>(bias)(bias, weights, offsets, y);
}

void grouped_bias_backward(const at::Tensor& dy, const at::Tensor& bias, const at::Tensor& weights,
                           const GroupOffsets& offsets, at::Tensor& dbias, bool accumulate,
                           at::Tensor d_weights) {
  kernel_for<&kernels::grouped_bias_backward>(dy)(dy, bias, weights, offsets, dbias, accumulate,
                                                  std::move(d_weights));
}

}  // namespace trireme::kernels
