#include "trireme/checkpoint/block_scaled.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "trireme/base/error.h"
#include "trireme/base/file.h"
#include "trireme/base/json.h"

namespace trireme::checkpoint {
namespace {

using ::testing::HasSubstr;

/// Made by torch and transformers (tests/goldens/make_quantised_goldens.py).
const Json& goldens() {
  static const Json json =
      parse_json(read_file(TRIREME_SOURCE_DIR "/tests/goldens/quantised.json"), "quantised.json");
  return json;
}

uint32_t bits_of(float value) {
  return std::bit_cast<uint32_t>(value);
}

at::Tensor bytes_tensor(const Json& values, at::IntArrayRef shape) {
  return at::tensor(values.get<std::vector<int64_t>>()).to(at::kByte).reshape(shape);
}

at::Tensor floats_tensor(const Json& bits, at::IntArrayRef shape) {
  std::vector<float> values;
  for (const Json& value : bits) values.push_back(std::bit_cast<float>(value.get<uint32_t>()));
  return at::tensor(values).reshape(shape);
}

at::Tensor as_fp8(const at::Tensor& bytes) {
  return bytes.view(at::kFloat8_e4m3fn);
}

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.sizes() == b.sizes() &&
         at::equal(a.contiguous().view(at::kInt), b.contiguous().view(at::kInt));
}

/// The plain reference: every element's scale is looked up by itself.
at::Tensor scale_of_elements(const at::Tensor& scales, const BlockSize& block, int64_t rows,
                             int64_t columns) {
  return scales.repeat_interleave(block.rows, 0)
      .repeat_interleave(block.columns, 1)
      .slice(0, 0, rows)
      .slice(1, 0, columns);
}

TEST(BlockScaled, EveryByteIsItsNumber) {
  const Json& golden = goldens()["e4m3"]["values"];
  ASSERT_EQ(golden.size(), 256u);
  for (int byte = 0; byte < 256; ++byte) {
    const float value = e4m3_value(static_cast<uint8_t>(byte));
    const float expected = std::bit_cast<float>(golden[static_cast<size_t>(byte)].get<uint32_t>());
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(value)) << byte;
      EXPECT_EQ(byte & 0x7f, 0x7f);
      EXPECT_EQ(e4m3_nearest(value) & 0x7f, 0x7f);
    } else {
      EXPECT_EQ(bits_of(value), bits_of(expected)) << byte;
      EXPECT_EQ(e4m3_nearest(value), byte) << "a number is nearest to itself";
    }
  }
}

/// Bytes of e4m3 that are numbers, up to the magnitude of byte `limit`.
at::Tensor random_bytes(int64_t rows, int64_t columns, int64_t limit) {
  return at::randint(0, limit + 1, {rows, columns})
      .add(at::randint(0, 2, {rows, columns}).mul(128))
      .to(at::kByte);
}

TEST(BlockScaled, PowersOfTwoAreTheLeastThatHold) {
  at::manual_seed(5);
  const BlockSize block{4, 8};
  for (int trial = 0; trial < 200; ++trial) {
    const float magnitude = std::ldexp(1.0f + static_cast<float>(trial) / 200, trial - 110);
    const at::Tensor weight = at::randn({4, 8}) * magnitude;
    const float largest = weight.abs().max().item<float>();
    const float scale = fp8_scales(weight, block, {.powers_of_two = true}).item<float>();
    int exponent = 0;
    EXPECT_EQ(std::frexp(scale, &exponent), 0.5f) << scale;
    EXPECT_GE(448.0 * scale, largest);
    EXPECT_LT(224.0 * scale, largest);
  }
  // At the edge: 448 itself, and the next number.
  const auto of = [&](float value) {
    return fp8_scales(at::full({1, 1}, value), block, {.powers_of_two = true}).item<float>();
  };
  EXPECT_EQ(of(448.0f), 1.0f);
  EXPECT_EQ(of(std::nextafter(448.0f, 1e9f)), 2.0f);
  EXPECT_EQ(of(0.0f), 1.0f);
  EXPECT_EQ(of(std::numeric_limits<float>::max()), 0x1p120f);
}

