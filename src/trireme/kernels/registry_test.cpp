#include "trireme/kernels/registry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trireme/base/error.h"
#include "trireme/kernels/cpu/cpu_kernels.h"

namespace trireme::kernels {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Kernels of add_, told apart by their addresses.
void first(at::Tensor&, const at::Tensor&) {}
void second(at::Tensor&, const at::Tensor&) {}
void third(at::Tensor&, const at::Tensor&) {}
void norm(const at::Tensor&, const at::Tensor&, double, at::Tensor&, at::Tensor, double) {}
void low_norm(const at::Tensor&, const at::Tensor&, double, at::Tensor&, at::Tensor, double) {}

class RegistryTest : public ::testing::Test {
 protected:
  Registry registry_{[](at::DeviceType device) {
    return device == at::kCPU ? std::vector<std::string>{"avx2", "fma"}
                              : std::vector<std::string>{};
  }};
  auto add_on(at::DeviceType device) { return registry_.find<&kernels::add_>(device, at::kFloat); }
  auto norm_in(at::ScalarType dtype) { return registry_.find<&kernels::rms_norm>(at::kCPU, dtype); }
};

/// The message and the hint of the Error that `body` throws.
template <class Body>
std::string error_of(Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    return std::string(error.what()) + " | " + error.hint();
  }
  return "no error";
}

TEST_F(RegistryTest, TakesTheHighestPriorityThatCanRun) {
  registry_.add<&kernels::add_>({.name = "everywhere", .device = std::nullopt, .priority = 1},
                                &first);
  registry_.add<&kernels::add_>({.name = "better", .priority = 5}, &second);
  registry_.add<&kernels::add_>({.name = "worse", .priority = 3}, &third);
  EXPECT_EQ(add_on(at::kCPU), &second);
  EXPECT_EQ(add_on(at::kMeta), &first);
  EXPECT_EQ(add_on(at::kMeta), &first);  // now from its cell
}

TEST_F(RegistryTest, LeavesOutWhatNeedsMoreThanTheDeviceHas) {
  registry_.add<&kernels::add_>({.name = "plain", .priority = 1}, &first);
  registry_.add<&kernels::add_>({.name = "avx", .priority = 2, .needs = {"avx2", "fma"}}, &second);
  registry_.add<&kernels::add_>({.name = "amx", .priority = 3, .needs = {"avx2", "amx_bf16"}},
                                &third);
  EXPECT_EQ(add_on(at::kCPU), &second);
  EXPECT_THAT(error_of([&] { registry_.choose({{"add_", "amx"}}); }),
              HasSubstr("kernel 'amx' of add_ needs amx_bf16, which this cpu does not have"));
}

TEST_F(RegistryTest, FallsBackForADtypeThatTheNamedKernelLacks) {
  registry_.add<&kernels::rms_norm>({.name = "all", .priority = 9}, &norm);
  registry_.add<&kernels::rms_norm>({.name = "low", .dtypes = {at::kBFloat16}, .priority = 1},
                                    &low_norm);
  EXPECT_EQ(norm_in(at::kBFloat16), &norm);
  registry_.choose({{"rms_norm", "low"}});
  EXPECT_EQ(norm_in(at::kBFloat16), &low_norm);
  EXPECT_EQ(norm_in(at::kFloat), &norm);
}

TEST_F(RegistryTest, NamesOpDtypeAndDeviceWhereNothingCanRun) {
  registry_.add<&kernels::rms_norm>({.name = "low", .dtypes = {at::kBFloat16}}, &norm);
  EXPECT_THAT(error_of([&] { norm_in(at::kFloat); }),
              HasSubstr("rms_norm has no kernel for Float on cpu | `trireme doctor --kernels`"));
  EXPECT_THAT(error_of([&] { registry_.find<&kernels::rms_norm>(at::kMeta, at::kBFloat16); }),
              HasSubstr("rms_norm has no kernel for BFloat16 on meta"));
  EXPECT_THAT(error_of([&] { norm_in(at::kLong); }),
              HasSubstr("rms_norm computes in float32 or bfloat16, not Long"));
  EXPECT_THAT(*registry_.unsupported_reason("rms_norm", at::kFloat, at::kCPU),
              HasSubstr("no kernel"));
  EXPECT_EQ(registry_.unsupported_reason("rms_norm", at::kBFloat16, at::kCPU), std::nullopt);
  // In float32 alone by its contract, whatever a kernel claims.
  registry_.add<&kernels::add_>({.name = "claims"}, &first);
  EXPECT_THAT(error_of([&] { registry_.find<&kernels::add_>(at::kCPU, at::kBFloat16); }),
              HasSubstr("add_ computes in float32, not BFloat16"));
}

