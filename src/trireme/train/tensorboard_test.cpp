#include "trireme/train/tensorboard.h"

#include <gtest/gtest.h>

#include <cstring>

#include "trireme/base/file.h"

namespace trireme::train {
namespace {

TEST(Crc32c, KnownValues) {
  // RFC 3720, appendix B.4.
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62a8ab43u);
  std::string ascending;
  for (char c = 0; c < 32; ++c) ascending += c;
  EXPECT_EQ(crc32c(ascending), 0x46dd794eu);
  EXPECT_EQ(crc32c("123456789"), 0xe3069283u);
}

TEST(EventFile, FramesOfTheFile) {
  const std::filesystem::path folder =
      std::filesystem::path(::testing::TempDir()) / "event_file_frames";
  std::filesystem::remove_all(folder);
  std::filesystem::path first, second;
  {
    EventFile file(folder, 1700000000.5, 1);
    file.add_scalars(1700000001.0, 1, {{"loss", 2.5f}});
    first = file.path();
    EventFile later(folder, 1700000000.5, 1);
    second = later.path();
  }
  // Readers take files in the order of their names.
  EXPECT_LT(first.filename().string(), second.filename().string());
  const std::string text = read_file(first);
  std::vector<std::string> records;
  for (size_t at = 0; at < text.size();) {
    uint64_t length = 0;
    uint32_t length_crc = 0, data_crc = 0;
    ASSERT_LE(at + 12, text.size());
    std::memcpy(&length, text.data() + at, 8);
    std::memcpy(&length_crc, text.data() + at + 8, 4);
    EXPECT_EQ(length_crc, masked_crc32c(std::string_view(text).substr(at, 8)));
    ASSERT_LE(at + 16 + length, text.size());
    records.push_back(text.substr(at + 12, length));
    std::memcpy(&data_crc, text.data() + at + 12 + length, 4);
    EXPECT_EQ(data_crc, masked_crc32c(records.back()));
    at += 16 + length;
  }
  ASSERT_EQ(records.size(), 3u);
  // wall_time 1700000001.0, step 1, summary { value { tag "loss" simple_value 2.5 } }, encoded by
  // hand.
  const std::string expected(
      "\x09\x00\x00\x40\x40\xfc\x54\xd9\x41\x10\x01\x2a\x0d\x0a\x0b\x0a\x04loss\x15\x00\x00\x20"
      "\x40",
      26);
  EXPECT_EQ(records[2], expected);
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace trireme::train
