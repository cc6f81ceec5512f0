#include "trireme/plan/tensor_share.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "trireme/plan/local_spec.h"

namespace trireme::plan {
namespace {

model::ModelSpec llama(int kv_heads, const std::string& more = "") {
  return model::spec_from_config(
      fmt::format(R"({{"model_type":"llama","vocab_size":64,"hidden_size":32,"intermediate_size":48,
          "num_hidden_layers":2,"num_attention_heads":8,"num_key_value_heads":{},
          "max_position_embeddings":64{}}})",
                  kv_heads, more),
      "test");
}

int index_of(const model::ModelSpec& spec, const std::string& name) {
  const int index = spec.parameter_index(name);
  EXPECT_GE(index, 0) << name;
  return index;
}

TEST(TensorShare, EveryElementIsOnAsManyRanksAsItsHoldersAreTold) {
  for (const int kv_heads : {1, 2, 8}) {
    for (const int64_t tp : {2, 4, 8}) {
      const model::ModelSpec whole = llama(kv_heads, R"(,"attention_bias":true,"mlp_bias":true)");
      for (int parameter = 0; parameter < static_cast<int>(whole.parameters.size()); ++parameter) {
        const auto at = static_cast<size_t>(parameter);
        std::vector<int64_t> seen(static_cast<size_t>(whole.parameters[at].numel()), 0);
        int64_t holders = 0;
        for (int64_t place = 0; place < tp; ++place) {
          model::ModelSpec share = whole;
          cut_tensor(share, tp, place);
          holders = tensor_holders(share, parameter);
          for (int64_t element = 0; element < share.parameters[at].numel(); ++element)
            ++seen[static_cast<size_t>(share.parameters[at].whole_element(element))];
        }
        EXPECT_EQ(std::ranges::count(seen, holders), static_cast<int64_t>(seen.size()))
            << whole.parameters[at].name << ", tp " << tp;
      }
    }
  }
}

TEST(TensorShare, ShapesAreTheRanksOwn) {
  model::ModelSpec share = llama(2, R"(,"attention_bias":true,"mlp_bias":true)");
  cut_tensor(share, 4, 3);
  const auto shape = [&](const std::string& name) {
    return share.parameters[static_cast<size_t>(index_of(share, name))].shape;
  };
  using Shape = std::vector<int64_t>;
  EXPECT_EQ(shape("model.embed_tokens.weight"), Shape({16, 32}));
  EXPECT_EQ(shape("model.layers.0.self_attn.q_proj.weight"), Shape({8, 32}));
  EXPECT_EQ(shape("model.layers.0.self_attn.q_proj.bias"), Shape({8}));
  EXPECT_EQ(shape("model.layers.0.self_attn.k_proj.weight"), Shape({4, 32}));  // one head of two
  EXPECT_EQ(shape("model.layers.0.self_attn.k_proj.bias"), Shape({4}));
  EXPECT_EQ(shape("model.layers.0.self_attn.o_proj.weight"), Shape({32, 8}));
  EXPECT_EQ(shape("model.layers.0.self_attn.o_proj.bias"), Shape({32}));  // added once
  EXPECT_EQ(shape("model.layers.1.mlp.gate_proj.weight"), Shape({12, 32}));
  EXPECT_EQ(shape("model.layers.1.mlp.down_proj.weight"), Shape({32, 12}));
  EXPECT_EQ(shape("model.layers.1.mlp.down_proj.bias"), Shape({32}));
  EXPECT_EQ(shape("model.norm.weight"), Shape({32}));
  EXPECT_EQ(share.layers[0].attention.num_heads, 2);
  EXPECT_EQ(share.layers[0].attention.num_kv_heads, 1);
  EXPECT_EQ(share.layers[0].mlp.hidden, 12);
  // Ranks 2 and 3 have the second key head.
  EXPECT_EQ(share
                .parameters[static_cast<size_t>(
                    index_of(share, "model.layers.0.self_attn.k_proj.weight"))]
                .shard->first,
            4);
}

TEST(TensorShare, WhoHasAPartOfAGradient) {
  model::ModelSpec share = llama(2, R"(,"attention_bias":true,"mlp_bias":true)");
  cut_tensor(share, 4, 0);
  const auto shared = [&](const std::string& name) {
    return has_shared_gradient(share, index_of(share, name));
  };
  EXPECT_TRUE(shared("model.layers.0.input_layernorm.weight"));  // of own tokens
  EXPECT_TRUE(shared("model.norm.weight"));
  EXPECT_TRUE(shared("model.layers.0.self_attn.k_proj.weight"));  // of own query heads
  EXPECT_TRUE(shared("model.layers.0.self_attn.v_proj.bias"));
  EXPECT_FALSE(shared("model.layers.0.self_attn.q_proj.weight"));
  EXPECT_FALSE(shared("model.layers.0.self_attn.o_proj.bias"));  // of all tokens on every rank
  EXPECT_FALSE(shared("model.layers.0.mlp.down_proj.bias"));
  EXPECT_FALSE(shared("model.embed_tokens.weight"));
  EXPECT_EQ(num_shared_gradients(share, 1, 4), 32);                // the norm before
  EXPECT_EQ(num_shared_gradients(share, 1, 2), 2 * (4 * 32 + 4));  // key and value
  EXPECT_EQ(num_shared_gradients(share, 2, 4), 32);
}

TEST(TensorShare, OneRankHasAllOfIt) {
  model::ModelSpec share = llama(2);
  cut_tensor(share, 1, 0);
  EXPECT_FALSE(share.tensor.is_cut());
  EXPECT_EQ(tensor_holders(share, 0), 1);
  EXPECT_FALSE(has_shared_gradient(share, 1));
}

TEST(TensorShare, TokensOfAllRanksAreAll) {
  for (const int64_t tokens : {1, 7, 12, 33}) {
    for (const int64_t ranks : {1, 2, 4, 5}) {
      int64_t next = 0;
      for (int64_t place = 0; place < ranks; ++place) {
        const model::TensorShare share{ranks, place};
        EXPECT_EQ(share.first(tokens), next);
        next += share.count(tokens);
        EXPECT_LE(share.count(tokens), (tokens + ranks - 1) / ranks);
      }
      EXPECT_EQ(next, tokens);
    }
  }
}

TEST(TensorShare, TheModelThatAShareIsOf) {
  const model::ModelSpec whole = llama(2);
  Parallel parallel;
  parallel.tp = 4;
  const model::ModelSpec back = whole_spec(local_spec(whole, parallel, 2));
  EXPECT_FALSE(back.tensor.is_cut());
  for (size_t i = 0; i < whole.parameters.size(); ++i)
    EXPECT_EQ(back.parameters[i].shape, whole.parameters[i].shape);
  EXPECT_EQ(back.layers[1].attention.num_heads, whole.layers[1].attention.num_heads);
  EXPECT_EQ(back.layers[1].attention.num_kv_heads, whole.layers[1].attention.num_kv_heads);
  EXPECT_EQ(back.layers[1].mlp.hidden, whole.layers[1].mlp.hidden);
}

}  // namespace
}  // namespace trireme::plan
