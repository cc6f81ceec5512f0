// Row and range kernels shared inside this folder: plain pointers, single-threaded, vectorised for
// the machine's instruction set.
#pragma once

#include <c10/util/BFloat16.h>

#include <cstddef>
#include <cstdint>

namespace trireme::kernels::cpu {

/// AdamW's coefficients of one step, rounded once.
struct AdamWConstants {
  float gradient_scale;
  float one_minus_beta1;
  float beta2;
  float one_minus_beta2;
  float sqrt_correction2;
  float eps;
  float decay;
  float negative_step_size;
};

template <class T>
struct FlatKernels {
  /// out[r] = bias + residual[r], either may be null.
  void (*start_rows)(const T* bias, const T* residual, int64_t residual_stride, float* out,
                     int64_t out_stride, size_t rows, size_t cols);
  /// sums[i] += x[i]
  void (*add_columns)(const T* x, size_t n, float* sums);
  /// out[i] = a[i] + b[i]
  void (*sum_two)(const T* a, const T* b, size_t n, T* out);
  /// Rotates the pairs (x[i], x[half + i]).
  void (*rotate_head)(T* x, const float* cos, const float* sin, size_t half, float sign);
  /// Rotates the pairs (x[2 i], x[2 i + 1]).
  void (*rotate_pairs)(T* x, const float* cos, const float* sin, size_t half, float sign);
};
const FlatKernels<float>& flat_kernels(float);
const FlatKernels<at::BFloat16>& flat_kernels(at::BFloat16);

void rows_to_bf16(const float* src, int64_t src_stride, at::BFloat16* dst, int64_t dst_stride,
                  int64_t rows, int64_t cols);
void rows_to_f32(const at::BFloat16* src, int64_t src_stride, float* dst, int64_t dst_stride,
                 int64_t rows, int64_t cols);
/// to[2 i] = first[i], to[2 i + 1] = second[i].
void interleave_rows(const at::BFloat16* first, const at::BFloat16* second, size_t n,
                     at::BFloat16* to);

}  // namespace trireme::kernels::cpu
