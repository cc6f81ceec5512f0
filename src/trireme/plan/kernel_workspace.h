// Workspace that the kernels hold while they run, without asking them: torch-free.
//
// Mirrors what kernels/cpu allocates; a test beside the executor holds the two together.
#pragma once

#include <cstdint>

#include "trireme/model/model_spec.h"

namespace trireme::plan {

enum class Precision { kFp32, kBf16 };

/// How this machine multiplies matrices (kernels/cpu/product.h).
enum class FloatProduct { kMkl, kPanels };
enum class Bf16Product { kConvert, kMkl, kPanels };

/// Size in memory of a tensor of `bytes`: the allocator hands out multiples of 64.
int64_t tensor_bytes(int64_t bytes);

/// What the kernels' workspace depends on beside shapes, and the workspace, in bytes. The defaults
/// are a machine that nobody has asked.
struct KernelWorkspace {
  /// False: the kernels hold nothing in the device's memory but what they are given (sim: the host's), and all below is 0.
  bool in_device_memory = true;
  int threads = 2;
  FloatProduct float32 = FloatProduct::kMkl;
  Bf16Product bfloat16 = Bf16Product::kConvert;

  /// y [rows, cols] = x [rows, inner] times a matrix, of the compute dtype.
  int64_t product(int64_t rows, int64_t cols, int64_t inner, Precision precision) const;
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
  /// dW [groups, out, in] of `rows` rows in all.
  int64_t grouped_weight(int64_t rows, int64_t groups, int64_t in, Precision precision) const;
};

}  // namespace trireme::plan
