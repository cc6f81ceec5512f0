#include "trireme/plan/program_limits.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "trireme/base/error.h"

namespace trireme::plan {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

model::ModelSpec experts() {
  return model::spec_from_config(
      R"({"model_type":"mixtral","vocab_size":64,"hidden_size":32,"intermediate_size":48,"num_hidden_layers":1,
          "num_attention_heads":4,"num_key_value_heads":4,"num_local_experts":8,"num_experts_per_tok":2,
          "max_position_embeddings":64})",
      "test");
}

std::vector<std::string> limits(const std::function<void(Strategy&)>& change) {
  Strategy strategy;
  strategy.sequences = 8;
  strategy.lanes = 8;
  strategy.seq_len = 16;
  strategy.parallel.dp = 4;
  strategy.parallel.ep = 2;
  change(strategy);
  EXPECT_THAT(validate(experts(), strategy), IsEmpty());
  return program_limits(experts(), strategy);
}

TEST(ProgramLimits, OfSpreadExpertsAreNamedWithTheWayOut) {
  EXPECT_THAT(limits([](Strategy&) {}), IsEmpty());
  for (const int64_t turns : {0, 1, 2})
    EXPECT_THAT(limits([&](Strategy& s) { s.in_turn = turns; }), IsEmpty());
  EXPECT_THAT(limits([](Strategy& s) { s.in_turn = 4; }),
              ElementsAre(HasSubstr("use parallel.in_turn = 2")));
  EXPECT_THAT(limits([](Strategy& s) { s.parallel.zero = 1, s.parallel.shard = 2; }),
              ElementsAre(HasSubstr("use parallel.shard = 0")));
  EXPECT_THAT(limits([](Strategy& s) { s.parallel.dp = 6; }),
              ElementsAre(HasSubstr("use parallel.dp = 4")));
  // What is said of ranks that share sequences is said of their experts' balancing loss.
  EXPECT_THAT(limits([](Strategy& s) { s.parallel.cp = 2, s.parallel.ep = 8; }),
              ElementsAre(HasSubstr("moe.balance = \"none\"")));
  EXPECT_THAT(
      limits([](Strategy& s) {
        s.parallel.dp = 2;
        s.parallel.ep = 4;
        s.parallel.tp = 2;
      }),
      Contains(HasSubstr("does not divide parallel.dp x parallel.cp = 2; use parallel.ep = 2")));
  EXPECT_THAT(limits([](Strategy& s) { s.offload_activations = {0, 1, 0, 0, 0, 0, 0}; }),
              ElementsAre(HasSubstr("leave memory.offload_activations out")));
}

TEST(ProgramLimits, OfSumsInTheTransportAreNamedWithTheWayOut) {
  const auto fast = [](int64_t dp, bool record) {
    return limits([&](Strategy& s) {
      s.parallel.ep = 1;
      s.parallel.dp = dp;
      s.parallel.reduction = Reduction::kFast;
      s.record = record;
    });
  };
  EXPECT_THAT(fast(4, false), IsEmpty());
  EXPECT_THAT(fast(1, true), IsEmpty());
  EXPECT_THAT(fast(4, true), ElementsAre(HasSubstr("use parallel.reduction = \"exact\"")));
}

TEST(ProgramLimits, WhatTheLimitsRefuseHasNoProgram) {
  Strategy strategy;
  strategy.sequences = strategy.lanes = 4;
  strategy.seq_len = 16;
  strategy.parallel.dp = strategy.parallel.ep = 4;
  strategy.parallel.etp = 1;
  EXPECT_NO_THROW(build_program(experts(), strategy));
  strategy.in_turn = 3;
  EXPECT_THROW(build_program(experts(), strategy), Error);
}

}  // namespace
}  // namespace trireme::plan
