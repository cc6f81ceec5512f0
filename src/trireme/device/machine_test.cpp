#include "trireme/device/machine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace trireme::device {
namespace {

using ::testing::HasSubstr;

Machine good_machine() {
  Machine machine;
  machine.system = "Debian GNU/Linux 12, Linux 6.1 x86_64";
  machine.processor = "A Good Processor";
  machine.features = {"avx2", "fma", "avx512_bf16"};
  machine.cpus = 8;
  machine.torch_threads = 8;
  machine.memory_bytes = int64_t{32} << 30;
  machine.available_memory_bytes = int64_t{24} << 30;
  machine.blas = "mkl";
  machine.devices = {{"cpu", machine.processor, true}};
  return machine;
}

MachineRates good_rates() {
  MachineRates rates;
  rates.gemm_fp32 = {800, 790, 810, 9};
  rates.gemm_bf16 = {2000, 1990, 2010, 9};
  rates.memory_bandwidth = {40, 39, 41, 9};
  rates.disk_write = Rate{900, 800, 1000, 9};
  rates.rows_fp32 = {{512, {1, 2, 3, 7}}};
  rates.rows_bf16 = {{512, {}}};
  return rates;
}

/// The findings worse than a note, as text.
std::string complaints(const Machine& machine, const MachineRates& rates) {
  std::string text;
  for (const Finding& finding : diagnose(machine, rates)) {
    if (finding.level == Finding::Level::kNote) continue;
    EXPECT_FALSE(finding.advice.empty()) << finding.what;
    text += finding.what + " -> " + finding.advice + "\n";
  }
  return text;
}

std::string notes(const Machine& machine, const MachineRates& rates) {
  std::string text;
  for (const Finding& finding : diagnose(machine, rates)) {
    if (finding.level == Finding::Level::kNote)
      text += finding.what + " -> " + finding.advice + "\n";
  }
  return text;
}

TEST(DiagnoseTest, AGoodMachineHasNoComplaints) {
  EXPECT_EQ(complaints(good_machine(), good_rates()), "");
  EXPECT_THAT(notes(good_machine(), good_rates()), HasSubstr("2.50 times"));
  EXPECT_THAT(notes(good_machine(), good_rates()),
              HasSubstr("float32 products depend in their last bits on their number below 8 rows"));
  EXPECT_THAT(notes(good_machine(), good_rates()), HasSubstr("bfloat16 products do not depend"));
}

TEST(DiagnoseTest, NamesASlowBlas) {
  MachineRates rates = good_rates();
  rates.gemm_fp32.median = 26;
  Machine machine = good_machine();
  machine.blas = "generic";
  EXPECT_THAT(complaints(machine, rates),
              HasSubstr("3.2 GFLOP/s a thread: the BLAS behind torch (generic)"));
}

TEST(DiagnoseTest, NamesWrongThreadCounts) {
  Machine machine = good_machine();
  machine.torch_threads = 1;
  MachineRates rates = good_rates();
  EXPECT_THAT(complaints(machine, rates), HasSubstr("torch uses 1 of 8 CPUs"));
  machine.torch_threads = 16;
  EXPECT_THAT(complaints(machine, rates), HasSubstr("OMP_NUM_THREADS=8"));
  machine.torch_threads = 8;
  machine.cpu_quota = 2;
  EXPECT_THAT(complaints(machine, rates), HasSubstr("OMP_NUM_THREADS=2"));
}

TEST(DiagnoseTest, NamesABusyMachineAndLittleMemory) {
  Machine machine = good_machine();
  machine.load = 7;
  machine.available_memory_bytes = 1'500'000'000;
  const std::string text = complaints(machine, good_rates());
  EXPECT_THAT(text, HasSubstr("keep 7.0 CPUs busy"));
  EXPECT_THAT(text, HasSubstr("1.5 GB of memory are free"));
}

TEST(DiagnoseTest, NamesAnOldProcessor) {
  Machine machine = good_machine();
  machine.features = {};
  EXPECT_THAT(complaints(machine, good_rates()), HasSubstr("no AVX2"));
  machine.system = "Debian GNU/Linux 12, Linux 6.1 aarch64";
  EXPECT_EQ(complaints(machine, good_rates()), "");
}

TEST(DiagnoseTest, NamesSlowBfloat16AsANote) {
  MachineRates rates = good_rates();
  rates.gemm_bf16.median = 440;
  EXPECT_EQ(complaints(good_machine(), rates), "");
  EXPECT_THAT(notes(good_machine(), rates), HasSubstr("saves memory here, not time"));
}

TEST(DiagnoseTest, NamesTheLargestRowCountThatMatters) {
  MachineRates rates = good_rates();
  rates.rows_fp32 = {{64, {1, 13}}, {2048, {1, 64, 256}}};
  EXPECT_EQ(complaints(good_machine(), rates), "");
  EXPECT_THAT(notes(good_machine(), rates), HasSubstr("on their number below 257 rows"));
}

TEST(DiagnoseTest, NamesDiskTrouble) {
  MachineRates rates = good_rates();
  rates.disk_write->median = 20;
  EXPECT_THAT(complaints(good_machine(), rates), HasSubstr("20 MB/s"));
  rates.disk_write.reset();
  rates.disk_error = "cannot write '/x': Read-only file system";
  EXPECT_THAT(complaints(good_machine(), rates), HasSubstr("Read-only file system"));
}

TEST(DiagnoseTest, NamesDevicesThatAreNotUsed) {
  Machine machine = good_machine();
  machine.devices.push_back({"cuda:0", "NVIDIA H100", false});
  EXPECT_THAT(notes(machine, good_rates()), HasSubstr("cuda:0 (NVIDIA H100)"));
}

TEST(ReadMachineTest, FindsThisMachine) {
  const Machine machine = read_machine();
  EXPECT_THAT(machine.system, HasSubstr("Linux"));
  EXPECT_GE(machine.cpus, 1);
  EXPECT_GE(machine.torch_threads, 1);
  EXPECT_GT(machine.memory_bytes, machine.available_memory_bytes);
  EXPECT_GT(machine.available_memory_bytes, 0);
  EXPECT_THAT(machine.torch_version, ::testing::MatchesRegex("[0-9]+\\.[0-9]+\\.[0-9]+"));
  ASSERT_FALSE(machine.devices.empty());
  EXPECT_EQ(machine.devices[0].name, "cpu");
}

}  // namespace
}  // namespace trireme::device
