// What tests of lists of parts share: names that are refused, with what the error says. Header only, for tests.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "trireme/base/error.h"

namespace trireme::plan {

struct RefusedName {
  std::string name;
  std::string message;
  std::string hint;
};

/// `read` takes a list of names and throws Error{kConfig} for each of these alone.
template <class Read>
void expect_refused(const Read& read, const std::vector<RefusedName>& all) {
  using ::testing::HasSubstr;
  for (const RefusedName& refused : all) {
    try {
      read({refused.name});
      ADD_FAILURE() << refused.name;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kConfig);
      EXPECT_THAT(error.what(), HasSubstr(refused.message));
      EXPECT_THAT(error.hint(), HasSubstr(refused.hint));
    }
  }
}

}  // namespace trireme::plan
