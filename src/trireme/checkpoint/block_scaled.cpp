#include "trireme/checkpoint/block_scaled.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cfloat>
#include <cmath>
#include <limits>

#include "trireme/base/error.h"
#include "trireme/checkpoint/tensor_stream.h"

namespace trireme::checkpoint {

namespace {

constexpr const char* kDamaged = "the file is damaged; copy or download it again";

float decode_e4m3(int byte) {
  const int exponent = byte >> 3 & 15;
  const int mantissa = byte & 7;
  float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                  : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  if ((byte & 0x7f) == 0x7f) magnitude = std::numeric_limits<float>::quiet_NaN();
  return byte & 0x80 ? -magnitude : magnitude;
}

const std::array<float, 256>& e4m3_values() {
  static const std::array<float, 256> values = [] {
    std::array<float, 256> table{};
    for (size_t i = 0; i < table.size(); ++i) table[i] = decode_e4m3(static_cast<int>(i));
    return table;
  }();
  return values;
}

/// A byte of e2m1 pairs as its two numbers, the lower half first: sign, two bits of exponent with bias 1, one of mantissa.
const std::array<std::array<float, 2>, 256>& e2m1_pairs() {
  static const auto pairs = [] {
    static constexpr std::array<float, 8> kMagnitudes = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
    const auto value = [](size_t half) {
      return half & 8 ? -kMagnitudes[half & 7] : kMagnitudes[half & 7];
    };
    std::array<std::array<float, 2>, 256> table{};
    for (size_t i = 0; i < table.size(); ++i) table[i] = {value(i & 15), value(i >> 4)};
    return table;
  }();
  return pairs;
}

int64_t ceil_div(int64_t a, int64_t b) {
  return a / b + (a % b != 0 ? 1 : 0);
}

const uint8_t* bytes_of(const at::Tensor& tensor) {
  return static_cast<const uint8_t*>(tensor.const_data_ptr());
}

/// Numbers of a thread at least: below that, starting another takes longer.
constexpr int64_t kGrain = 1 << 15;

int64_t grain_of(int64_t numbers_each) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, numbers_each));
}

/// Multiplies `count` numbers that `number(i)` gives by their scale. False if one of the products is not finite.
template <typename Number>
bool scale_into(float* out, int64_t count, float factor, Number number) {
  bool finite = true;
  for (int64_t i = 0; i < count; ++i) {
    out[i] = number(i) * factor;
    finite &= std::fabs(out[i]) <= FLT_MAX;  // false for NaN
  }
  return finite;
}

/// Calls body(values, rows, row block) for every row of blocks of `weight`, as contiguous float32; from several threads, with as
/// many rows of blocks in memory as converting a stream keeps.
template <typename Body>
void for_row_blocks(const at::Tensor& weight, const BlockSize& block, Body body) {
  const int64_t rows = weight.size(0);
  const int64_t columns = weight.size(1);
  const int64_t numbers = block.rows * std::max<int64_t>(1, columns);
  const int64_t step = std::max<int64_t>(1, kPieceElements / numbers);
  for (int64_t first = 0; first * block.rows < rows; first += step) {
    const int64_t begin_row = first * block.rows;
    const int64_t count = std::min(step * block.rows, rows - begin_row);
    const at::Tensor values = weight.narrow(0, begin_row, count).to(at::kFloat).contiguous();
    const float* in = values.const_data_ptr<float>();
    at::parallel_for(0, ceil_div(count, block.rows), grain_of(numbers),
                     [&](int64_t begin, int64_t end) {
                       for (int64_t i = begin; i < end; ++i) {
                         const int64_t row = i * block.rows;
                         body(in + row * columns, std::min(block.rows, count - row), first + i);
                       }
                     });
  }
}

bool is_power_of_two(float value) {
  int exponent = 0;
  return value > 0 && std::frexp(value, &exponent) == 0.5f;
}

/// The least power of two whose 448fold is not below `largest`, of which a 448th is a normal number.
float power_of_two_above(float largest) {
  float scale = std::ldexp(1.0f, std::ilogb(largest / kE4m3Max));
  while (scale * kE4m3Max < largest) scale *= 2;  // the product is exact, or infinite
  return scale;
}

