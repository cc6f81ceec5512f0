#include "trireme/plan/profile_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "trireme/base/error.h"

namespace trireme::plan {
namespace {

using ::testing::HasSubstr;

/// Every number drawn, so that one in another's place shows.
ClusterSpec drawn_machine(uint64_t seed) {
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<double> value(0.1, 9.0);
  const auto next = [&] { return value(random); };
  ClusterSpec machine;
  machine.name = machine.node.name = machine.network.name = machine.device.name = "here";
  DeviceProfile& device = machine.device;
  device.peak_flops = {{ComputeType::kFp32, next() * 1e11}, {ComputeType::kBf16, next() * 1e11}};
  device.gemm_efficiency = {{ComputeType::kFp32, next()}, {ComputeType::kBf16, next()}};
  for (double* number :
       {&device.memory_bytes_per_s, &device.memory_efficiency, &device.units, &device.tile_m,
        &device.tile_n, &device.half_k, &device.attention_forward, &device.attention_backward,
        &device.attention_half_rows, &device.kernel_gap_s, &device.host_link_bytes_per_s,
        &device.instruction_gap_s, &device.step_overhead_s, &device.step_slowdown})
    *number = next();
  device.memory_bytes = 12345678901.0;
  device.usable_bytes = 11345678901.0;
  device.asynchronous = false;
  device.measured.products = {
      {{ProductUse::kBackwardWeight, 2.0, 128.0, 64.0, 32.0}, next(), ComputeType::kFp32},
      {{ProductUse::kForward, 1.0, 8.0, 16.0, 24.0}, next(), ComputeType::kBf16}};
  device.measured.attention = {
      {{true, 1.0, 64.0, 4.0, 2.0, 32.0, 48.0}, next(), ComputeType::kBf16}};
  InstructionRate rate;
  rate.of = {"mlp", "backward-weight/add", ComputeType::kBf16};
  rate.fixed_s = next();
  rate.products = next();
  rate.attention = next();
  rate.memory = next();
  rate.residual = next();
  rate.measured = {{{next(), next(), next()}, next(), 12.0}, {{0.0, 0.0, next()}, next(), 3.0}};
  device.instructions = {rate, {{"-", "commit", ComputeType::kFp32}, 0.0, 0.0, 0.0, 0.0, 0.0, {}}};
  machine.node.accelerators = 4;
  machine.node.busy_slowdown = 1.0 + next();
  LinkProfile link;
  for (double* number :
       {&link.bytes_per_s, &link.latency_s, &link.fixed_s, &link.all_reduce, &link.all_gather,
        &link.reduce_scatter, &link.all_to_all, &link.send_receive})
    *number = next();
  machine.node.links = {link};
  machine.network.link = link;
  machine.network.link.bytes_per_s = next();
  return machine;
}

void expect_near(double got, double want) {
  EXPECT_NEAR(got, want, 1e-5 * want);
}

TEST(ProfileText, IsReadBackAsItWasWritten) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const ClusterSpec want = drawn_machine(seed);
    const std::string text = profile_toml(want, "measured \"here\" on a\\b\n2026", "two\nlines");
    EXPECT_THAT(text, HasSubstr("# two\n# lines\n"));
    ProfileLibrary library;
    library.add(text, "machine.toml");
    const ClusterSpec& got = library.cluster("here");
    for (const ComputeType type : {ComputeType::kFp32, ComputeType::kBf16}) {
      expect_near(got.device.peak_flops.at(type), want.device.peak_flops.at(type));
      expect_near(got.device.gemm_efficiency.at(type), want.device.gemm_efficiency.at(type));
    }
    EXPECT_EQ(got.device.memory_bytes, want.device.memory_bytes);
    EXPECT_EQ(got.device.usable_bytes, want.device.usable_bytes);
    EXPECT_FALSE(got.device.asynchronous);
    using Number = double DeviceProfile::*;
    for (const Number number :
         {&DeviceProfile::memory_bytes_per_s, &DeviceProfile::memory_efficiency,
          &DeviceProfile::units, &DeviceProfile::tile_m, &DeviceProfile::tile_n,
          &DeviceProfile::half_k, &DeviceProfile::attention_forward,
          &DeviceProfile::attention_backward, &DeviceProfile::attention_half_rows,
          &DeviceProfile::kernel_gap_s, &DeviceProfile::host_link_bytes_per_s,
          &DeviceProfile::instruction_gap_s, &DeviceProfile::step_overhead_s,
          &DeviceProfile::step_slowdown})
      expect_near(got.device.*number, want.device.*number);
    for (const MeasuredProduct& one : want.device.measured.products)
      expect_near(got.device.measured.exact(one.shape, one.type).value(), one.efficiency);
    for (const MeasuredAttention& one : want.device.measured.attention)
      expect_near(got.device.measured.exact(one.shape, one.type).value(), one.efficiency);
    ASSERT_EQ(got.device.instructions.size(), 2u);
    const InstructionRate& rate = got.device.instructions.front();
    const InstructionRate& original = want.device.instructions.front();
    EXPECT_EQ(rate.of, original.of);
    for (const MeasuredInstruction& one : original.measured)
      expect_near(rate.seconds(one.tables), one.seconds);
    const TableSeconds far{50.0, 60.0, 70.0};
    expect_near(rate.fitted(far), original.fitted(far));
    expect_near(rate.residual, original.residual);
    EXPECT_EQ(got.device.instructions.back().seconds(far), 0.0);
    expect_near(got.node.busy_slowdown, want.node.busy_slowdown);
    EXPECT_EQ(got.node.accelerators, 4);
    for (const auto& [a, b] : {std::pair{got.node.links.at(0), want.node.links.at(0)},
                               {got.network.link, want.network.link}}) {
      using LinkNumber = double LinkProfile::*;
      for (const LinkNumber number :
           {&LinkProfile::bytes_per_s, &LinkProfile::latency_s, &LinkProfile::fixed_s,
            &LinkProfile::all_reduce, &LinkProfile::all_gather, &LinkProfile::reduce_scatter,
            &LinkProfile::all_to_all, &LinkProfile::send_receive})
        expect_near(a.*number, b.*number);
    }
  }
}

std::string error_of(const std::string& text) {
  ProfileLibrary library;
  try {
    library.add(text, "machine.toml");
  } catch (const Error& error) {
    return std::string(error.what()) + " | " + error.hint();
  }
  return "";
}

TEST(ProfileText, BadInstructionsAreNamed) {
  const std::string good = profile_toml(drawn_machine(1), "s", "");
  EXPECT_EQ(error_of(good), "");
  const auto changed = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    text.replace(text.find(from), from.size(), to);
    return error_of(text);
  };
  EXPECT_THAT(changed("kind = \"backward-weight/add\"\ntype = \"bf16\"",
                      "kind = \"backward-weight/add\"\ntype = \"bf61\""),
              HasSubstr("bf16"));
  EXPECT_THAT(changed("part = \"mlp\"\n", ""), HasSubstr("instruction.part is missing"));
  const size_t instruction = good.find("[[instruction]]");
  std::string text = good;
  text.replace(text.find("device = \"here\"", instruction), 15, "device = \"gone\"");
  EXPECT_THAT(error_of(text), HasSubstr("is not a device"));
  text = good;
  text.replace(text.find("measured = [\n  [", instruction), 16, "measured = [\n  [1, ");
  EXPECT_THAT(error_of(text), HasSubstr("a row that is not 5 values"));
}

}  // namespace
}  // namespace trireme::plan
