// The contract of the kernels of a mixture of experts: choice of experts, rows sorted by expert, products by group.
//
// The conventions of ops.h hold. Rows of all experts lie in one matrix, one expert after the other; what an expert
// computes for a row does not depend on which or how many other rows it has.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "trireme/kernels/ops.h"

namespace trireme::kernels {

// --- Choice of experts --------------------------------------------------------------------------

enum class RouterScore { kSoftmax, kSigmoid };

/// How logits become chosen experts and their weights. score s = softmax or sigmoid of the logits.
struct RouterOptions {
  RouterScore score = RouterScore::kSoftmax;
  int64_t top_k = 1;
  bool softmax_after_top_k = false;  ///< weights are the softmax of the chosen logits alone
  bool normalize = false;            ///< weights are divided by their sum
  double scaling = 1.0;              ///< multiplies the weights, last
  int64_t num_groups = 1;            ///< of experts; only the best `top_groups` are chosen from
  int64_t top_groups = 1;
  bool group_score_top2 = false;  ///< a group's score is the sum of its two best, else its best
};

/// logits float32 [N, E]; selection_bias float32 [E] or undefined: added to the scores for the choice alone (Wang et
/// al., arXiv 2408.15664). choice int64 [N, k]: the experts of a row, best first, the lower number among equals.
/// weights float32 [N, k].
void route(const at::Tensor& logits, const at::Tensor& selection_bias, const RouterOptions& options,
           at::Tensor& choice, at::Tensor& weights);

/// d_logits float32 [N, E] = gradient through the weights (d_weights float32 [N, k]), plus, where d_scores float32
/// [sets, E] is defined, through every row's shares of all experts (see balance(); rows of a set are adjacent), plus
/// z_gradient * 2 logsumexp(logits) softmax(logits). The choice is a constant.
void route_backward(const at::Tensor& logits, const at::Tensor& choice, const at::Tensor& d_weights,
                    const RouterOptions& options, const at::Tensor& d_scores, double z_gradient,
                    at::Tensor& d_logits);

/// What a router's choice looks like, and its balancing losses without their coefficients.
struct RouterBalance {
  std::vector<int64_t> load;  ///< [E]: rows that chose the expert
  double loss = 0.0;          ///< E / k * sum over e of f_e P_e, 1 when even; the mean over sets
  double z_loss = 0.0;        ///< mean of logsumexp(logits)^2 (Zoph et al., arXiv 2202.08906)
  double entropy = 0.0;       ///< mean over rows of -sum of P log P, nats
  at::Tensor d_scores;        ///< float32 [sets, E]: d loss / d share of a row
};

/// The load-balancing loss of Fedus et al. (arXiv 2101.03961) with f_e = load_e / N over the k choices and P_e the mean
/// of the rows' shares: softmax, or sigmoid over its sum. `sets` divides N: with more than one, the loss is each set's
/// own (a sequence's: DeepSeek-V3, arXiv 2412.19437). `load_of_all` (empty, or [E] and sets = 1) takes the place of
/// this batch's counts in f (a global batch's: Qiu et al., arXiv 2501.11873).
RouterBalance balance(const at::Tensor& logits, const at::Tensor& choice,
                      const RouterOptions& options, int64_t sets,
                      const std::vector<int64_t>& load_of_all = {});

// --- Rows sorted by expert ----------------------------------------------------------------------

/// Rows of group g are offsets[g] .. offsets[g + 1] - 1; offsets[0] is 0.
using GroupOffsets = std::vector<int64_t>;

struct ExpertRows {
  GroupOffsets offsets;  ///< [E + 1]
  at::Tensor tokens;     ///< int64 [M]: whose row it is, ascending within an expert; -1: padding
  at::Tensor rows;       ///< int64 [N, k]: the row of a token's choice; -1: dropped
  int64_t dropped = 0;
  int64_t count() const { return offsets.back(); }
};

/// Sorts the choices by expert. capacity > 0: an expert keeps its `capacity` choices of largest weight (the earlier
/// token among equals) and drops the others; with `pad` it has exactly that many rows. capacity 0: nothing is dropped.
ExpertRows sort_by_expert(const at::Tensor& choice, const at::Tensor& weights, int64_t num_experts,
                          int64_t capacity, bool pad);

/// y[m] = x[tokens[m]], zero for padding. x [N, d], y [M, d] contiguous.
void gather_rows(const at::Tensor& x, const ExpertRows& rows, at::Tensor& y);

/// out[n] = start[n] + sum over j of y[rows[n, j]], in float32 and in order of j, rounded once. start [N, d] may be out
/// or undefined. y [M, d].
void sum_rows(const at::Tensor& y, const ExpertRows& rows, const at::Tensor& start,
              at::Tensor& out);

/// of_rows[m] = weights[n, j] with m = rows[n, j], zero for padding. Float32.
void weights_of_rows(const at::Tensor& weights, const ExpertRows& rows, at::Tensor& of_rows);
/// The reverse: zero where the choice was dropped.
void weights_of_choices(const at::Tensor& of_rows, const ExpertRows& rows, at::Tensor& weights);

// --- Gated activation with a weight a row --------------------------------------------------------

struct ExpertActivation {
  Activation activation = Activation::kSilu;
  /// > 0 (gpt_oss): (clamp(up) + 1) * g * sigmoid(1.702 g) with g = min(gate, limit), whatever `activation` says.
  double clamp_limit = 0.0;
};

/// y = w * act(gate) * up. gate_up [M, 2f] = gate | up, weights float32 [M], y [M, f].
void weighted_gated_activation(const ExpertActivation& act, const at::Tensor& gate_up,
                               const at::Tensor& weights, at::Tensor& y);
/// d_gate_up may be gate_up. d_weights float32 [M], overwritten. y defined: the forward's result again (may be dy).
void weighted_gated_activation_backward(const ExpertActivation& act, const at::Tensor& dy,
                                        const at::Tensor& gate_up, const at::Tensor& weights,
                                        at::Tensor& d_gate_up, at::Tensor& d_weights,
                                        const at::Tensor& y = {});

// --- Products by group --------------------------------------------------------------------------
// `weights`: one or more tensors [G, out_p, in] whose rows follow one another (gate, up); out is the sum of out_p. The
// last dimension is contiguous in all. A group without rows costs nothing.

/// y[m] = W_g x[m] (+ y[m]). x [M, in], y [M, out], compute dtype.
void grouped_linear(const at::Tensor& x, const std::vector<at::Tensor>& weights,
                    const GroupOffsets& offsets, bool accumulate, at::Tensor& y);
/// dx[m] = W_g^T dy[m].
void grouped_linear_backward_input(const at::Tensor& dy, const std::vector<at::Tensor>& weights,
                                   const GroupOffsets& offsets, at::Tensor& dx);
/// dW_g = sum over its rows of dy[m] x[m]^T, in order, or added to it. dweights float32 [G, out_p, in]. A group without
/// rows becomes zero unless `accumulate`. Workspace: grouped_weight_workspace_bytes.
void grouped_linear_backward_weight(const at::Tensor& dy, const at::Tensor& x,
                                    const GroupOffsets& offsets,
                                    const std::vector<at::Tensor>& dweights, bool accumulate);
/// At most, for `rows` rows in `groups` groups.
int64_t grouped_weight_workspace_bytes(int64_t rows, int64_t groups, int64_t in,
                                       at::ScalarType dtype);

/// y[m] = w[m] * bias_g (w undefined: 1). bias [G, n] compute dtype; weights float32 [M].
void grouped_bias(const at::Tensor& bias, const at::Tensor& weights, const GroupOffsets& offsets,
                  at::Tensor& y);
/// dbias[g] = sum over its rows of w[m] dy[m], or added to it; dbias float32 [G, n]. d_weights[m] += dy[m] . bias_g
/// where defined (float32 [M]); else only the bias's shape counts, and it may have no data.
void grouped_bias_backward(const at::Tensor& dy, const at::Tensor& bias, const at::Tensor& weights,
                           const GroupOffsets& offsets, at::Tensor& dbias, bool accumulate,
                           at::Tensor d_weights);

}  // namespace trireme::kernels
