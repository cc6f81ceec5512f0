#include "trireme/plan/validate_parallel.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "trireme/model/moe_test_configs.h"
#include "trireme/plan/schedule.h"
#include "trireme/plan/schedule_text.h"

namespace trireme::plan {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

model::ModelSpec dense() {
  return model::spec_from_config(R"({"model_type": "llama", "vocab_size": 96, "hidden_size": 48,
      "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 8,
      "num_key_value_heads": 2, "max_position_embeddings": 64})",
                                 "test");
}

model::ModelSpec experts(const char* family) {
  Json config = model::tiny_moe(family);
  config["num_hidden_layers"] = 4;
  config["vocab_size"] = 96;
  config[family == std::string("deepseek_v3") ? "n_routed_experts" : "num_experts"] = 8;
  return model::spec_from_config(config.dump(), "test");
}

Strategy strategy_of(const Parallel& parallel) {
  Strategy strategy;
  strategy.micro = 2;
  strategy.lanes = 16;
  strategy.sequences = 64;
  strategy.seq_len = 48;
  strategy.parallel = parallel;
  return strategy;
}

std::string reason_of(const model::ModelSpec& spec, const Parallel& parallel) {
  const std::vector<ParallelProblem> problems = validate_parallel(spec, strategy_of(parallel));
  return problems.empty() ? "" : problems.front().reason;
}

TEST(ValidateParallel, SaysWhatIsWrongAndWhatIsNear) {
  const model::ModelSpec llama = dense();
  EXPECT_EQ(reason_of(llama, {}), "");
  EXPECT_EQ(reason_of(llama, {.dp = 17}),
            "parallel.dp = 17: every data parallel rank needs a lane of its own, and batch.lanes = "
            "16: use parallel.dp = 16");
  EXPECT_EQ(reason_of(llama, {.dp = 3}), "");
  EXPECT_EQ(reason_of(llama, {.tp = 3}),
            "parallel.tp = 3 does not divide 8 attention heads: use parallel.tp = 2 or 4");
  EXPECT_EQ(reason_of(llama, {.tp = 8}), "");  // more ranks than key and value heads
  EXPECT_EQ(reason_of(llama, {.tp = 8, .cp = 2}), "");
  EXPECT_EQ(reason_of(llama, {.tp = 8, .cp = 8, .cp_kind = ContextKind::kGather}),
            "parallel.tp = 8 does not divide the 12 tokens that a micro-batch has on a rank, which "
            "norms share: use parallel.tp = 4");
  EXPECT_EQ(reason_of(llama, {.zero = 4}),
            "parallel.zero = 4: ZeRO has stages 0 to 3: use parallel.zero = 3");
  EXPECT_EQ(reason_of(llama, {.dp = 8, .zero = 1, .shard = 3}),
            "parallel.shard = 3 does not divide parallel.dp = 8: use parallel.shard = 2 or 4");
  EXPECT_THAT(reason_of(llama, {.dp = 8, .shard = 2}), HasSubstr("use parallel.shard = 0"));
  EXPECT_EQ(reason_of(llama, {.dp = 8, .zero = 3, .shard = 1}),
            "parallel.shard = 1: one rank has nothing to share with: use parallel.shard = 0 or 2");
  EXPECT_THAT(
      reason_of(llama, {.dp = 6, .zero = 3, .shard = 2}),
      HasSubstr("parallel.dp = 6 does not divide batch.lanes = 16, which replicas of shards "
                "(parallel.shard = 2) need: use parallel.dp = 4 or 8"));
  EXPECT_EQ(reason_of(llama, {.pp = 9}),
            "parallel.pp = 9 x parallel.chunks = 1 are 9 stages; the model can be cut into 8: "
            "embedding, 6 layers, head: use parallel.pp = 8");
  EXPECT_EQ(
      reason_of(llama, {.pp = 2, .schedule = ScheduleKind::kZeroBubbleV}),
      "parallel.schedule = \"zbv\" has two stages on every rank, not parallel.chunks = 1: use "
      "parallel.chunks = 2");
  EXPECT_THAT(reason_of(llama, {.pp = 2, .schedule = ScheduleKind::kInterleaved}),
              HasSubstr("needs two stages on every rank or more, not parallel.chunks = 1: use "
                        "parallel.chunks = 2"));
  model::ModelSpec tied = llama;
  tied.tied_embeddings = true;
  EXPECT_EQ(
      reason_of(tied, {.pp = 2}),
      "parallel.pp = 2: the model's head multiplies with its embedding, whose gradients a "
      "pipeline adds in the order of one rank only with one micro-batch a lane (batch.lanes = "
      "32): use parallel.pp = 1");
  Strategy one_a_lane = strategy_of({.pp = 2});
  one_a_lane.sequences = 32;
  const std::vector<ParallelProblem> apart = validate_parallel(tied, one_a_lane);
  ASSERT_THAT(apart, SizeIs(1));
  EXPECT_EQ(apart[0].reason,
            "parallel.schedule = \"1f1b\": the model's head multiplies with its embedding, which "
            "this schedule has on another rank: use parallel.chunks = 2 with parallel.schedule = "
            "\"zbv\"");
  one_a_lane.parallel = apart[0].instead;
  EXPECT_THAT(validate_parallel(tied, one_a_lane), IsEmpty());
  EXPECT_EQ(
      reason_of(llama, {.dp = 3, .pp = 2, .schedule = ScheduleKind::kZeroBubbleV, .chunks = 2}),
      "parallel.dp = 3 does not divide batch.lanes = 16, which several stages a rank "
      "(parallel.chunks = 2) need: use parallel.dp = 2 or 4");
  EXPECT_EQ(
      reason_of(llama, {.chunks = 2}),
      "parallel.chunks = 2: with parallel.pp = 1 there are no stages: use parallel.chunks = 1");
  EXPECT_EQ(reason_of(llama, {.cp = 5}),
            "parallel.cp = 5 (ring) cuts a sequence into 10 pieces, which does not divide "
            "data.seq_len = 48: use parallel.cp = 4 or 6");
  EXPECT_EQ(reason_of(llama, {.cp = 8, .cp_kind = ContextKind::kGather}), "");
  EXPECT_EQ(reason_of(llama, {.tp = 2, .cp = 6, .cp_kind = ContextKind::kUlysses}),
            "parallel.cp_kind = \"ulysses\": parallel.cp x parallel.tp = 12 does not divide 8 "
            "attention heads: use parallel.cp_kind = \"ring\"");
  EXPECT_EQ(reason_of(llama, {.dp = 2, .ep = 2}),
            "parallel.ep = 2: the model has no experts: use parallel.ep = 1");
  EXPECT_EQ(reason_of(experts("qwen3_moe"), {.dp = 3, .ep = 3}),
            "parallel.ep = 3 does not divide 8 experts of a layer: use parallel.ep = 1");
  EXPECT_EQ(reason_of(experts("qwen3_moe"), {.dp = 4, .ep = 8}),
            "parallel.ep x parallel.etp = 8 x 1 does not divide the 4 ranks of a stage (dp x cp x "
            "tp): use parallel.ep = 4");
  EXPECT_EQ(reason_of(experts("qwen3_moe"), {.dp = 2, .tp = 2, .ep = 2, .etp = 2}), "");
  EXPECT_THAT(reason_of(llama, {.tp = 0}), HasSubstr("parallel.tp = 0 is not between 1 and"));
  EXPECT_THAT(reason_of(llama, {.dp = int64_t{1} << 40}), HasSubstr("use parallel.dp = 16"));
}

