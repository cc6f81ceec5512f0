// Devices that come as libraries.
#include "trireme/device/library.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "trireme/base/error.h"

namespace trireme::device {
namespace {

using ::testing::HasSubstr;

class DeviceLibraryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ::setenv("TRIREME_DEVICE_PATH", "/nowhere:" TRIREME_TEST_LIBRARIES "/devices", 1);
  }
  void TearDown() override { ::unsetenv("TRIREME_DEVICE_PATH"); }
};

/// What opening the device says.
std::pair<ErrorCode, std::string> error_of(const std::string& name) {
  try {
    get_device(name);
  } catch (const Error& error) {
    return {error.code(), std::string(error.what()) + "; " + error.hint()};
  }
  return {ErrorCode::kConfig, ""};
}

TEST_F(DeviceLibraryTest, IsFoundByTheNameOfItsType) {
  Device& device = get_device("borrowed");
  EXPECT_EQ(device.type(), "borrowed");
  EXPECT_EQ(device.total_memory_bytes(), 1000);
  EXPECT_EQ(&get_device("borrowed:0"), &device);
  EXPECT_THAT(open_device_libraries(),
              ::testing::Contains(TRIREME_TEST_LIBRARIES "/devices/libtrireme_borrowed.so"));
}

TEST_F(DeviceLibraryTest, ItsErrorsAreErrorsHere) {
  const auto [code, text] = error_of("borrowed:3");
  EXPECT_EQ(code, ErrorCode::kDevice);
  EXPECT_EQ(text, "no device \"borrowed:3\"; there is one");
  EXPECT_EQ(error_of("borrowed:x").first, ErrorCode::kConfig);
}

TEST_F(DeviceLibraryTest, RangesNest) {
  Device& device = get_device("borrowed");
  {
    const Range outer(device, [] { return std::string("step"); });
    const Range inner(device, [] { return std::string("part"); });
  }
  EXPECT_EQ(device.name(), "borrowed <step <part>>");
}

TEST(RangeTest, CostsNoNameWhereThereAreNone) {
  Device& device = get_device("cpu");
  ASSERT_FALSE(device.has_ranges());
  const Range range(device, []() -> std::string { throw std::logic_error("asked for a name"); });
}

TEST_F(DeviceLibraryTest, OneOfAnotherTriremeIsRefused) {
  const auto [code, text] = error_of("stale");
  EXPECT_EQ(code, ErrorCode::kDevice);
  EXPECT_THAT(text, HasSubstr("libtrireme_stale.so was built for another Trireme"));
}

TEST_F(DeviceLibraryTest, OneThatIsNoneIsRefused) {
  const auto [code, text] = error_of("broken");
  EXPECT_EQ(code, ErrorCode::kDevice);
  EXPECT_THAT(text, HasSubstr("libtrireme_broken.so does not open"));
  EXPECT_THAT(text, HasSubstr("docs/gpu.md"));
}

TEST(DeviceLibraryNamesTest, AMissingLibraryOfAKnownDeviceIsTheDevicesError) {
  const auto [code, text] = error_of("xpu");
  EXPECT_EQ(code, ErrorCode::kDevice);
  EXPECT_THAT(text, HasSubstr("libtrireme_xpu.so"));
}

TEST(DeviceLibraryNamesTest, AnUnknownNameIsTheUsers) {
  for (const char* name : {"smi", "cup", "../borrowed", "", ":", "cpu:1"}) {
    const auto [code, text] = error_of(name);
    EXPECT_EQ(code, ErrorCode::kConfig) << name;
    EXPECT_THAT(text, HasSubstr("no device is called")) << name;
  }
}

}  // namespace
}  // namespace trireme::device
