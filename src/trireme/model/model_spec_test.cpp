#include "trireme/model/model_spec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "trireme/base/error.h"
#include "trireme/base/json.h"

namespace trireme::model {
namespace {

using ::testing::HasSubstr;

// Published sizes; every one also counted with transformers 5.23 on meta tensors.
TEST(Preset, HasThePublishedNumberOfParameters) {
  const std::vector<std::pair<std::string, int64_t>> published = {
      {"gpt2-124m", 124439808},    {"gpt2-355m", 354823168},    {"gpt2-774m", 774030080},
      {"gpt2-1558m", 1557611200},  {"llama-1.6b", 1569835008},  {"llama2-7b", 6738415616},
      {"llama3-8b", 8030261248},   {"llama3.1-8b", 8030261248}, {"llama3.1-70b", 70553706496},
      {"llama3.2-1b", 1235814400}, {"qwen2-0.5b", 494032768},   {"qwen2.5-7b", 7615616512},
      {"qwen3-0.6b", 596049920},   {"qwen3-8b", 8190735360},
  };
  for (const auto& [name, count] : published) {
    EXPECT_EQ(spec_from_preset(name).num_parameters(), count) << name;
  }
}

TEST(Preset, OursHaveTheSizesTheirNamesSay) {
  // 12 (4 d^2 + 3 d f) + 25 d + V d with d = 768, f = 2048, V = 32000.
  EXPECT_EQ(spec_from_preset("llama-110m").num_parameters(), 109529856);
  // 6 (4 d^2 + 3 d f) + 13 d + V d with d = 384, f = 1024, V = 8192: 10.6 million in the blocks.
  EXPECT_EQ(spec_from_preset("llama-11m").num_parameters(), 10616832 + 4992 + 3145728);
  const int64_t ours = spec_from_preset("trireme-default").num_parameters();
  EXPECT_GE(ours, 5'000'000);
  EXPECT_LE(ours, 15'000'000);
}

TEST(Preset, TakesAnotherVocabulary) {
  const ModelSpec spec = spec_from_preset("gpt2-124m", 300);
  EXPECT_EQ(spec.vocab_size, 300);
  EXPECT_EQ(spec.num_parameters(), 124439808 - (50257 - 300) * 768);
  EXPECT_EQ(spec.eos_token_id, -1);  // 50256 is not in it
  EXPECT_EQ(parse_json(spec.config_json, "test").at("vocab_size"), 300);
}

TEST(Preset, SuggestsTheNearestName) {
  try {
    spec_from_preset("llama3-8B");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kConfig);
    EXPECT_THAT(error.what(), HasSubstr("llama3-8B"));
    EXPECT_THAT(error.hint(), HasSubstr("llama3-8b"));
  }
}

struct Expected {
  std::string name;
  std::vector<int64_t> shape;
};

void expect_parameters(const ModelSpec& spec, const std::vector<Expected>& expected) {
  ASSERT_EQ(spec.parameters.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(spec.parameters[i].name, expected[i].name) << i;
    EXPECT_EQ(spec.parameters[i].shape, expected[i].shape) << expected[i].name;
    EXPECT_EQ(spec.parameter_index(expected[i].name), static_cast<int>(i));
  }
  EXPECT_EQ(spec.parameter_index("no such name"), -1);
}

// Names and shapes are those of transformers' modules in the same tiny configurations.
TEST(Parameters, OfLlamaWithEveryBias) {
  const ModelSpec spec = spec_from_config(R"({"model_type": "llama", "vocab_size": 10,
      "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 4,
      "num_key_value_heads": 2, "attention_bias": true, "mlp_bias": true, "head_dim": 6})",
                                          "test");
  expect_parameters(spec, {
                              {"model.embed_tokens.weight", {10, 8}},
                              {"model.layers.0.input_layernorm.weight", {8}},
                              {"model.layers.0.self_attn.q_proj.weight", {24, 8}},
                              {"model.layers.0.self_attn.k_proj.weight", {12, 8}},
                              {"model.layers.0.self_attn.v_proj.weight", {12, 8}},
                              {"model.layers.0.self_attn.q_proj.bias", {24}},
                              {"model.layers.0.self_attn.k_proj.bias", {12}},
                              {"model.layers.0.self_attn.v_proj.bias", {12}},
                              {"model.layers.0.self_attn.o_proj.weight", {8, 24}},
                              {"model.layers.0.self_attn.o_proj.bias", {8}},
                              {"model.layers.0.post_attention_layernorm.weight", {8}},
                              {"model.layers.0.mlp.gate_proj.weight", {12, 8}},
                              {"model.layers.0.mlp.up_proj.weight", {12, 8}},
                              {"model.layers.0.mlp.gate_proj.bias", {12}},
                              {"model.layers.0.mlp.up_proj.bias", {12}},
                              {"model.layers.0.mlp.down_proj.weight", {8, 12}},
                              {"model.layers.0.mlp.down_proj.bias", {8}},
                              {"model.norm.weight", {8}},
                              {"lm_head.weight", {10, 8}},
                          });
  EXPECT_EQ(spec.num_parameters(), 1136);
  EXPECT_DOUBLE_EQ(spec.layers[0].attention.scale, 1.0 / std::sqrt(6.0));
}