TEST(BlockScaled, WhatHadPowersOfTwoKeepsItsValues) {
  at::manual_seed(6);
  const BlockSize block{16, 16};
  for (const int64_t limit : {int64_t{0x7e}, int64_t{0x76}, int64_t{0x40}, int64_t{3}}) {
    const at::Tensor bytes = random_bytes(50, 70, limit);
    bytes[0][0].fill_(limit);
    const at::Tensor scales = at::pow(2.0, at::randint(-20, 4, {4, 5}).to(at::kFloat));
    const at::Tensor weight = dequantise_fp8(as_fp8(bytes), scales, block);
    const at::Tensor found = fp8_scales(weight, block, {.powers_of_two = true});
    const at::Tensor written = quantise_fp8(weight, found, block);
    EXPECT_TRUE(same_bits(dequantise_fp8(written, found, block), weight)) << limit;
    if (limit < 0x77) continue;  // 240 is byte 0x77: above half of 448 the scale itself is found
    EXPECT_EQ(found[0][0].item<float>(), scales[0][0].item<float>());
    EXPECT_TRUE(at::equal(written.view(at::kByte).slice(0, 0, 16).slice(1, 0, 16),
                          bytes.slice(0, 0, 16).slice(1, 0, 16)));
  }
}

TEST(BlockScaled, KeepsScalesOfBlocksThatAreAsTheyWere) {
  at::manual_seed(7);
  const BlockSize block{16, 16};
  for (int trial = 0; trial < 20; ++trial) {
    const int64_t rows = 33 + trial, columns = 90 - trial;
    const at::Tensor bytes = random_bytes(rows, columns, 10 + 5 * trial);
    const at::Tensor kept = at::rand(scale_shape({rows, columns}, block)) * 0.01 + 1e-6;
    at::Tensor weight = dequantise_fp8(as_fp8(bytes), kept, block);
    EXPECT_TRUE(same_bits(fp8_scales(weight, block, {.kept = kept}), kept));
    EXPECT_TRUE(at::equal(quantise_fp8(weight, kept, block).view(at::kByte), bytes));
    // Powers of two are asked for, and these are none.
    const at::Tensor none = fp8_scales(weight, block, {.powers_of_two = true, .kept = kept});
    EXPECT_TRUE(same_bits(none, fp8_scales(weight, block, {.powers_of_two = true})));
    // A block that has moved by the least that it can gets the scale that it would have.
    weight[20][30] = std::nextafter(std::max(weight[20][30].item<float>(), 1e-3f), 1.0f);
    const at::Tensor found = fp8_scales(weight, block, {.kept = kept});
    const at::Tensor moved = weight.slice(0, 16, 32).slice(1, 16, 32).abs().max() / 448.0f;
    EXPECT_EQ(found[1][1].item<float>(), moved.item<float>());
    found[1][1] = kept[1][1];
    EXPECT_TRUE(same_bits(found, kept));
  }
  // A scale of zero is no scale: the block is zeros and gets 1.
  const at::Tensor zero = at::zeros({1, 1});
  EXPECT_EQ(fp8_scales(at::zeros({16, 16}), block, {.kept = zero}).item<float>(), 1.0f);
}

TEST(BlockScaled, RoundsToNearestEven) {
  const Json& golden = goldens()["e4m3"];
  ASSERT_GT(golden["to"].size(), 700u);
  for (size_t i = 0; i < golden["to"].size(); ++i) {
    const float value = std::bit_cast<float>(golden["rounded"][i].get<uint32_t>());
    EXPECT_EQ(e4m3_nearest(value), golden["to"][i].get<int>()) << value;
  }
}

TEST(BlockScaled, RoundsWhatBfloat16HoldsAsTorchDoes) {
  const at::Tensor values = at::arange(65536).to(at::kShort).view(at::kBFloat16).to(at::kFloat);
  const at::Tensor expected = values.clamp(-448, 448).to(at::kFloat8_e4m3fn).view(at::kByte);
  for (int64_t i = 0; i < values.numel(); ++i) {
    const float value = values.const_data_ptr<float>()[i];
    if (std::isnan(value)) continue;
    EXPECT_EQ(e4m3_nearest(value), expected.const_data_ptr<uint8_t>()[i]) << value;
  }
}

TEST(BlockScaled, DequantisesAsTransformers) {
  const Json& golden = goldens()["fp8"];
  const auto rows = golden["rows"].get<int64_t>();
  const auto columns = golden["columns"].get<int64_t>();
  const auto block = golden["block"].get<int64_t>();
  const at::Tensor stored = as_fp8(bytes_tensor(golden["stored"], {rows, columns}));
  const at::Tensor scales = floats_tensor(golden["scales"], {rows / block, columns / block});
  EXPECT_TRUE(same_bits(dequantise_fp8(stored, scales, {block, block}),
                        floats_tensor(golden["dequantised"], {rows, columns})));
}

