#include "trireme/data/token_mask.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <random>

#include "trireme/base/error.h"
#include "trireme/base/file.h"

namespace trireme::data {
namespace {

namespace fs = std::filesystem;

class TokenMaskTest : public ::testing::Test {
 protected:
  TokenMaskTest() {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::temp_directory_path() / (std::string("trireme-mask-") + info->name());
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~TokenMaskTest() override { fs::remove_all(folder_); }
  fs::path folder_;
};

// Long enough for the writer to have to write in between.
TEST_F(TokenMaskTest, GivesBackWhatWasAppendedInAnyPieces) {
  std::mt19937_64 random(3);
  for (const size_t count : {size_t{0}, size_t{1}, size_t{8}, size_t{1000}, size_t{20'000'003}}) {
    std::vector<uint8_t> bits(count);
    for (auto& bit : bits) bit = static_cast<uint8_t>(random() & 1);
    TokenMaskWriter writer(folder_ / "x.mask");
    for (size_t at = 0; at < count;) {
      const size_t piece = std::min<size_t>(count - at, random() % (count / 3 + 2));
      writer.append(std::span(bits).subspan(at, piece));
      at += piece;
    }
    EXPECT_FALSE(fs::exists(folder_ / "x.mask"));
    writer.finish();
    EXPECT_EQ(writer.num_predicted(), std::count(bits.begin(), bits.end(), 1));
    const TokenMask mask(folder_ / "x.mask", static_cast<int64_t>(count));
    size_t wrong = 0;
    for (size_t i = 0; i < count; ++i) wrong += mask[static_cast<int64_t>(i)] != (bits[i] != 0);
    EXPECT_EQ(wrong, 0u) << count;
    fs::remove(folder_ / "x.mask");
  }
}

TEST_F(TokenMaskTest, HasTheBytesOfItsPage) {
  TokenMaskWriter writer(folder_ / "x.mask");
  writer.append(std::vector<uint8_t>{1, 0, 0, 0, 0, 0, 0, 1, 0, 1});
  writer.finish();
  using namespace std::string_literals;
  EXPECT_EQ(read_file(folder_ / "x.mask"), "TRIMASK1\x0a\0\0\0\0\0\0\0\x81\x02"s);
}

TEST_F(TokenMaskTest, DamageIsAnError) {
  using namespace std::string_literals;
  const std::string good = "TRIMASK1\x0a\0\0\0\0\0\0\0\x81\x02"s;
  const auto code_of = [](const std::string& bytes, int64_t ids) {
    try {
      parse_token_mask(std::as_bytes(std::span(bytes)), ids, "x.mask");
    } catch (const Error& error) {
      return error.code();
    }
    return ErrorCode::kInternal;
  };
  EXPECT_EQ(code_of(good, 10), ErrorCode::kInternal) << "no error";
  for (size_t size = 0; size < good.size(); ++size)
    EXPECT_EQ(code_of(good.substr(0, size), 10), ErrorCode::kData) << size;
  EXPECT_EQ(code_of(good + "x", 10), ErrorCode::kData);
  EXPECT_EQ(code_of(good, 11), ErrorCode::kData) << "of another .bin";
  EXPECT_EQ(code_of("X" + good.substr(1), 10), ErrorCode::kData);
}

TEST_F(TokenMaskTest, AnUnfinishedWriterLeavesNothing) {
  {
    TokenMaskWriter(folder_ / "x.mask").append(std::vector<uint8_t>{1});
  }
  EXPECT_TRUE(fs::is_empty(folder_));
}

}  // namespace
}  // namespace trireme::data
