// What the parts of a MoE layer hand on beside the hidden state: router -> dispatch -> experts -> combine, and back.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "trireme/kernels/moe_ops.h"

namespace trireme::nn {

/// A router's figures for one micro-batch.
struct RouterStatistics {
  std::vector<int64_t> load;  ///< [E]: tokens that chose the expert, dropped ones included
  int64_t dropped = 0;        ///< choices that no expert took
  double balance_loss = 0.0;  ///< without its coefficient; 1 when even
  double z_loss = 0.0;        ///< without its coefficient
  double entropy = 0.0;       ///< nats, of a token's shares of all experts
};

/// Of one layer and one micro-batch (N tokens, k experts a token, M rows of experts). Whoever reads a tensor last drops
/// it. Thread-safety: the step thread only.
struct MoeFlow {
  // Forward.
  at::Tensor residual;  ///< [N, d]: the layer's input; router -> combine
  at::Tensor normed;    ///< [N, d]: what the experts see; router -> dispatch, combine
  at::Tensor weights;   ///< float32 [N, k]; router -> experts
  kernels::ExpertRows rows;
  RouterStatistics statistics;
  // Experts that are spread over ranks: rows travel with their weights. A dispatch makes these for what leaves; experts find those
  // of the rows that came, of which `rows` has the offsets alone.
  at::Tensor row_weights;  ///< float32 [M]
  at::Tensor into;         ///< [M, d]: where experts write their output; undefined: a new tensor
  // Backward.
  at::Tensor
      grad_output;  ///< [N, d]: of the layer's output; combine -> router (the residual branch)
  at::Tensor
      d_normed;  ///< [N, d]: through the shared expert, undefined without; combine -> dispatch
  at::Tensor d_weights;  ///< float32 [N, k]; experts -> router
  at::Tensor d_into;     ///< [M, d]: as `into`, of the gradient of experts' input
  at::Tensor
      d_row_weights;  ///< float32 [M]: as row_weights, written by experts, read by a dispatch
};

}  // namespace trireme::nn