TEST(Parameters, OfQwen2) {
  const ModelSpec spec = spec_from_config(R"({"model_type": "qwen2", "vocab_size": 10,
      "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 4,
      "num_key_value_heads": 2, "tie_word_embeddings": true})",
                                          "test");
  expect_parameters(spec, {
                              {"model.embed_tokens.weight", {10, 8}},
                              {"model.layers.0.input_layernorm.weight", {8}},
                              {"model.layers.0.self_attn.q_proj.weight", {8, 8}},
                              {"model.layers.0.self_attn.k_proj.weight", {4, 8}},
                              {"model.layers.0.self_attn.v_proj.weight", {4, 8}},
                              {"model.layers.0.self_attn.q_proj.bias", {8}},
                              {"model.layers.0.self_attn.k_proj.bias", {4}},
                              {"model.layers.0.self_attn.v_proj.bias", {4}},
                              {"model.layers.0.self_attn.o_proj.weight", {8, 8}},
                              {"model.layers.0.post_attention_layernorm.weight", {8}},
                              {"model.layers.0.mlp.gate_proj.weight", {12, 8}},
                              {"model.layers.0.mlp.up_proj.weight", {12, 8}},
                              {"model.layers.0.mlp.down_proj.weight", {8, 12}},
                              {"model.norm.weight", {8}},
                          });
  EXPECT_EQ(spec.num_parameters(), 600);
}

TEST(Parameters, OfQwen3) {
  const ModelSpec spec = spec_from_config(R"({"model_type": "qwen3", "vocab_size": 10,
      "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 4,
      "num_key_value_heads": 2, "head_dim": 6, "attention_bias": true})",
                                          "test");
  expect_parameters(spec, {
                              {"model.embed_tokens.weight", {10, 8}},
                              {"model.layers.0.input_layernorm.weight", {8}},
                              {"model.layers.0.self_attn.q_proj.weight", {24, 8}},
                              {"model.layers.0.self_attn.k_proj.weight", {12, 8}},
                              {"model.layers.0.self_attn.v_proj.weight", {12, 8}},
                              {"model.layers.0.self_attn.q_proj.bias", {24}},
                              {"model.layers.0.self_attn.k_proj.bias", {12}},
                              {"model.layers.0.self_attn.v_proj.bias", {12}},
                              {"model.layers.0.self_attn.q_norm.weight", {6}},
                              {"model.layers.0.self_attn.k_norm.weight", {6}},
                              {"model.layers.0.self_attn.o_proj.weight", {8, 24}},
                              {"model.layers.0.self_attn.o_proj.bias", {8}},
                              {"model.layers.0.post_attention_layernorm.weight", {8}},
                              {"model.layers.0.mlp.gate_proj.weight", {12, 8}},
                              {"model.layers.0.mlp.up_proj.weight", {12, 8}},
                              {"model.layers.0.mlp.down_proj.weight", {8, 12}},
                              {"model.norm.weight", {8}},
                              {"lm_head.weight", {10, 8}},
                          });
  EXPECT_EQ(spec.num_parameters(), 1116);
  // Without head_dim, transformers' qwen3 has heads of 128 whatever the hidden size.
  const ModelSpec plain = spec_from_config(R"({"model_type": "qwen3", "vocab_size": 10,
      "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2,
      "num_key_value_heads": 1})",
                                           "test");
  EXPECT_EQ(plain.layers[0].attention.head_dim, 128);
}

