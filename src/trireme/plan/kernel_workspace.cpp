#include "trireme/plan/kernel_workspace.h"

namespace trireme::plan {

int64_t product_workspace_bytes(int64_t, int64_t, int64_t, Precision) {
  return 0;
}

int64_t attention_workspace_bytes(int64_t, int64_t, int64_t, int64_t, int64_t, Precision, bool) {
  return 0;
}

int64_t cross_entropy_workspace_bytes(int64_t chunk_rows, int64_t vocab_size, int64_t,
                                      Precision precision) {
  // Logits in float32, turned into their gradient in place; bf16 products need a rounded copy.
  const int64_t element = precision == Precision::kBf16 ? 4 + 2 : 4;
  return chunk_rows * vocab_size * element;
}

int64_t norm_backward_workspace_bytes(int64_t hidden, model::NormKind kind) {
  return kind == model::NormKind::kLayerNorm ? 2 * 4 * hidden : 4 * hidden;
}

}  // namespace trireme::plan
