// What needs no library; tests/plugin_device_test.py loads some, each in a process of its own.
#include "trireme/device/plugin/plugin.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trireme/base/error.h"
#include "trireme/device/plugin/contract.h"
#include "trireme/device/sim/sim.h"

namespace trireme::device {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(PluginTest, IsLookedForInEveryFolderUnderTwoNames) {
  EXPECT_THAT(plugin_candidates("abacus", ""), IsEmpty());
  EXPECT_THAT(plugin_candidates("abacus", "/a::b/c:"),
              ElementsAre("/a/libtorch_abacus.so", "/a/libabacus.so", "b/c/libtorch_abacus.so",
                          "b/c/libabacus.so"));
}

TEST(PluginTest, SaysWhatDlopenMeans) {
  const auto both = [](const std::string& text) {
    const LoadFailure failure = explain_load_failure("x.so", text);
    return failure.message + " | " + failure.hint;
  };
  // c10::Device::validate() and at::Tensor::nothing(long) as GCC mangles them.
  EXPECT_THAT(both("x.so: undefined symbol: _ZN3c106Device8validateEv"),
              AllOf(HasSubstr("was built for another torch"), HasSubstr("c10::Device::validate()"),
                    HasSubstr("TRIREME_TORCH")));
  EXPECT_THAT(both("x.so: undefined symbol: _ZN2at6Tensor7nothingEl, version V"),
              HasSubstr("has no at::Tensor::nothing(long)"));
  EXPECT_THAT(both("x.so: undefined symbol: PyExc_RuntimeError"),
              AllOf(HasSubstr("needs Python in the process"), HasSubstr("LD_PRELOAD")));
  EXPECT_THAT(both("x.so: undefined symbol: vendorMalloc"),
              AllOf(HasSubstr("there is no vendorMalloc"), HasSubstr("ldd")));
  EXPECT_THAT(both("libdriver.so.4: cannot open shared object file: No such file or directory"),
              AllOf(HasSubstr("libdriver.so.4"), HasSubstr("LD_LIBRARY_PATH")));
  EXPECT_THAT(both("x.so: invalid ELF header"), HasSubstr("invalid ELF header"));
}

TEST(PluginTest, SimKeepsTheContractAndItsPlace) {
  get_device("sim");
  const Contract contract = check_contract();
  EXPECT_TRUE(contract.kept() && contract.falls_back);
  EXPECT_GE(contract.num_devices, 2);
  for (const ContractLine& line : contract.lines)
    EXPECT_EQ(line.state, ContractLine::State::kKept) << line.what << ": " << line.text;
  const AcceleratorSupport& support = contract.support;
  EXPECT_TRUE(support.events && support.event_times && support.new_streams &&
              support.synchronize_device && support.memory_statistics && support.generator &&
              support.pinned_memory && support.dtypes);
  EXPECT_EQ(loaded_plugin(), nullptr);
  try {
    load_plugin("abacus", "/proc/self/exe");
    ADD_FAILURE() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kConfig);
    EXPECT_THAT(error.what(), HasSubstr("belongs to \"sim\" in this process"));
  }
}

TEST(PluginTest, IsNoneOfOurOwnDevices) {
  for (const char* name : {"cpu", "sim", "sim:1"}) {
    EXPECT_NO_THROW(use_plugin(name, ""));
    try {
      use_plugin(name, "libtorch_abacus.so");
      ADD_FAILURE() << "nothing was thrown";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kConfig);
      EXPECT_THAT(error.what(), HasSubstr(name));
      EXPECT_THAT(error.hint(), HasSubstr("\"abacus\""));
    }
  }
}

}  // namespace
}  // namespace trireme::device
