// Forward and backward of a whole model through its parts, without a program: what goldens and the
// live parity check compare with transformers.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <vector>

#include "trireme/nn/model.h"

namespace trireme::testing {

struct ForwardBackward {
  at::Tensor logits;                            ///< float32 [rows, length, vocabulary]
  double loss = 0.0;                            ///< mean next-token loss of all rows
  std::map<std::string, at::Tensor> gradients;  ///< by parameter name, float32, our layout
};

/// `ids` are rows of one length. Position t predicts ids[t + 1]; the last position predicts
/// nothing. The balancing losses of all layers, multiplied with `balance_share`, are part of the loss: 0 as transformers
/// has it where it is not asked for them.
ForwardBackward forward_backward(nn::Model& model, const std::vector<std::vector<int32_t>>& ids,
                                 nn::SaveMode mode = nn::SaveMode::kAll,
                                 double balance_share = 0.0);

}  // namespace trireme::testing
