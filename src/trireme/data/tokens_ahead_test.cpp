#include "trireme/data/tokens_ahead.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace trireme::data {
namespace {

using ::testing::ElementsAre;

constexpr int32_t kNo = kIgnoredTarget;

/// Two rows of six as the loader makes them of seven tokens each: a document 10 .. 13, then the beginning of 20 .. 23; a
/// document 30 .. 33 whose token 32 is not to be predicted, then padding.
Batch two_rows() {
  Batch batch;
  batch.rows = 2;
  batch.seq_len = 6;
  batch.tokens = {10, 11, 12, 13, 20, 21, 30, 31, 32, 33, 0, 0};
  batch.targets = {11, 12, 13, kNo, 21, 22, 31, kNo, 33, kNo, kNo, kNo};
  batch.segments = {{0, 4}, {0, 4}};
  batch.num_targets = 7;
  return batch;
}

TEST(TokensAhead, StayInTheirDocumentAndHaveNoTargetAtItsEnd) {
  const TokensAhead one = tokens_ahead(two_rows(), 1);
  // 10 predicts 12 from 11, 11 predicts 13 from 12; 12 has 13 beside it and nothing to predict. 20 predicts 22 from 21.
  EXPECT_THAT(one.targets, ElementsAre(12, 13, kNo, kNo, 22, kNo, kNo, 33, kNo, kNo, kNo, kNo));
  EXPECT_THAT(one.tokens, ElementsAre(11, 12, 13, 13, 21, 21, 31, 32, 33, 33, 0, 0));
  EXPECT_EQ(one.num_targets, 4);

  const TokensAhead two = tokens_ahead(two_rows(), 2);
  EXPECT_THAT(two.targets, ElementsAre(13, kNo, kNo, kNo, kNo, kNo, 33, kNo, kNo, kNo, kNo, kNo));
  EXPECT_THAT(two.tokens, ElementsAre(12, 13, 13, 13, 21, 21, 32, 33, 33, 33, 0, 0));
  EXPECT_EQ(two.num_targets, 2);

  const TokensAhead far = tokens_ahead(two_rows(), 9);
  EXPECT_THAT(far.targets, ::testing::Each(kNo));
  EXPECT_THAT(far.tokens, ElementsAre(13, 13, 13, 13, 21, 21, 33, 33, 33, 33, 0, 0));
  EXPECT_EQ(far.num_targets, 0);
}

TEST(TokensAhead, CrossDocumentsWhereTheRowIsOneStream) {
  Batch batch = two_rows();
  batch.segments = {{0}, {0}};
  batch.targets[3] = 20;  // packing "stream" predicts the next document's first token
  const TokensAhead one = tokens_ahead(batch, 1);
  EXPECT_THAT(one.targets, ElementsAre(12, 13, 20, 21, 22, kNo, kNo, 33, kNo, kNo, kNo, kNo));
  EXPECT_THAT(one.tokens, ElementsAre(11, 12, 13, 20, 21, 21, 31, 32, 33, 0, 0, 0));
  EXPECT_EQ(one.num_targets, 6);
}

TEST(TokensAhead, AtNoDistanceAreTheBatch) {
  const Batch batch = two_rows();
  const TokensAhead none = tokens_ahead(batch, 0);
  EXPECT_EQ(none.tokens, batch.tokens);
  EXPECT_EQ(none.targets, batch.targets);
  EXPECT_EQ(none.num_targets, batch.num_targets);
}

}  // namespace
}  // namespace trireme::data
