// Floating-point operations of a model: what one token costs, and where.
//
// Counted are products (2 operations per multiply-add) of matrices with activations and of
// attention's scores and values with causal masking; element-wise work is not. The head counts as a
// product also where it is tied; a token's embedding row is a look-up. With T the sequence length,
// an attention layer of width a = heads * head_dim has on average T/2 keys per query (the exact (T
// + 1)/2 rounded as the literature does): 2 * (2 * T/2 * a) = 2 T a forward. Backward costs twice
// the forward.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trireme/model/model_spec.h"

namespace trireme::model {

/// Operations per token.
struct TokenFlops {
  double forward = 0.0;
  double backward_input =
      0.0;  ///< products with the transposed weights; all of attention's backward
  double backward_weight = 0.0;
  /// Forward again: hardware's work, not the model's. A part's last product is left out, because
  /// nothing needs its result a second time.
  double recompute = 0.0;
  double backward() const { return backward_input + backward_weight; }
  double model() const { return forward + backward(); }
  double hardware() const { return model() + recompute; }
};

/// One part at sequence length `seq_len` (recompute is 0). The head's part holds the head's
/// product.
TokenFlops part_flops(const ModelSpec& spec, int part, int64_t seq_len);

/// The whole model. `recomputed` has one entry per part (or none at all): its recomputation is
/// added.
TokenFlops flops_per_token(const ModelSpec& spec, int64_t seq_len,
                           const std::vector<bool>& recomputed = {});

/// Parameters of all products that a token takes part in: of routed experts top_k, the head's included (once more where
/// it is tied, and for every multi-token-prediction layer).
int64_t product_parameters(const ModelSpec& spec);

/// The formula with this model's numbers, one line per term, for people.
std::string flops_formula(const ModelSpec& spec, int64_t seq_len,
                          const std::vector<bool>& recomputed = {});

}  // namespace trireme::model
