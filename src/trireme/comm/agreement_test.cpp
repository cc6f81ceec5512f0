#include "trireme/comm/agreement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <stdexcept>

#include "trireme/base/error.h"
#include "trireme/comm/group.h"

namespace trireme::comm {
namespace {

using ::testing::HasSubstr;

TEST(Agreement, NothingDiffersWhereAllSayTheSame) {
  EXPECT_EQ(find_disagreement({}, {}), "");
  EXPECT_EQ(find_disagreement({{{"program", "a"}, {"data", "b"}}}, {}), "");
  EXPECT_EQ(
      find_disagreement({{{"program", "a"}, {"data", "b"}}, {{"data", "b"}, {"program", "a"}}}, {}),
      "");
}

TEST(Agreement, TheOddOneOutComesLast) {
  const Digests common = {{"program", "3fa9"}, {"code", "0.1.0"}, {"data", "d"}};
  const Digests odd = {{"program", "77c1"}, {"code", "0.1.0"}, {"data", "d"}};
  EXPECT_EQ(find_disagreement({odd, common, common, common}, {"beta", "alpha", "alpha", "alpha"}),
            "program differs: ranks 1-3 (alpha) have 3fa9; rank 0 (beta) has 77c1");
}

TEST(Agreement, EveryDifferenceIsNamed) {
  EXPECT_EQ(find_disagreement({{{"code", "1"}, {"data", "a"}},
                               {{"code", "2"}, {"data", "a"}},
                               {{"code", "1"}, {"data", "b"}}},
                              {}),
            "code differs: ranks 0 and 2 have 1; rank 1 has 2\ndata differs: ranks 0 and 1 have a; "
            "rank 2 has b");
}

TEST(Agreement, HalvesAreInTheOrderOfTheirRanks) {
  EXPECT_EQ(find_disagreement({{{"data", "x"}}, {{"data", "y"}}}, {}),
            "data differs: rank 0 has x; rank 1 has y");
}

TEST(Agreement, WhoLacksANameDiffers) {
  EXPECT_EQ(find_disagreement({{{"data", ""}}, {}}, {}),
            "data differs: rank 0 has ; rank 1 has none");
}

TEST(Agreement, LongValuesAreCut) {
  std::string shown(48, 'x');
  const std::string text =
      find_disagreement({{{"data", std::string(100, 'x')}}, {{"data", "y"}}}, {});
  shown += "...;";
  EXPECT_THAT(text, HasSubstr(shown));
}

/// A world whose exchange gives what the others are made to say.
class FakeWorld final : public World {
 public:
  explicit FakeWorld(std::vector<std::string> others) : others_(std::move(others)) {}
  int rank() const override { return 0; }
  int size() const override { return 1 + static_cast<int>(others_.size()); }
  std::string transport() const override { return "fake"; }
  std::string host(int rank) const override { return "h" + std::to_string(rank); }
  std::unique_ptr<Group> make_group(const std::vector<int>&, device::Device&) override {
    throw std::logic_error("not asked for");
  }
  std::vector<std::string> exchange(const std::string& bytes) override {
    said = bytes;
    std::vector<std::string> all = {bytes};
    all.insert(all.end(), others_.begin(), others_.end());
    return all;
  }
  void barrier() override {}
  void abort(const std::string&) override {}
  std::string said;

 private:
  std::vector<std::string> others_;
};

TEST(Agreement, EveryRankGetsTheSameError) {
  const Digests mine = {{"program", "a"}, {"data", "\"quoted\""}};
  FakeWorld alone({});
  agree(alone, mine);
  FakeWorld same({alone.said, alone.said});
  agree(same, mine);
  FakeWorld different({alone.said, R"([["program", "b"], ["data", "\"quoted\""]])"});
  try {
    agree(different, mine);
    FAIL() << "a difference went unnoticed";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kConfig);
    EXPECT_STREQ(error.what(),
                 "the ranks were not started alike: program differs: rank 0 (h0), rank 1 (h1) have "
                 "a; rank 2 "
                 "(h2) has b");
  }
}

TEST(Agreement, WhatCannotBeReadDiffers) {
  for (const char* said : {"", "{", "[1]", "[[\"program\"]]", "[[\"program\", 1]]", "\xff"}) {
    FakeWorld world({said});
    EXPECT_THROW(agree(world, {{"program", "a"}}), Error) << said;
  }
}

}  // namespace
}  // namespace trireme::comm
