#include "trireme/kernels/library.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "trireme/base/error.h"
#include "trireme/kernels/cpu/cpu_kernels.h"
#include "trireme/kernels/cpu/test_tensors.h"
#include "trireme/kernels/ref/reference.h"

namespace trireme::kernels {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class LibraryTest : public ::testing::Test {
 protected:
  /// The message and the hint of the Error that loading it ends with.
  std::string refusal(const std::string& path) {
    try {
      load_library(path, registry_);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kConfig);
      return std::string(error.what()) + " | " + error.hint();
    }
    return "no error";
  }
  static std::string library(const char* name) {
    return std::string(TRIREME_TEST_LIBRARIES "/") + name + ".so";
  }
  Registry registry_{[](at::DeviceType) { return std::vector<std::string>{}; }};
};

TEST_F(LibraryTest, TheExampleIsLoadedAndUsed) {
  add_own_kernels(registry_);
  load_library(library("my_rms_norm"), registry_);
  const auto norm = registry_.find<&kernels::rms_norm>(at::kCPU, at::kBFloat16);
  EXPECT_NE(norm, &cpu::rms_norm);
  EXPECT_EQ(registry_.find_named<&kernels::rms_norm>("my_rms_norm"), norm);
  const at::Tensor x = random_tensor({5, 33}, at::kBFloat16, 1);
  const at::Tensor weight = random_tensor({33}, at::kBFloat16, 2);
  at::Tensor y = garbage({5, 33}, at::kBFloat16);
  norm(x, weight, 1e-5, y, {}, 0.0);
  expect_close(y, ref::rms_norm(values_of(x), values_of(weight), 1e-5, 5, 33),
               tolerance_of(at::kBFloat16), "y");
  // The same one again would be a second kernel of that name.
  EXPECT_THAT(refusal(library("my_rms_norm")), HasSubstr("two kernels named 'my_rms_norm'"));
}

TEST_F(LibraryTest, OneOfAnotherTorchIsRefused) {
  EXPECT_THAT(
      refusal(library("stale_torch_kernel")),
      AllOf(HasSubstr("stale_torch_kernel.so was built for torch 1.13.1, this Trireme runs torch"),
            HasSubstr("examples/kernel")));
}

TEST_F(LibraryTest, OneOfAnotherTriremeIsRefused) {
  EXPECT_THAT(refusal(library("stale_trireme_kernel")),
              HasSubstr("stale_trireme_kernel.so was built for another Trireme: contract 0"));
}

TEST_F(LibraryTest, WhatIsNoLibraryIsRefused) {
  EXPECT_THAT(refusal("./nothing.so"), HasSubstr("./nothing.so: there is no such library"));
  const std::filesystem::path text = std::filesystem::path(::testing::TempDir()) / "text.so";
  std::ofstream(text) << "no library\n";
  EXPECT_THAT(refusal(text.string()), HasSubstr("text.so does not open: "));
  std::filesystem::remove(text);
}

}  // namespace
}  // namespace trireme::kernels
