#include "trireme/plan/explain_layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace trireme::plan {
namespace {

using ::testing::HasSubstr;

model::ModelSpec four_layer_llama() {
  return model::spec_from_config(R"({"model_type": "llama", "vocab_size": 16, "hidden_size": 16,
      "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 4,
      "num_key_value_heads": 2, "max_position_embeddings": 64})",
                                 "test");
}

TEST(ExplainLayout, SaysWhoHoldsWhatAndWhatIsSent) {
  Strategy strategy;
  strategy.lanes = 4;
  strategy.sequences = 8;
  strategy.seq_len = 8;
  EXPECT_EQ(explain_layout(four_layer_llama(), strategy), "");
  strategy.parallel = {.dp = 2, .pp = 2, .schedule = ScheduleKind::kZeroBubbleV, .chunks = 2};
  const std::string text = explain_layout(four_layer_llama(), strategy);
  EXPECT_THAT(text, HasSubstr("layout: 4 ranks, dp 2 pp 2 zbv chunks 2"));
  EXPECT_THAT(text, HasSubstr("stage   0  ranks 0, 1         embedding to layer.0.mlp"));
  EXPECT_THAT(text, HasSubstr("stage   2  ranks 2, 3         layer.2.attention to layer.2.mlp"));
  EXPECT_THAT(text, HasSubstr("stage   3  ranks 0, 1         layer.3.attention to head"));
  EXPECT_THAT(text, HasSubstr("data          2 x 2: {0, 1} {2, 3}"));
  EXPECT_THAT(text, HasSubstr("pipeline      2 x 2: {0, 2} {1, 3}"));
  const OrderedJson json = layout_json(four_layer_llama(), strategy);
  EXPECT_EQ(json["ranks"], 4);
  EXPECT_EQ(json["stages"][3]["ranks"], OrderedJson({0, 1}));
  strategy.parallel = {.dp = 4, .zero = 3, .shard = 2};
  const std::string blocks = explain_layout(four_layer_llama(), strategy);
  EXPECT_THAT(blocks, HasSubstr("layout: 4 ranks, dp 4 zero 3 shard 2"));
  EXPECT_THAT(blocks, HasSubstr("shard         2 x 2: {0, 1} {2, 3}"));
  EXPECT_THAT(blocks, HasSubstr("replicate     2 x 2: {0, 2} {1, 3}"));
  // Rank 0 sends 4 micro-batches down the V and their gradients from its other arm: 8 tokens of 16 floats each.
  EXPECT_EQ(json["sent"]["send"]["transfers"], 8);
  EXPECT_EQ(json["sent"]["send"]["bytes"], 8.0 * 8 * 16 * 4);
}

}  // namespace
}  // namespace trireme::plan
