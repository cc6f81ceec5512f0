// What the tests of every world share. Header only, for tests.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "trireme/base/error.h"
#include "trireme/device/device.h"

namespace trireme::comm::testing {

inline device::Device& cpu() {
  return device::get_device("cpu");
}

/// What a call throws, which must be of this code.
inline std::string error_of(const std::function<void()>& call,
                            ErrorCode code = ErrorCode::kDevice) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(static_cast<int>(error.code()), static_cast<int>(code)) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

}  // namespace trireme::comm::testing