/// Whether all values of a block are, bit for bit, `scale` times a number of e4m3.
bool are_products(const float* in, int64_t rows, int64_t columns, int64_t stride, float scale) {
  if (!(scale > 0 && scale <= FLT_MAX)) return false;
  const std::array<float, 256>& value = e4m3_values();
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t at = 0; at < columns; ++at) {
      const float number = in[row * stride + at];
      if (value[e4m3_nearest(number / scale)] * scale != number) return false;
    }
  }
  return true;
}

}  // namespace

float e4m3_value(uint8_t byte) {
  return e4m3_values()[byte];
}

uint8_t e4m3_nearest(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint8_t>(bits >> 24 & 0x80);
  if (std::isnan(value)) return sign | 0x7f;
  const float magnitude = std::min(std::fabs(value), kE4m3Max);
  // Multiples of 2^-9 below the smallest normal number; eight of them are that number, byte 8.
  if (magnitude < 0x1p-6f) return sign | static_cast<uint8_t>(std::nearbyint(magnitude * 0x1p9f));
  auto kept = std::bit_cast<uint32_t>(magnitude);
  kept += 0x7ffff + (kept >> 20 & 1);  // to nearest even at three bits of mantissa
  return sign | static_cast<uint8_t>((kept >> 20) - ((127 - 7) << 3));
}

std::vector<int64_t> scale_shape(const std::vector<int64_t>& weight_shape, const BlockSize& block) {
  std::vector<int64_t> shape = weight_shape;
  const size_t rank = shape.size();
  TRIREME_CHECK(rank >= 2, "only matrices are cut into blocks");
  shape[rank - 2] = ceil_div(shape[rank - 2], block.rows);
  shape[rank - 1] = ceil_div(shape[rank - 1], block.columns);
  return shape;
}

at::Tensor dequantise_fp8(const at::Tensor& rows, const at::Tensor& scales, const BlockSize& block,
                          int64_t first_row) {
  TRIREME_CHECK(rows.dim() == 2 && rows.scalar_type() == at::kFloat8_e4m3fn && scales.dim() == 2,
                "a matrix of F8_E4M3 and its scales are needed");
  const int64_t num_rows = rows.size(0);
  const int64_t columns = rows.size(1);
  TRIREME_CHECK(scales.size(1) == ceil_div(columns, block.columns) &&
                    scales.size(0) >= ceil_div(first_row + num_rows, block.rows),
                "the scales are of another matrix");
  const at::Tensor stored = rows.contiguous();
  const at::Tensor factors = scales.to(at::kFloat).contiguous();
  at::Tensor result = at::empty({num_rows, columns}, at::kFloat);
  const std::array<float, 256>& value = e4m3_values();
  const uint8_t* in = bytes_of(stored);
  const float* scale = factors.const_data_ptr<float>();
  float* out = result.mutable_data_ptr<float>();
  const auto dequantise_row = [&](int64_t row) {
    const int64_t row_block = (first_row + row) / block.rows;
    for (int64_t at = 0; at < columns; at += block.columns) {
      const int64_t column_block = at / block.columns;
      const float factor = scale[row_block * scales.size(1) + column_block];
      TRIREME_USER_CHECK(factor >= 0 && std::isfinite(factor), kData, kDamaged,
                         "the scale of block [{}, {}] is {}", row_block, column_block, factor);
      const uint8_t* bytes = in + row * columns + at;
      const bool finite =
          scale_into(out + row * columns + at, std::min(block.columns, columns - at), factor,
                     [&](int64_t i) { return value[bytes[i]]; });
      TRIREME_USER_CHECK(finite, kData, kDamaged,
                         "block [{}, {}] has values that are not finite, with its scale of {}",
                         row_block, column_block, factor);
    }
  };
  at::parallel_for(0, num_rows, grain_of(columns), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) dequantise_row(row);
  });
  return result;
}