TEST(Parameters, OfGpt2UnpackTheQueryKeyValueMatrix) {
  const ModelSpec spec = spec_from_config(R"({"model_type": "gpt2", "vocab_size": 10, "n_embd": 8,
      "n_layer": 1, "n_head": 2, "n_positions": 6})",
                                          "test");
  expect_parameters(spec, {
                              {"transformer.wte.weight", {10, 8}},
                              {"transformer.wpe.weight", {6, 8}},
                              {"transformer.h.0.ln_1.weight", {8}},
                              {"transformer.h.0.ln_1.bias", {8}},
                              {"transformer.h.0.attn.c_attn.query.weight", {8, 8}},
                              {"transformer.h.0.attn.c_attn.key.weight", {8, 8}},
                              {"transformer.h.0.attn.c_attn.value.weight", {8, 8}},
                              {"transformer.h.0.attn.c_attn.query.bias", {8}},
                              {"transformer.h.0.attn.c_attn.key.bias", {8}},
                              {"transformer.h.0.attn.c_attn.value.bias", {8}},
                              {"transformer.h.0.attn.c_proj.weight", {8, 8}},
                              {"transformer.h.0.attn.c_proj.bias", {8}},
                              {"transformer.h.0.ln_2.weight", {8}},
                              {"transformer.h.0.ln_2.bias", {8}},
                              {"transformer.h.0.mlp.c_fc.weight", {32, 8}},
                              {"transformer.h.0.mlp.c_fc.bias", {32}},
                              {"transformer.h.0.mlp.c_proj.weight", {8, 32}},
                              {"transformer.h.0.mlp.c_proj.bias", {8}},
                              {"transformer.ln_f.weight", {8}},
                              {"transformer.ln_f.bias", {8}},
                          });
  EXPECT_EQ(spec.num_parameters(), 1016);
  for (const ParameterSpec& parameter : spec.parameters) {
    const bool linear = parameter.is_product();
    EXPECT_EQ(parameter.transposed_on_disk, linear) << parameter.name;
    const bool packed = parameter.name.find("c_attn") != std::string::npos;
    EXPECT_EQ(parameter.packed_on_disk,
              packed
                  ? "transformer.h.0.attn.c_attn" + parameter.name.substr(parameter.name.rfind('.'))
                  : "")
        << parameter.name;
  }
}

TEST(Parameters, AreInitialisedAndDecayedByRole) {
  const ModelSpec spec = spec_from_preset("gpt2-124m");
  for (const ParameterSpec& parameter : spec.parameters) {
    SCOPED_TRACE(parameter.name);
    switch (parameter.role) {
      case Role::kNormWeight:
        EXPECT_EQ(parameter.init.kind, InitKind::kOnes);
        EXPECT_FALSE(parameter.decays());
        break;
      case Role::kNormBias:
      case Role::kBias:
        EXPECT_EQ(parameter.init.kind, InitKind::kZeros);
        EXPECT_FALSE(parameter.decays());
        break;
      case Role::kAttentionOut:
      case Role::kDown:
        EXPECT_EQ(parameter.init.kind, InitKind::kNormal);
        EXPECT_DOUBLE_EQ(parameter.init.std, 0.02 / std::sqrt(24.0));
        EXPECT_TRUE(parameter.decays());
        break;
      case Role::kPositionEmbedding:
        EXPECT_DOUBLE_EQ(parameter.init.std, 0.02);
        EXPECT_FALSE(parameter.decays());
        break;
      default:
        EXPECT_EQ(parameter.init.kind, InitKind::kNormal);
        EXPECT_DOUBLE_EQ(parameter.init.std, 0.02);
        EXPECT_TRUE(parameter.decays());
    }
  }
}

TEST(Parts, ComeInForwardOrderAndOwnConsecutiveParameters) {
  for (const std::string& preset : preset_names()) {
    const ModelSpec spec = spec_from_preset(preset);
    size_t parts = 2;
    for (const LayerSpec& layer : spec.layers) parts += layer.moe ? 5 : 2;
    ASSERT_EQ(spec.parts.size(), parts + 2 * static_cast<size_t>(spec.num_mtp_layers)) << preset;
    EXPECT_EQ(spec.parts.front().name, "embedding");
    EXPECT_EQ(spec.parts[1].name, "layer.0.attention");
    EXPECT_EQ(spec.parts[2].name, spec.layers[0].moe ? "layer.0.router" : "layer.0.mlp");
    EXPECT_EQ(spec.parts.back().kind,
              spec.num_mtp_layers > 0 ? PartKind::kMtpHead : PartKind::kHead);
    std::set<std::string> names;
    int part = 0;
    for (const ParameterSpec& parameter : spec.parameters) {
      // Dispatch has no parameters, nor has combine without a shared expert.
      for (int skipped = part + 1; skipped < parameter.part; ++skipped) {
        const PartKind kind = spec.parts[static_cast<size_t>(skipped)].kind;
        EXPECT_TRUE(kind == PartKind::kDispatch || kind == PartKind::kCombine) << parameter.name;
      }
      EXPECT_GE(parameter.part, part) << parameter.name;
      part = parameter.part;
      EXPECT_TRUE(names.insert(parameter.name).second) << parameter.name;
    }
    EXPECT_EQ(part, static_cast<int>(spec.parts.size()) - 1);
  }
}

}  // namespace
}  // namespace trireme::model