TEST_F(RegistryTest, SuggestsTheNearestName) {
  registry_.add<&kernels::rms_norm>({.name = "my_rms_norm"}, &norm);
  EXPECT_EQ(error_of([&] { registry_.choose({{"rmsnorm", "x"}}); }),
            "there is no op 'rmsnorm' | did you mean 'rms_norm'?");
  EXPECT_EQ(error_of([&] { registry_.choose({{"rms_norm", "my_rmsnorm"}}); }),
            "rms_norm has no kernel 'my_rmsnorm' | did you mean 'my_rms_norm'?");
  EXPECT_FALSE(registry_.chosen());
  EXPECT_EQ(registry_.find_named<&kernels::rms_norm>("my_rms_norm"), &norm);
  EXPECT_THAT(error_of([&] { registry_.find_named<&kernels::rms_norm>("other"); }),
              HasSubstr("known: my_rms_norm"));
}

TEST_F(RegistryTest, IsFrozenByTheChoice) {
  registry_.add<&kernels::add_>({.name = "one", .priority = 2}, &first);
  registry_.add<&kernels::add_>({.name = "two", .priority = 1}, &second);
  registry_.choose({{"add_", "two"}});
  EXPECT_EQ(add_on(at::kCPU), &second);
  EXPECT_THAT(error_of([&] { registry_.add<&kernels::add_>({.name = "three"}, &third); }),
              HasSubstr("kernel 'three' of add_ comes too late"));
  registry_.choose({{"add_", "two"}});
  EXPECT_THAT(error_of([&] { registry_.choose({}); }), HasSubstr("chosen already"));
  EXPECT_EQ(add_on(at::kCPU), &second);
}

TEST_F(RegistryTest, ALaterKernelIsUsedFromThenOn) {
  registry_.add<&kernels::add_>({.name = "one", .priority = 1}, &first);
  EXPECT_EQ(add_on(at::kCPU), &first);
  registry_.add<&kernels::add_>({.name = "two", .priority = 2}, &second);
  EXPECT_EQ(add_on(at::kCPU), &second);
}

TEST_F(RegistryTest, RefusesTheSameNameTwice) {
  registry_.add<&kernels::add_>({.name = "one"}, &first);
  EXPECT_THAT(error_of([&] { registry_.add<&kernels::add_>({.name = "one"}, &second); }),
              HasSubstr("add_ has two kernels named 'one'"));
  registry_.add<&kernels::rms_norm>({.name = "one"}, &norm);  // of another op
  EXPECT_THAT(registry_.kernels_of("add_", at::kCPU), ElementsAre("one"));
}

TEST_F(RegistryTest, ListsEveryCell) {
  registry_.add<&kernels::rms_norm>({.name = "low", .dtypes = {at::kBFloat16}, .priority = 1},
                                    &norm);
  registry_.add<&kernels::rms_norm>({.name = "amx", .priority = 7, .needs = {"amx_bf16"}},
                                    &low_norm);
  for (const KernelRow& row : registry_.rows(at::kCPU)) {
    if (row.op != "rms_norm") {
      EXPECT_EQ(row.chosen, "") << row.op;
    } else if (row.dtype == at::kFloat) {
      EXPECT_EQ(row.chosen, "");
      ASSERT_EQ(row.candidates.size(), 1U);
      EXPECT_EQ(row.candidates[0].missing, "amx_bf16");
    } else {
      EXPECT_EQ(row.chosen, "low");
      ASSERT_EQ(row.candidates.size(), 2U);
      EXPECT_EQ(row.candidates[0].name, "amx");
      EXPECT_EQ(row.candidates[1].missing, "");
    }
  }
}

TEST(ProcessRegistryTest, HasTheReferenceAndTheProcessorsKernelOfEveryOp) {
  for (const std::string& op : op_names())
    EXPECT_THAT(registry().kernels_of(op, at::kCPU), ::testing::IsSupersetOf({"aten", "cpu"}))
        << op;
  EXPECT_EQ(registry().find<&kernels::rms_norm>(at::kCPU, at::kBFloat16), &cpu::rms_norm);
  // Any device has the reference.
  for (const KernelRow& row : registry().rows(at::kPrivateUse1))
    EXPECT_EQ(row.chosen, "aten") << row.op;
}

}  // namespace
}  // namespace trireme::kernels
