// One process and its one place for a plug-in: the same again, a second one, sim after it. What plug-ins lack:
// plugin_device_test.py.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trireme/base/error.h"
#include "trireme/device/device.h"
#include "trireme/device/plugin/plugin.h"

namespace trireme::device {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

const std::string kAbacus = TRIREME_TEST_DEVICES "/libabacus.so";

class PluginLoadingTest : public ::testing::Test {
 protected:
  void SetUp() override { plugin_ = &load_plugin("abacus:1", kAbacus); }

  template <class Call>
  static std::string refusal(ErrorCode code, const Call& call) {
    try {
      call();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code) << error.what();
      return std::string(error.what()) + " | " + error.hint();
    }
    return "no error";
  }
  const Plugin* plugin_ = nullptr;
};

TEST_F(PluginLoadingTest, TheSameAgainIsTheSame) {
  EXPECT_EQ(&load_plugin("abacus", kAbacus), plugin_);
  EXPECT_EQ(&load_plugin("", kAbacus), plugin_);
  EXPECT_EQ(&load_plugin("abacus"), plugin_);
  EXPECT_EQ(loaded_plugin(), plugin_);
  EXPECT_EQ(plugin_->name, "abacus");
  EXPECT_TRUE(plugin_->named_by_library);
  EXPECT_TRUE(plugin_->notes().empty());
}

TEST_F(PluginLoadingTest, ASecondOneIsRefused) {
  const std::string foreign = TRIREME_TEST_DEVICES "/libforeign_torch.so";
  EXPECT_THAT(refusal(ErrorCode::kConfig, [&] { load_plugin("beads", foreign); }),
              AllOf(HasSubstr("two plug-ins at once"), HasSubstr("libabacus.so has brought"),
                    HasSubstr("libforeign_torch.so is asked for")));
  EXPECT_THAT(refusal(ErrorCode::kConfig, [] { load_plugin("beads"); }),
              HasSubstr("the device \"beads\" is asked for"));
  EXPECT_THAT(refusal(ErrorCode::kConfig, [] { load_plugin("beads", kAbacus); }),
              HasSubstr("brings the device \"abacus\", not \"beads\""));
}

TEST_F(PluginLoadingTest, SimHasNoPlaceBesideIt) {
  EXPECT_THAT(refusal(ErrorCode::kDevice, [] { get_device("sim"); }),
              HasSubstr("belongs to \"abacus\" in this process"));
}

TEST_F(PluginLoadingTest, ItsDevicesAreDevices) {
  Device& device = get_device("abacus:1");
  EXPECT_EQ(&get_device("abacus:1"), &device);
  EXPECT_EQ(&get_device(device.torch_device().str()), &device);
  EXPECT_EQ(device.type(), "abacus");
  EXPECT_EQ(device.torch_device(), at::Device(at::kPrivateUse1, 1));
  EXPECT_EQ(device.total_memory_bytes(), int64_t{1} << 30);
  EXPECT_THAT(device.capabilities().dtypes, ::testing::Contains(at::kBFloat16));
  EXPECT_THAT(refusal(ErrorCode::kDevice, [] { get_device("abacus:2"); }),
              HasSubstr("no device abacus:2; the plug-in finds 2"));
  EXPECT_THAT(refusal(ErrorCode::kConfig, [] { get_device("abacus:x"); }),
              HasSubstr("write \"abacus\" or \"abacus:1\""));
  EXPECT_THAT(refusal(ErrorCode::kConfig, [] { get_device("abacos"); }),
              HasSubstr("did you mean 'abacus'?"));
  EXPECT_THAT(refusal(ErrorCode::kConfig, [&] { device.set_memory_cap(1 << 20); }),
              HasSubstr("has none"));
}

TEST_F(PluginLoadingTest, MemoryThatEndsIsPyTorchsError) {
  Device& device = get_device("abacus");
  const at::Tensor x = at::ones({4}, at::TensorOptions().device(device.torch_device()));
  EXPECT_THROW(at::ones({int64_t{1} << 40}, x.options()), c10::OutOfMemoryError);
  EXPECT_TRUE((x + 1).cpu().equal(at::full({4}, 2.0)));
}

}  // namespace
}  // namespace trireme::device
