#include "trireme/plan/profile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trireme/base/error.h"

namespace trireme::plan {
namespace {

using ::testing::HasSubstr;

constexpr const char* kDevice = R"(
[[device]]
name = "one"
source = "its data sheet"
peak_flops = { bf16 = 1e14 }
memory_bytes = 1e10
memory_bytes_per_s = 1e12
)";

std::string error_of(const std::string& text) {
  try {
    ProfileLibrary library;
    library.add(text, "file.toml");
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kConfig);
    return std::string(error.what()) + " | " + error.hint();
  }
  return "";
}

TEST(Profile, ReadsADevice) {
  ProfileLibrary library;
  library.add(kDevice, "file.toml");
  const DeviceProfile& device = library.devices.at("one");
  EXPECT_EQ(device.peak_flops.at(ComputeType::kBf16), 1e14);
  EXPECT_EQ(device.memory_bytes, 1e10);
}

TEST(Profile, NumbersNeedASource) {
  EXPECT_THAT(
      error_of("[[device]]\nname = \"one\"\npeak_flops = { bf16 = 1e14 }\nmemory_bytes = 1\n"
               "memory_bytes_per_s = 1\n"),
      HasSubstr("device.peak_flops.bf16 has no source"));
  EXPECT_THAT(
      error_of("[[device]]\nname = \"one\"\nsource = \"s\"\nmemory_bytes = { value = 1 }\n"),
      HasSubstr("source is missing"));
}

TEST(Profile, SaysWhatIsMissingOrUnknown) {
  EXPECT_THAT(error_of("[[device]]\nname = \"one\"\nsource = \"s\"\nmemory_bytes = 1\n"
                       "memory_bytes_per_s = 1\n"),
              HasSubstr("peak_flops is missing"));
  EXPECT_THAT(error_of(std::string(kDevice) + "unit = 3\n"), HasSubstr("units"));
  EXPECT_THAT(error_of("[[node]]\nname = \"n\"\nsource = \"s\"\naccelerators = 8\n"),
              HasSubstr("without a link"));
  EXPECT_THAT(
      error_of("[[cluster]]\nname = \"c\"\ndevice = \"none\"\nnode = \"n\"\nnetwork = \"w\"\n"),
      HasSubstr("has no profile"));
  EXPECT_THAT(error_of("x = "), HasSubstr("file.toml:1"));
}

TEST(Profile, AVersionOfAStackSaysWhatDiffers) {
  ProfileLibrary library;
  library.add(R"(
[[stack]]
name = "base"
source = "s"
attention = "unfused"
loss_bytes = 7
step_s = 2
match = [{ text = "*base*" }]
[[stack]]
name = "older"
version_of = "base"
source = "s"
step_s = 3
match = [{ text = "*base 1.*" }]
)",
              "file.toml");
  const StackProfile& older = library.stack("base 1.2");
  EXPECT_EQ(older.name, "older");
  EXPECT_EQ(older.step_s, 3.0);
  EXPECT_EQ(older.loss_bytes, 7.0);
  EXPECT_EQ(older.attention, AttentionKernel::kUnfused);
  EXPECT_EQ(library.stack("base 2").name, "base");
  EXPECT_THAT(error_of("[[stack]]\nname = \"a\"\nversion_of = \"b\"\nsource = \"s\"\n"),
              HasSubstr("not a stack before this one"));
}

TEST(Profile, UsualRatesOfANetworkAreByItsAccelerators) {
  const std::string network =
      "[[network]]\nname = \"n\"\nsource = \"s\"\nbytes_per_s = 1e9\nusual_gather = ";
  ProfileLibrary library;
  library.add(network + "[[16, 2e9]]\n", "file.toml");
  EXPECT_EQ(library.networks.at("n").usual_gather.at(16), 2e9);
  EXPECT_THAT(error_of(network + "[[1, 2e9]]\n"), HasSubstr("not a number of accelerators"));
}

TEST(Profile, PatternsTakeAnyTextForAStar) {
  EXPECT_TRUE(matches_pattern("*a100*40gb*", "NVIDIA A100-SXM-40GB (x)"));
  EXPECT_FALSE(matches_pattern("*A100*40GB*", "A100-SXM-80GB"));
  EXPECT_TRUE(matches_pattern("*", ""));
  EXPECT_FALSE(matches_pattern("", "a"));
  EXPECT_TRUE(matches_pattern("a*b*c", "aXbbXc"));
}

TEST(Profile, CalibrationsAreMediansWithoutTheSourceThatIsLeftOut) {
  const std::vector<Observation> observations = {{1.0, "a"}, {3.0, "b"}, {9.0, "c"}};
  EXPECT_EQ(combined(observations, "", 0.5), 3.0);
  EXPECT_EQ(combined(observations, "c", 0.5), 2.0);
  EXPECT_EQ(combined({{1.0, "a"}}, "a", 0.5), 0.5);
}

TEST(Profile, TheMostSpecificCalibrationCounts) {
  ProfileLibrary library;
  library.calibrations = {{"d", "s", "sustained", {{0.7, "a"}}},
                          {"", "s", "sustained", {{0.8, "b"}}},
                          {"d", "", "sustained", {{0.9, "a"}, {0.95, "b"}}}};
  EXPECT_EQ(library.calibrated("sustained", "d", "s", "", 1.0), 0.7);
  EXPECT_EQ(library.calibrated("sustained", "d", "s", "a", 1.0), 0.8);
  EXPECT_EQ(library.calibrated("sustained", "d", "t", "a", 1.0), 0.95);
  EXPECT_EQ(library.calibrated("sustained", "e", "t", "", 1.0), 1.0);
}

TEST(Profile, ShippedFilesAreWhole) {
  const ProfileLibrary& library = shipped_profiles();
  EXPECT_GE(library.devices.size(), 15);
  for (const auto& [name, cluster] : library.clusters) {
    EXPECT_GT(cluster.device.memory_bytes, 0.0) << name;
    EXPECT_FALSE(cluster.node.links.empty()) << name;
  }
  EXPECT_EQ(library.cluster("NVIDIA H800-SXM-80GB").name, "h800");
  EXPECT_EQ(library.cluster("A100-SXM-80GB (4x100Gb RoCE/node)").device.name, "a100-sxm-80gb");
  EXPECT_THROW(library.cluster("abacus of wood"), Error);
}

}  // namespace
}  // namespace trireme::plan