TEST(ValidateParallel, ChangesSeveralThingsWhereOneWillNotDo) {
  const std::vector<ParallelProblem> problems =
      validate_parallel(dense(), strategy_of({.tp = 3, .ep = 3}));
  ASSERT_THAT(problems, SizeIs(3));  // heads, key and value heads, experts
  EXPECT_THAT(problems[0].reason, HasSubstr("use parallel.tp = 2 with parallel.ep = 1"));
  EXPECT_THAT(validate_parallel(dense(), strategy_of(problems[0].instead)), IsEmpty());
}

TEST(ValidateParallel, AScheduleOfAFileFitsItsRanksAndMicroBatches) {
  Parallel parallel{.dp = 4, .pp = 2};
  parallel.schedule = ScheduleKind::kText;
  parallel.schedule_file = "mine.txt";
  // 32 micro-batches over 4 data parallel ranks.
  parallel.schedule_text = schedule_text(make_schedule(ScheduleKind::kGPipe, 2, 8, 1));
  EXPECT_EQ(reason_of(dense(), parallel), "");
  parallel.dp = 8;
  EXPECT_EQ(reason_of(dense(), parallel),
            "parallel.schedule = \"mine.txt\" is for 8 micro-batches, and a data parallel rank has "
            "4: use parallel.schedule = \"1f1b\"");
  parallel.dp = 3;
  EXPECT_THAT(reason_of(dense(), parallel), HasSubstr("a data parallel rank has 10 to 12"));
  parallel.dp = 4;
  parallel.pp = 3;
  EXPECT_EQ(reason_of(dense(), parallel),
            "parallel.schedule = \"mine.txt\" is for 2 ranks, not parallel.pp = 3: use parallel.pp "
            "= 2");
  parallel.pp = 2;
  parallel.schedule_text = "0F0 0B0\n1B0\n";
  EXPECT_THAT(reason_of(dense(), parallel),
              HasSubstr("parallel.schedule: mine.txt:2: stage 1 lacks the forward"));
}