TEST(BlockScaled, DequantisesAnyPartOfAMatrixOfAnySize) {
  at::manual_seed(3);
  for (const auto& [rows, columns] :
       {std::pair<int64_t, int64_t>{1, 1}, {128, 128}, {129, 127}, {300, 576}, {5, 300}}) {
    const BlockSize block;
    const at::Tensor stored =
        at::randint(0, 127, {rows, columns}).to(at::kByte).view(at::kFloat8_e4m3fn);
    const at::Tensor scales = at::rand(scale_shape({rows, columns}, block)) * 0.01;
    const at::Tensor expected =
        stored.to(at::kFloat) * scale_of_elements(scales, block, rows, columns);
    EXPECT_TRUE(same_bits(dequantise_fp8(stored, scales, block), expected));
    for (const int64_t first : {int64_t{0}, rows / 3, rows / 2, rows - 1}) {
      const int64_t count = (rows - first + 1) / 2;
      EXPECT_TRUE(same_bits(dequantise_fp8(stored.narrow(0, first, count), scales, block, first),
                            expected.narrow(0, first, count)))
          << rows << " " << first;
    }
    const at::Tensor half = scales.to(at::kBFloat16);
    EXPECT_TRUE(same_bits(dequantise_fp8(stored, half, block),
                          dequantise_fp8(stored, half.to(at::kFloat), block)));
  }
}

TEST(BlockScaled, ScalesAreTheLargestMagnitudeOver448) {
  at::manual_seed(4);
  const BlockSize block;
  at::Tensor weight = at::randn({200, 300});
  weight.slice(0, 0, 128).slice(1, 128, 256).zero_();
  const at::Tensor scales = fp8_scales(weight, block);
  ASSERT_EQ(scales.sizes(), (std::vector<int64_t>{2, 3}));
  const at::Tensor quantised = quantise_fp8(weight, scales, block).view(at::kByte);
  for (int64_t i = 0; i < 2; ++i) {
    for (int64_t j = 0; j < 3; ++j) {
      const at::Tensor tile = weight.slice(0, 128 * i, std::min<int64_t>(200, 128 * i + 128))
                                  .slice(1, 128 * j, std::min<int64_t>(300, 128 * j + 128));
      const float largest = tile.abs().max().item<float>();
      EXPECT_EQ(scales[i][j].item<float>(), largest > 0 ? largest / 448.0f : 1.0f);
    }
  }
  // Of each value the byte whose number is nearest to value / scale, found by trying all of them.
  const at::Tensor quotient = weight / scale_of_elements(scales, block, 200, 300);
  for (int64_t row = 0; row < 200; row += 7) {
    for (int64_t column = 0; column < 300; ++column) {
      const double value = quotient[row][column].item<float>();
      double least = std::numeric_limits<double>::infinity();
      for (int byte = 0; byte < 256; ++byte) {
        if ((byte & 0x7f) != 0x7f)
          least = std::min(least, std::fabs(value - e4m3_value(static_cast<uint8_t>(byte))));
      }
      const auto chosen = quantised[row][column].item<uint8_t>();
      EXPECT_EQ(std::fabs(value - e4m3_value(chosen)), least);
    }
  }
}

TEST(BlockScaled, QuantisesStoredViewsOfAnyType) {
  at::manual_seed(5);
  const at::Tensor half = at::randn({150, 140}).to(at::kBFloat16);
  const at::Tensor whole = half.to(at::kFloat);
  const at::Tensor scales = fp8_scales(half, {});
  EXPECT_TRUE(at::equal(scales, fp8_scales(whole, {})));
  EXPECT_TRUE(at::equal(quantise_fp8(half, scales, {}).view(at::kByte),
                        quantise_fp8(whole, scales, {}).view(at::kByte)));
  EXPECT_TRUE(
      at::equal(quantise_fp8(half.t(), fp8_scales(half.t(), {}), {}).view(at::kByte),
                quantise_fp8(half.t().contiguous(), fp8_scales(half.t(), {}), {}).view(at::kByte)));
}

TEST(BlockScaled, WhatWasQuantisedComesBackByteForByte) {
  at::manual_seed(6);
  for (const double size : {1e-30, 3e-3, 1.0, 1e30}) {
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
      const at::Tensor weight = (at::randn({260, 390}) * size).to(type);
      const at::Tensor scales = fp8_scales(weight, {});
      const at::Tensor bytes = quantise_fp8(weight, scales, {});
      const at::Tensor again = dequantise_fp8(bytes, scales, {});
      const at::Tensor scales_again = fp8_scales(again, {});
      EXPECT_TRUE(same_bits(scales_again, scales)) << size;
      EXPECT_TRUE(
          at::equal(quantise_fp8(again, scales_again, {}).view(at::kByte), bytes.view(at::kByte)))
          << size;
    }
  }
}

