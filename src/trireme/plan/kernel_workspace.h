// Workspace that the kernels hold while they run, without asking them: torch-free.
//
// Mirrors what kernels/cpu allocates, which tests beside the executor hold together with the kernels; other kernels say
// themselves what they hold (kernels/plugin.h).
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>

#include "trireme/model/model_spec.h"

namespace trireme::plan {

enum class Precision { kFp32, kBf16 };

/// How this machine multiplies matrices (kernels/cpu/product.h).
enum class FloatProduct { kMkl, kPanels };
enum class Bf16Product { kConvert, kMkl, kPanels };

/// Size in memory of a tensor of `bytes`: the allocator hands out multiples of 64.
int64_t tensor_bytes(int64_t bytes);

/// Ops whose workspace is large enough to plan.
enum class WorkspaceOp {
  kLinear,
  kLinearWeight,  ///< gradient
  kBiasGradient,
  kRmsNormBackward,
  kLayerNormBackward,
  kEmbeddingBackward,
  kAttention,
  kAttentionBackward,
  kCrossEntropy,
  kGroupedLinear,
  kGroupedInput,  ///< gradient
  kGroupedWeight  ///< gradient
};

/// Sizes of a call; 0: it has no such size.
struct KernelCall {
  Precision precision = Precision::kFp32;
  int64_t rows = 0;  ///< tokens, or rows of all experts
  int64_t in = 0;    ///< width of x, of the norm, of the head's hidden states
  int64_t out = 0;   ///< width of y; size of the vocabulary
  int64_t groups = 0;
  int64_t parts = 1;       ///< matrices side by side in one call of experts
  int64_t chunk_rows = 0;  ///< of logits at once
  bool bias_and_residual = false;
  int64_t batch = 0;
  int64_t places = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t value_dim = 0;
  bool softcap = false;
  bool sinks = false;
};

/// What kernels state of the device's memory, in bytes.
using StatedWorkspace = std::map<WorkspaceOp, std::function<int64_t(const KernelCall&)>>;

/// What the kernels' workspace depends on beside shapes, and the workspace, in bytes. The defaults
/// are a machine that nobody has asked.
struct KernelWorkspace {
  /// False: no kernel holds what kernels/cpu would, and what is not stated below is 0.
  bool in_device_memory = true;
  int threads = 2;
  FloatProduct float32 = FloatProduct::kMkl;
  Bf16Product bfloat16 = Bf16Product::kConvert;
  Precision precision = Precision::kFp32;  ///< of calls below that do not say theirs
  /// Of kernels that are not kernels/cpu's; null: there are none.
  std::shared_ptr<const StatedWorkspace> stated;
  /// Held from the first product on, as long as the process: of a vendor's libraries.
  int64_t library_bytes = 0;

  /// y [rows, cols] = x [rows, inner] times a matrix, of the compute dtype; `bias_and_residual`: plus both.
  int64_t product(int64_t rows, int64_t cols, int64_t inner, Precision precision,
                  bool bias_and_residual = false) const;
  /// dW [out, in] of `rows` rows.
  int64_t weight_product(int64_t rows, int64_t out, int64_t in, Precision precision) const;
  int64_t attention(int64_t batch, int64_t seq_len, const model::AttentionSpec& spec,
                    Precision precision, bool backward) const;
  /// Loss and both gradients, `chunk_rows` rows of logits at once.
  int64_t cross_entropy(int64_t chunk_rows, int64_t vocab_size, int64_t hidden,
                        Precision precision) const;
  /// Gradients of a norm's weight (and bias) over `rows` rows of `width`.
  int64_t norm_backward(int64_t rows, int64_t width, const model::NormSpec& norm) const;
  int64_t bias_gradient(int64_t rows, int64_t width) const;
  /// dweight [vocab, d] of `rows` tokens.
  int64_t embedding_gradient(int64_t rows, int64_t vocab) const;
  /// y [rows, out] of `rows` rows in all; `parts` matrices side by side.
  int64_t grouped_product(int64_t rows, int64_t groups, int64_t in, int64_t out, int64_t parts,
                          Precision precision) const;
  /// dx [rows, in] of as many; an even load.
  int64_t grouped_input(int64_t rows, int64_t groups, int64_t in, int64_t out, int64_t parts,
                        Precision precision) const;
  /// dW [groups, out, in] of `rows` rows in all.
  int64_t grouped_weight(int64_t rows, int64_t groups, int64_t in, int64_t out, int64_t parts,
                         Precision precision) const;

 private:
  int64_t attention_of_cpu(int64_t batch, int64_t seq_len, const model::AttentionSpec& spec,
                           Precision precision, bool backward) const;
  int64_t cross_entropy_of_cpu(int64_t chunk_rows, int64_t vocab_size, int64_t hidden,
                               Precision precision) const;
  /// What the op's kernel states; else `of_cpu`, or 0 where kernels/cpu runs nothing.
  int64_t ask(WorkspaceOp op, const KernelCall& call, const std::function<int64_t()>& of_cpu) const;
};

}  // namespace trireme::plan