at::Tensor fp8_scales(const at::Tensor& weight, const BlockSize& block, const ScaleRule& rule) {
  at::Tensor scales = at::empty(scale_shape(weight.sizes().vec(), block), at::kFloat);
  TRIREME_CHECK(
      !rule.kept.defined() || (rule.kept.sizes() == scales.sizes() && rule.kept.is_contiguous() &&
                               rule.kept.scalar_type() == at::kFloat),
      "the scales to keep are of another matrix");
  const float* kept = rule.kept.defined() ? rule.kept.const_data_ptr<float>() : nullptr;
  float* scale = scales.mutable_data_ptr<float>();
  const int64_t columns = weight.size(1);
  const int64_t blocks = scales.size(1);
  for_row_blocks(weight, block, [&](const float* in, int64_t rows, int64_t row_block) {
    for (int64_t column_block = 0; column_block < blocks; ++column_block) {
      const int64_t begin = column_block * block.columns;
      const int64_t end = std::min(columns, begin + block.columns);
      float largest = 0;
      bool finite = true;
      for (int64_t row = 0; row < rows; ++row) {
        for (int64_t at = begin; at < end; ++at) {
          const float magnitude = std::fabs(in[row * columns + at]);
          finite = finite && magnitude <= FLT_MAX;  // false for NaN
          largest = std::max(largest, magnitude);
        }
      }
      TRIREME_USER_CHECK(finite, kNumerical, "fp8 holds finite weights only",
                         "block [{}, {}] has values that are not finite", row_block, column_block);
      const int64_t index = row_block * blocks + column_block;
      if (kept != nullptr && (!rule.powers_of_two || is_power_of_two(kept[index])) &&
          are_products(in + begin, rows, end - begin, columns, kept[index])) {
        scale[index] = kept[index];
        continue;
      }
      const float found = largest / kE4m3Max;
      // What is smaller has lost digits and would not divide well; such a block is as good as zero.
      scale[index] = found < FLT_MIN      ? 1.0f
                     : rule.powers_of_two ? power_of_two_above(largest)
                                          : found;
    }
  });
  return scales;
}

at::Tensor quantise_fp8(const at::Tensor& weight, const at::Tensor& scales,
                        const BlockSize& block) {
  TRIREME_CHECK(scales.sizes().vec() == scale_shape(weight.sizes().vec(), block) &&
                    scales.scalar_type() == at::kFloat && scales.is_contiguous(),
                "the scales are of another matrix");
  at::Tensor result = at::empty(weight.sizes(), at::kFloat8_e4m3fn);
  const int64_t columns = weight.size(1);
  const float* scale = scales.const_data_ptr<float>();
  auto* out = static_cast<uint8_t*>(result.mutable_data_ptr());
  const int64_t blocks = scales.size(1);
  for_row_blocks(weight, block, [&](const float* in, int64_t rows, int64_t row_block) {
    uint8_t* to = out + row_block * block.rows * columns;
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t at = 0; at < columns;) {
        const float divisor = scale[row_block * blocks + at / block.columns];
        for (const int64_t end = std::min(columns, at + block.columns); at < end; ++at)
          to[row * columns + at] = e4m3_nearest(in[row * columns + at] / divisor);
      }
    }
  });
  return result;
}

at::Tensor dequantise_mxfp4(const at::Tensor& blocks, const at::Tensor& scales,
                            int64_t first_block) {
  TRIREME_CHECK(blocks.scalar_type() == at::kByte && scales.scalar_type() == at::kByte &&
                    blocks.dim() >= 2 && blocks.size(-1) == kMxfp4Bytes &&
                    blocks.sizes().slice(0, blocks.dim() - 1) == scales.sizes(),
                "blocks of MXFP4 and their scales are needed");
  const at::Tensor stored = blocks.contiguous();
  const at::Tensor exponents = scales.contiguous();
  std::vector<int64_t> shape = scales.sizes().vec();
  shape.back() *= kMxfp4Block;
  at::Tensor result = at::empty(shape, at::kFloat);
  const auto& pairs = e2m1_pairs();
  const uint8_t* in = bytes_of(stored);
  const uint8_t* exponent = bytes_of(exponents);
  float* out = result.mutable_data_ptr<float>();
  const auto dequantise_block = [&](int64_t at) {
    TRIREME_USER_CHECK(exponent[at] != 255, kData, kDamaged, "the scale of block {} is NaN",
                       first_block + at);
    const bool finite = scale_into(
        out + at * kMxfp4Block, kMxfp4Block, std::ldexp(1.0f, exponent[at] - 127),
        [bytes = in + at * kMxfp4Bytes, &pairs](int64_t i) { return pairs[bytes[i / 2]][i % 2]; });
    TRIREME_USER_CHECK(finite, kData, kDamaged,
                       "block {} has values that are not finite, with its scale of 2^{}",
                       first_block + at, exponent[at] - 127);
  };
  at::parallel_for(0, scales.numel(), grain_of(kMxfp4Block), [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; ++at) dequantise_block(at);
  });
  return result;
}

}  // namespace trireme::checkpoint
