#include "trireme/kernels/ops.h"

#include <fmt/format.h>

namespace trireme::kernels {

const char* to_string(Op op) {
  switch (op) {
    case Op::kRmsNorm:
      return "rms_norm";
    case Op::kLayerNorm:
      return "layer_norm";
    case Op::kActivation:
      return "activation";
    case Op::kGatedActivation:
      return "gated_activation";
    case Op::kRotary:
      return "rotary";
    case Op::kEmbedding:
      return "embedding";
    case Op::kAttention:
      return "attention";
    case Op::kLinear:
      return "linear";
    case Op::kLinearCrossEntropy:
      return "linear_cross_entropy";
    case Op::kAdamW:
      return "adamw";
  }
  return "?";
}

std::optional<std::string> unsupported_reason(Op op, at::ScalarType dtype, at::Device device) {
  if (!device.is_cpu()) {
    return fmt::format("{} has a CPU kernel only, the tensors are on {}", to_string(op),
                       device.str());
  }
  if (op == Op::kAdamW) {
    if (dtype == at::kFloat) return std::nullopt;
    return fmt::format("{} keeps weights and states in float32, not {}", to_string(op),
                       c10::toString(dtype));
  }
  if (dtype == at::kFloat || dtype == at::kBFloat16) return std::nullopt;
  return fmt::format("{} computes in float32 or bfloat16, not {}", to_string(op),
                     c10::toString(dtype));
}

}  // namespace trireme::kernels
