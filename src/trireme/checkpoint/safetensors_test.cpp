#include "trireme/checkpoint/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "trireme/base/error.h"

namespace trireme::checkpoint {
namespace {

using ::testing::HasSubstr;
using namespace std::string_literals;

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

std::string file_with_header(const std::string& json, size_t data_bytes) {
  std::string file(8, '\0');
  const uint64_t length = json.size();
  std::memcpy(file.data(), &length, 8);
  return file + json + std::string(data_bytes, 'x');
}

std::string problem_of(const std::string& file) {
  try {
    parse_safetensors_header(bytes_of(file), file.size(), "f.safetensors");
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kData);
    EXPECT_THAT(error.what(), HasSubstr("f.safetensors"));
    return error.what();
  }
  return "";
}

// Written by the safetensors library 0.8.0:
//   save({"b": [[1,2,3],[4,5,6]] f32, "a": [1.5,-2] bf16, "n": [7] i64, "flag": [T,F,T] bool,
//         "h<e acute><quote><newline>": 2.5 f16, "e": zeros(0, 4) f32}, metadata={"format": "pt"})
const std::string kGoldenHeader =
    "\x78\x01\0\0\0\0\0\0"s
    "{\"__metadata__\":{\"format\":\"pt\"},\"n\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":"
    "[0,8]},"
    "\"b\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[8,32]},"
    "\"e\":{\"dtype\":\"F32\",\"shape\":[0,4],\"data_offsets\":[32,32]},"
    "\"a\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[32,36]},"
    "\"h\xc3\xa9\\\"\\n\":{\"dtype\":\"F16\",\"shape\":[],\"data_offsets\":[36,38]},"
    "\"flag\":{\"dtype\":\"BOOL\",\"shape\":[3],\"data_offsets\":[38,41]}}   "s;

TEST(SafetensorsTest, WritesTheHeaderOfTheReferenceImplementation) {
  std::vector<TensorInfo> tensors = {
      {"b", Dtype::kF32, {2, 3}, 0, 0},       {"a", Dtype::kBf16, {2}, 0, 0},
      {"n", Dtype::kI64, {1}, 0, 0},          {"flag", Dtype::kBool, {3}, 0, 0},
      {"h\u00e9\"\n", Dtype::kF16, {}, 0, 0}, {"e", Dtype::kF32, {0, 4}, 0, 0}};
  EXPECT_EQ(make_safetensors_header(tensors, {{"format", "pt"}}), kGoldenHeader);
}

TEST(SafetensorsTest, ReadsTheHeaderOfTheReferenceImplementation) {
  const std::string file = kGoldenHeader + std::string(41, '\0');
  const SafetensorsHeader header = parse_safetensors_header(bytes_of(file), file.size(), "golden");
  ASSERT_EQ(header.tensors.size(), 6u);
  EXPECT_EQ(header.data_start, kGoldenHeader.size());
  EXPECT_EQ(header.metadata.at("format"), "pt");
  EXPECT_EQ(header.find("b")->shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(header.find("b")->begin, 8u);
  EXPECT_EQ(header.find("b")->numel(), 6);
  EXPECT_EQ(header.find("h\u00e9\"\n")->numel(), 1);
  EXPECT_EQ(header.find("e")->bytes(), 0u);
  EXPECT_EQ(header.find("missing"), nullptr);
}

TEST(SafetensorsTest, RefusesEveryTruncationOfAFile) {
  const std::string file = kGoldenHeader + std::string(41, '\0');
  for (size_t size = 0; size < file.size(); ++size)
    EXPECT_NE(problem_of(file.substr(0, size)), "") << size;
  EXPECT_EQ(problem_of(file), "");
  EXPECT_THAT(problem_of(file + "x"), HasSubstr("1 bytes follow"));
}

TEST(SafetensorsTest, NeverReadsBeyondTheHeadOnRandomDamage) {
  const std::string file = kGoldenHeader + std::string(41, '\0');
  std::mt19937_64 random(7);
  for (int round = 0; round < 3000; ++round) {
    std::string damaged = file;
    for (int i = 0; i < 3; ++i) {
      damaged[random() % kGoldenHeader.size()] = static_cast<char>(random() % 256);
    }
    // Exactly sized heap copy: an overrun is a sanitizer error. What is accepted obeys the format's
    // promises.
    const std::vector<std::byte> copy(bytes_of(damaged).begin(), bytes_of(damaged).end());
    try {
      const SafetensorsHeader header = parse_safetensors_header(copy, copy.size(), "damaged");
      uint64_t position = 0;
      for (const TensorInfo& tensor : header.tensors) {
        EXPECT_EQ(tensor.begin, position);
        EXPECT_EQ(tensor.bytes(), static_cast<uint64_t>(tensor.numel() * dtype_size(tensor.dtype)));
        position = tensor.end;
      }
      EXPECT_EQ(header.data_start + position, copy.size());
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kData);
    }
  }
}

struct BadHeader {
  const char* json;
  size_t data;
  const char* message;
};

class BadHeaderTest : public ::testing::TestWithParam<BadHeader> {};

TEST_P(BadHeaderTest, IsRefusedWithItsReason) {
  EXPECT_THAT(problem_of(file_with_header(GetParam().json, GetParam().data)),
              HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(
    Table, BadHeaderTest,
    ::testing::Values(
        BadHeader{R"([])", 0, "does not begin with '{'"},
        BadHeader{R"( {})", 0, "does not begin with '{'"}, BadHeader{R"({"a":)", 0, "not JSON"},
        BadHeader{R"({}x)", 0, "not JSON"}, BadHeader{R"({"a":1})", 4, "number"},
        BadHeader{R"({"a":{"dtype":"F32","shape":[1]}})", 4, "lacks"},
        BadHeader{R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}})", 4, "1 data_offsets"},
        BadHeader{R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}})", 4,
                  "3 data_offsets"},
        BadHeader{R"({"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}})", 4,
                  "unknown dtype 'F33'"},
        BadHeader{R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}})", 4,
                  "unknown key 'x'"},
        BadHeader{R"({"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4,
                  "twice"},
        BadHeader{R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4, "-1"},
        BadHeader{R"({"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}})", 4, "1.0"},
        BadHeader{R"({"a":{"dtype":"F32","shape":[[1]],"data_offsets":[0,4]}})", 4, "array"},
        BadHeader{R"({"a":{"dtype":"F32","shape":"1","data_offsets":[0,4]}})", 4, "string"},
        BadHeader{R"({"a":{"dtype":null,"shape":[1],"data_offsets":[0,4]}})", 4, "null"},
        BadHeader{R"({"a":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,4]}})", 4,
                  "too large"},
        BadHeader{R"({"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}})",
                  0, "2^63"},
        BadHeader{R"({"a":{"dtype":"U8","shape":[4611686018427387904,2,0],"data_offsets":[0,0]}})",
                  0, "2^63"},
        BadHeader{R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4, "need 8"},
        BadHeader{R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8, "begins at 4"},
        BadHeader{R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", 4, "ends before"},
        BadHeader{R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 3, "truncated"},
        BadHeader{R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 5, "1 bytes follow"},
        BadHeader{
            R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}})",
            6, "begins at 2"},
        BadHeader{
            R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[6,10]}})",
            10, "begins at 6"},
        BadHeader{
            R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
            8, "'a' appears twice"},
        BadHeader{R"({"__metadata__":{"k":1}})", 0, "number"},
        BadHeader{R"({"__metadata__":{"k":"1","k":"2"}})", 0, "twice"}));

TEST(SafetensorsTest, RefusesALengthThatIsTooLarge) {
  std::string file(8, '\xff');
  EXPECT_THAT(problem_of(file + "{}"), HasSubstr("header says"));
}

}  // namespace
}  // namespace trireme::checkpoint
