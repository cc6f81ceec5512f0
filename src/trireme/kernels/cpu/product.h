// How bfloat16 products are computed on this machine.
//
// All ways multiply bfloat16 values exactly and accumulate in float32. Which is quickest depends on the CPU: without
// AMX an Intel core multiplies bfloat16 at half its float32 rate (166 against 300 GF/s on two cores), an AMD core with
// avx512_bf16 at two to three times.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

namespace trireme::kernels::cpu {

enum class Bf16Product {
  kConvert,  ///< widen panels to float32, then the float32 product
  kMkl,      ///< MKL's bfloat16 product with float32 result
  kOneDnn  ///< at::mm on bfloat16 (float32 accumulation, bfloat16 result); not for weight gradients
};
const char* to_string(Bf16Product product);

struct Bf16Choice {
  Bf16Product activations;  ///< y = x W^T and dx = dy W
  Bf16Product weights;      ///< dW = dy^T x, float32 result
};

/// The choice in force: default_bf16_choice() unless set_bf16_choice came before. Thread-safety: any thread.
Bf16Choice bf16_choice();
void set_bf16_choice(Bf16Choice choice);

/// What the processor's kind says. A rule and not a measurement: a busy machine must not change a run's bits.
Bf16Choice default_bf16_choice();

/// Rows of a float32 panel when bfloat16 is widened: bounds the workspace.
inline constexpr int64_t kPanelRows = 512;

/// Below this many rows MKL takes another path, with other last bits (below inner / 25 for A B^T, measured; inner is at
/// most 384 in one call): products are padded to it.
inline constexpr int64_t kMinRows = 16;

/// `rows` rows of src and zeros up to kMinRows, [kMinRows, cols].
at::Tensor padded_rows(const at::BFloat16* src, int64_t src_stride, int64_t rows, int64_t cols);

/// Widens a [rows, cols] bfloat16 matrix on all threads.
void widen(const at::BFloat16* src, int64_t src_stride, float* dst, int64_t rows, int64_t cols);
/// Rounds a [rows, cols] float32 matrix on all threads.
void round_rows(const float* src, int64_t src_stride, at::BFloat16* dst, int64_t dst_stride,
                int64_t rows, int64_t cols);

}  // namespace trireme::kernels::cpu