// The rules once more, in one place and without advice.
bool allowed(const model::ModelSpec& spec, const Strategy& s) {
  const Parallel& p = s.parallel;
  bool good = p.dp <= s.lanes && p.zero <= 3;
  if (p.shard > 0)
    good = good && p.zero > 0 && p.dp % p.shard == 0 && p.shard > 1 &&
           (p.shard == p.dp || s.lanes % p.dp == 0);
  const bool v = p.schedule == ScheduleKind::kZeroBubbleV || p.schedule == ScheduleKind::kVHalf ||
                 p.schedule == ScheduleKind::kDualPipeV;
  if (p.pp == 1) {
    good = good && p.chunks == 1;
  } else {
    const int64_t most = spec.num_main_layers() + 2;
    const bool shares = spec.tied_embeddings || spec.num_mtp_layers > 0;
    good = good && (!shares || (v && s.micro_batches_per_lane() == 1)) &&
           (p.chunks == 1 || s.lanes % p.dp == 0);
    good = good && p.pp * p.chunks <= most;
    good = good &&
           (p.schedule == ScheduleKind::kInterleaved ? p.chunks >= 2 : p.chunks == (v ? 2 : 1));
  }
  const auto even = [](int64_t a, int64_t b) { return a % b == 0 || b % a == 0; };
  bool any_experts = false;
  if (p.cp > 1)
    good = good && s.seq_len % (p.cp_kind == ContextKind::kUlysses ? p.cp : 2 * p.cp) == 0;
  good = good && spec.vocab_size % p.tp == 0 && (s.micro * s.seq_len / p.cp) % p.tp == 0;
  for (const model::LayerSpec& layer : spec.layers) {
    const int64_t kv = layer.attention.latent ? 0 : layer.attention.num_kv_heads;
    good = good && layer.attention.num_heads % p.tp == 0 && (kv == 0 || even(kv, p.tp));
    if (p.cp > 1 && p.cp_kind == ContextKind::kUlysses)
      good = good && layer.attention.num_heads % (p.tp * p.cp) == 0 &&
             (kv == 0 || even(kv, p.tp * p.cp));
    if (!layer.moe) {
      good = good && layer.mlp.hidden % p.tp == 0;
      continue;
    }
    any_experts = true;
    good = good && layer.moe->shared_hidden % p.tp == 0 && layer.moe->num_experts % p.ep == 0 &&
           layer.moe->expert.hidden % p.etp == 0;
  }
  return good && (any_experts ? p.dp * p.cp * p.tp % (p.ep * p.etp) == 0 : p.ep * p.etp == 1);
}

TEST(ValidateParallel, EveryCombinationToSixtyFourRanksIsValidOrHasAReasonAndAWayOut) {
  std::mt19937 random(17);
  const auto pick = [&](std::initializer_list<int> values) {
    return static_cast<int64_t>(values.begin()[random() % values.size()]);
  };
  int valid = 0;
  int refused = 0;
  for (const model::ModelSpec& spec : {dense(), experts("qwen3_moe"), experts("deepseek_v3")}) {
    for (int64_t dp = 1; dp <= 64; ++dp) {
      for (int64_t tp = 1; dp * tp <= 64; ++tp) {
        for (int64_t pp = 1; dp * tp * pp <= 64; ++pp) {
          for (int64_t cp = 1; dp * tp * pp * cp <= 64; ++cp) {
            Parallel parallel{.dp = dp, .tp = tp, .pp = pp, .cp = cp};
            parallel.schedule = static_cast<ScheduleKind>(random() % 7);
            const int fixed = fixed_chunks(parallel.schedule);
            parallel.chunks = pp == 1 ? 1 : fixed > 0 ? fixed : 2;
            if (random() % 8 == 0) parallel.chunks = pick({1, 2, 3, 4});
            parallel.cp_kind = static_cast<ContextKind>(random() % 3);
            parallel.zero = pick({0, 1, 2, 3});
            if (random() % 4 == 0) parallel.shard = pick({1, 2, 3, 4});
            if (random() % 2 == 0) parallel.ep = pick({1, 2, 3, 4, 6, 8});
            if (random() % 4 == 0) parallel.etp = pick({1, 2, 3});
            Strategy strategy = strategy_of(parallel);
            const std::vector<ParallelProblem> problems = validate_parallel(spec, strategy);
            ASSERT_EQ(problems.empty(), allowed(spec, strategy)) << describe(parallel);
            ++(problems.empty() ? valid : refused);
            for (const ParallelProblem& problem : problems) {
              EXPECT_THAT(problem.reason, HasSubstr("parallel."));
              EXPECT_THAT(problem.reason, HasSubstr(": use parallel."));
              strategy.parallel = problem.instead;
              ASSERT_THAT(validate_parallel(spec, strategy), IsEmpty()) << problem.reason;
              ASSERT_TRUE(allowed(spec, strategy)) << problem.reason;
              ASSERT_NE(problem.instead, parallel);
            }
          }
        }
      }
    }
  }
  EXPECT_GT(valid, 100);
  EXPECT_GT(refused, 1000);
}

}  // namespace
}  // namespace trireme::plan