// Of any scale, rounding 448 scale and then that / 448 may miss the last digit; of a scale that is amax / 448 rounded it does not. All
// mantissas that float32 has, one a block.
TEST(BlockScaled, EveryScaleIsFoundAgain) {
  for (const int exponent : {-100, 0}) {
    const at::Tensor mantissas = at::arange(int64_t{1} << 23).to(at::kInt);
    const at::Tensor amax = (mantissas | ((exponent + 127) << 23)).view(at::kFloat).unsqueeze(0);
    const at::Tensor scales = fp8_scales(amax, {1, 1});
    const at::Tensor again = dequantise_fp8(quantise_fp8(amax, scales, {1, 1}), scales, {1, 1});
    EXPECT_TRUE(same_bits(fp8_scales(again, {1, 1}), scales)) << exponent;
  }
}

template <typename Call>
std::pair<ErrorCode, std::string> problem_of(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return {error.code(), error.what()};
  }
  return {ErrorCode::kInternal, "nothing was thrown"};
}

TEST(BlockScaled, RefusesWhatIsNotANumber) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float bad : {nan, infinity, -infinity}) {
    at::Tensor weight = at::ones({3, 200});
    weight[1][150] = bad;
    const auto [code, what] = problem_of([&] { fp8_scales(weight, {}); });
    EXPECT_EQ(code, ErrorCode::kNumerical);
    EXPECT_THAT(what, HasSubstr("block [0, 1]"));
  }
  const at::Tensor stored = at::zeros({200, 3}, at::kByte).view(at::kFloat8_e4m3fn);
  for (const float bad : {nan, infinity, -1.0f}) {
    at::Tensor scales = at::ones({2, 1});
    scales[1][0] = bad;
    const auto [code, what] = problem_of([&] { dequantise_fp8(stored, scales, {}); });
    EXPECT_EQ(code, ErrorCode::kData);
    EXPECT_THAT(what, HasSubstr("block [1, 0]"));
  }
  const auto [code, what] = problem_of([&] {
    dequantise_mxfp4(at::zeros({2, 16}, at::kByte),
                     at::tensor(std::vector<int64_t>{127, 255}).to(at::kByte));
  });
  EXPECT_EQ(code, ErrorCode::kData);
  EXPECT_THAT(what, HasSubstr("block 1"));
}

TEST(BlockScaled, RefusesBytesAndProductsThatAreNotFinite) {
  for (const int byte : {0x7f, 0xff}) {
    at::Tensor bytes = at::full({200, 300}, 0x7e, at::kByte);
    bytes[130][299] = byte;
    const auto [code, what] =
        problem_of([&] { dequantise_fp8(as_fp8(bytes), at::ones({2, 3}), {}); });
    EXPECT_EQ(code, ErrorCode::kData);
    EXPECT_THAT(what, HasSubstr("block [1, 2] has values that are not finite"));
    // Also where it is a part that is read.
    EXPECT_THAT(problem_of([&] {
                  dequantise_fp8(as_fp8(bytes).narrow(0, 129, 2), at::ones({2, 3}), {}, 129);
                }).second,
                HasSubstr("block [1, 2]"));
    EXPECT_NO_THROW(dequantise_fp8(as_fp8(bytes).narrow(0, 0, 130), at::ones({2, 3}), {}));
  }
  // 448 x 2^119 = 1.75 x 2^127 is a float32, 448 x 2^120 is not; 2 x 2^120 is.
  at::Tensor bytes = at::full({3, 200}, e4m3_nearest(2), at::kByte);
  EXPECT_NO_THROW(dequantise_fp8(as_fp8(bytes), at::full({1, 2}, 0x1p120f), {}));
  bytes[2][150] = e4m3_nearest(-448);
  const at::Tensor large = dequantise_fp8(as_fp8(bytes), at::full({1, 2}, 0x1p119f), {});
  EXPECT_EQ(large[2][150].item<float>(), -0x1.cp127f);
  const auto [code, what] =
      problem_of([&] { dequantise_fp8(as_fp8(bytes), at::full({1, 2}, 0x1p120f), {}); });
  EXPECT_EQ(code, ErrorCode::kData);
  EXPECT_THAT(what, HasSubstr("block [0, 1] has values that are not finite"));
}

