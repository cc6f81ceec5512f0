#include "trireme/base/json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace trireme {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

TEST(ParseJson, ReadsDocuments) {
  const Json document = parse_json(R"({"a": [1, 2.5, "x"], "b": null})", "memory");
  EXPECT_EQ(document["a"][0], 1);
  EXPECT_EQ(document["a"][2], "x");
  EXPECT_TRUE(document["b"].is_null());
}

TEST(ParseJson, OrderedKeepsTheOrder) {
  EXPECT_EQ(parse_ordered_json(R"({"z":1,"a":2})", "memory").dump(), R"({"z":1,"a":2})");
}

TEST(ParseJson, NamesThePlace) {
  try {
    parse_json("{\n  \"a\": 1,\n  \"b\" 2\n}", "model/config.json", ErrorCode::kConfig);
    FAIL() << "expected an Error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kConfig);
    EXPECT_THAT(error.what(), StartsWith("model/config.json:3:7: not valid JSON: "));
    EXPECT_THAT(error.what(), Not(HasSubstr("exception")));
  }
}

TEST(ParseJson, RejectsBrokenText) {
  for (const char* text : {"", "{", "[1,", "nul", "{} {}", "\"\xff\"", "\"\\ud800\"", "[1e999]"}) {
    EXPECT_THROW(parse_json(text, "memory"), Error) << text;
  }
}

TEST(ParseJson, RejectsAbsurdNesting) {
  EXPECT_THROW(parse_json(std::string(100000, '['), "memory"), Error);
  EXPECT_THROW(parse_json(std::string(100000, '[') + std::string(100000, ']'), "memory"), Error);
  EXPECT_NO_THROW(parse_json(std::string(300, '[') + std::string(300, ']'), "memory"));
}

}  // namespace
}  // namespace trireme
