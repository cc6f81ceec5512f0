// Weights stored as small numbers beside scales: fp8 in blocks of a matrix as DeepSeek-V3 publishes them, and MXFP4 (OCP Microscaling
// formats, v1.0) as gpt_oss does. The functions block, use the threads of at::get_num_threads() and give the same bits with any number
// of them.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace trireme::checkpoint {

/// The number that a byte of F8_E4M3 is: sign, four bits of exponent with bias 7, three of mantissa; no infinities, 0x7f and 0xff
/// are NaN, the largest is 448.
float e4m3_value(uint8_t byte);

/// The byte nearest to `value`, the even one of two; beyond 448 (infinity included) that of 448. NaN stays NaN.
uint8_t e4m3_nearest(float value);

inline constexpr float kE4m3Max = 448.0f;

/// The tile of a matrix that shares a scale; smaller at the matrix's lower and right edge.
struct BlockSize {
  int64_t rows = 128;
  int64_t columns = 128;
};

/// Shape of the scales of a weight [..., rows, columns]: [..., ceil(rows / block.rows), ceil(columns / block.columns)].
std::vector<int64_t> scale_shape(const std::vector<int64_t>& weight_shape, const BlockSize& block);

/// Rows `first_row`, ... of a weight: [rows, columns] of F8_E4M3 times the scales (any floating type) of the *whole* weight, as
/// float32; each product is rounded once. Error{kData} naming a block whose scale is negative or not finite, or that has a product
/// that is not finite: bytes that are NaN, and products that float32 does not hold.
at::Tensor dequantise_fp8(const at::Tensor& rows, const at::Tensor& scales, const BlockSize& block,
                          int64_t first_row = 0);

/// How the scale of a block is chosen. A scale that is kept counts where the block is exactly that scale times numbers of e4m3, as after
/// dequantisation; every other block gets a new one.
struct ScaleRule {
  bool powers_of_two =
      false;  ///< "ue8m0": only scales that are powers of two, the least that is not below the quotient
  at::Tensor kept =
      {};  ///< scale_shape() of float32, contiguous, on the CPU; undefined: none is kept
};

/// Scales for a weight [rows, columns] of a floating type, on the CPU: the largest magnitude of a block divided by 448; 1 for a block
/// of zeros. Such a scale is found again in the dequantised weight; so are the values of a block that was quantised with powers of two.
/// Works through the weight by rows of blocks. Error{kNumerical} for values that are not finite.
at::Tensor fp8_scales(const at::Tensor& weight, const BlockSize& block, const ScaleRule& rule = {});

/// The weight as F8_E4M3: each value divided by its block's scale, then rounded to nearest even.
at::Tensor quantise_fp8(const at::Tensor& weight, const at::Tensor& scales, const BlockSize& block);

/// Values of one MXFP4 block, and the bytes that hold them.
inline constexpr int64_t kMxfp4Block = 32;
inline constexpr int64_t kMxfp4Bytes = 16;

/// [..., groups, 16] bytes, each two e2m1 numbers with the first in the lower half, times 2^(scales - 127) with scales [..., groups]
/// of bytes: [..., groups x 32] of float32, exact. Error{kData} for the scale 255, which is not a number, and for products that float32
/// does not hold (from 2^128 on, with scales from 253 on). It names a block by its number in row-major order, where the first has the number
/// `first_block`.
at::Tensor dequantise_mxfp4(const at::Tensor& blocks, const at::Tensor& scales,
                            int64_t first_block = 0);

}  // namespace trireme::checkpoint