TEST(BlockScaled, RefusesProductsOfMxfp4ThatAreNotFinite) {
  // Codes of E2M1: 1 is 0.5, 3 is 1.5, 4 is 2, 5 is 3, 6 is 4, 7 is 6; the largest of a scale below 2^128.
  for (const auto& [exponent, largest, too_large] :
       {std::tuple<int, int, int>{254, 3, 4}, {253, 5, 6}, {252, 7, -1}}) {
    const at::Tensor scales = at::tensor(std::vector<int64_t>{127, 127, exponent}).to(at::kByte);
    at::Tensor blocks = at::full({3, 16}, 0x77, at::kByte);
    blocks[2].fill_(largest << 4 | 1);
    const at::Tensor values = dequantise_mxfp4(blocks, scales);
    EXPECT_TRUE(values.isfinite().all().item<bool>()) << exponent;
    EXPECT_EQ(values[64].item<double>(), std::ldexp(0.5, exponent - 127));
    if (too_large < 0) continue;
    blocks[2][7] = too_large | 8;
    const auto [code, what] = problem_of([&] { dequantise_mxfp4(blocks, scales); });
    EXPECT_EQ(code, ErrorCode::kData);
    EXPECT_THAT(what, HasSubstr("block 2 has values that are not finite"));
    EXPECT_THAT(problem_of([&] { dequantise_mxfp4(blocks, scales, 40); }).second,
                HasSubstr("block 42 "));
  }
}

TEST(BlockScaled, TheNumberOfThreadsChangesNoBit) {
  at::manual_seed(7);
  const int threads = at::get_num_threads();
  // More than one piece of rows of blocks, and rows and columns that are no whole blocks.
  const at::Tensor weight = at::randn({1300, 4100}).to(at::kBFloat16);
  const at::Tensor blocks = at::randint(0, 256, {5000, 16}).to(at::kByte);
  const at::Tensor exponents = at::randint(0, 252, {5000}).to(at::kByte);
  std::vector<std::vector<at::Tensor>> made;
  for (const int count : {1, 2}) {
    at::set_num_threads(count);
    const at::Tensor scales = fp8_scales(weight, {});
    const at::Tensor bytes = quantise_fp8(weight, scales, {});
    made.push_back({scales, bytes.view(at::kByte), dequantise_fp8(bytes, scales, {}),
                    dequantise_mxfp4(blocks, exponents)});
  }
  at::set_num_threads(threads);
  for (size_t i = 0; i < made[0].size(); ++i) EXPECT_TRUE(at::equal(made[0][i], made[1][i])) << i;
  // Torch's own, element by element.
  const at::Tensor whole = weight.to(at::kFloat);
  const at::Tensor factors = scale_of_elements(made[0][0], {}, 1300, 4100);
  EXPECT_TRUE(at::equal(made[0][1], (whole / factors).to(at::kFloat8_e4m3fn).view(at::kByte)));
}

TEST(BlockScaled, DequantisesMxfp4AsTransformers) {
  const Json& golden = goldens()["mxfp4"];
  const auto experts = golden["experts"].get<int64_t>();
  const auto rows = golden["rows"].get<int64_t>();
  const auto groups = golden["groups"].get<int64_t>();
  const at::Tensor blocks = bytes_tensor(golden["blocks"], {experts, rows, groups, 16});
  const at::Tensor scales = bytes_tensor(golden["scales"], {experts, rows, groups});
  const at::Tensor expected = floats_tensor(golden["dequantised"], {experts, groups * 32, rows});
  EXPECT_TRUE(same_bits(dequantise_mxfp4(blocks, scales).transpose(1, 2), expected));
}

TEST(BlockScaled, EveryByteOfMxfp4IsTwoNumbers) {
  // OCP Microscaling formats v1.0, table of E2M1.
  const std::vector<double> magnitudes = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  const at::Tensor blocks = at::arange(256).to(at::kByte).reshape({16, 16});
  for (const int exponent : {0, 1, 126, 127, 128, 251, 252}) {
    const at::Tensor scales = at::full({16}, exponent, at::kByte);
    const at::Tensor values = dequantise_mxfp4(blocks, scales);
    ASSERT_EQ(values.sizes(), (std::vector<int64_t>{512}));
    for (int byte = 0; byte < 256; ++byte) {
      for (int half = 0; half < 2; ++half) {
        const int code = half == 0 ? byte & 15 : byte >> 4;
        const double magnitude =
            std::ldexp(magnitudes[static_cast<size_t>(code & 7)], exponent - 127);
        const auto expected = static_cast<float>(code & 8 ? -magnitude : magnitude);
        EXPECT_EQ(bits_of(values[2 * byte + half].item<float>()), bits_of(expected))
            << byte << " " << exponent;
      }
    }
  }
}

}  // namespace
}  // namespace trireme::checkpoint
