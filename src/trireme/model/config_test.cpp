// Every option of every family: covered, without meaning, or refused by name.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "trireme/base/error.h"
#include "trireme/base/json.h"
#include "trireme/model/model_spec.h"

namespace trireme::model {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

Json tiny(const std::string& family) {
  if (family == "gpt2") {
    return {
        {"model_type", "gpt2"}, {"vocab_size", 64}, {"n_embd", 16}, {"n_layer", 2}, {"n_head", 4}};
  }
  if (family == "gemma2" || family == "gemma3_text") {
    return {{"model_type", family},     {"vocab_size", 64},       {"hidden_size", 16},
            {"intermediate_size", 24},  {"num_hidden_layers", 2}, {"num_attention_heads", 4},
            {"num_key_value_heads", 2}, {"head_dim", 8},          {"query_pre_attn_scalar", 4}};
  }
  return {{"model_type", family},    {"vocab_size", 64},       {"hidden_size", 16},
          {"intermediate_size", 24}, {"num_hidden_layers", 2}, {"num_attention_heads", 4},
          {"num_key_value_heads", 2}};
}

ModelSpec read(const Json& config) {
  return spec_from_config(config.dump(), "config.json");
}

ModelSpec read_with(const std::string& family, const Json& changes) {
  Json config = tiny(family);
  config.update(changes);
  return read(config);
}

struct Refusal {
  std::string family;
  Json changes;
  std::string message;
  std::string hint;
};

TEST(Config, RefusesWhatIsNotCoveredByName) {
  const std::vector<Refusal> refusals = {
      {"llama", {{"hidden_sise", 16}}, "\"hidden_sise\"", "hidden_size"},
      {"llama", {{"model_type", "lama"}}, "\"lama\"", "llama"},
      {"llama", {{"model_type", "t5"}}, "\"t5\"", ""},
      {"llama", {{"model_type", nullptr}}, "\"model_type\" is missing", "llama"},
      {"llama", {{"hidden_size", "16"}}, "\"hidden_size\" is \"16\"", ""},
      {"llama", {{"hidden_size", 16.5}}, "\"hidden_size\" is 16.5", ""},
      {"llama", {{"hidden_size", 0}}, "\"hidden_size\" is 0", ""},
      {"llama", {{"hidden_size", -16}}, "\"hidden_size\" is -16", ""},
      {"llama", {{"hidden_size", 18446744073709551615ULL}}, "out of range", ""},
      {"llama", {{"num_hidden_layers", 100000}}, "more than 4096 layers", ""},
      {"llama", {{"hidden_size", nullptr}}, "\"hidden_size\" is missing", ""},
      {"llama", {{"hidden_size", 18}}, "not a multiple of num_attention_heads = 4", ""},
      {"llama", {{"num_key_value_heads", 3}}, "does not divide num_attention_heads = 4", ""},
      {"llama", {{"head_dim", 5}}, "rotary positions turn pairs", "even"},
      {"llama", {{"hidden_act", "selu"}}, "\"selu\"", "silu"},
      {"llama", {{"rms_norm_eps", -1e-5}}, "\"rms_norm_eps\"", ""},
      {"llama", {{"rms_norm_eps", "small"}}, "not a finite number", ""},
      {"llama", {{"tie_word_embeddings", 1}}, "not true or false", ""},
      {"llama",
       {{"architectures", Json::array({"LlamaForSequenceClassification"})}},
       "LlamaForSequenceClassification",
       "LlamaForCausalLM"},
      {"llama", {{"architectures", "LlamaForCausalLM"}}, "not a list", ""},
      {"llama", {{"architectures", Json::array({1})}}, "not a string", ""},
      {"llama",
       {{"quantization_config", {{"quant_method", "gptq"}, {"bits", 4}}}},
       "\"quantization_config.quant_method\" is \"gptq\"",
       "DeepSeek-V3"},
      {"llama", {{"quantization_config", {{"fmt", "e4m3"}}}}, "quant_method\" is missing", ""},
      {"llama", {{"quantization_config", "fp8"}}, "not a JSON object", ""},
      {"llama",
       {{"quantization_config", {{"quant_method", "fp8"}, {"fmt", "e5m2"}}}},
       "\"quantization_config.fmt\" is \"e5m2\"",
       "e4m3"},
      {"llama",
       {{"quantization_config", {{"quant_method", "fp8"}, {"activation_scheme", "static"}}}},
       "\"static\"",
       "dynamic"},
      {"llama",
       {{"quantization_config", {{"quant_method", "fp8"}, {"weight_block_size", nullptr}}}},
       "weight_block_size",
       ""},
      {"llama",
       {{"quantization_config", {{"quant_method", "fp8"}, {"weight_block_size", {128, 0}}}}},
       "weight_block_size",
       ""},
      {"llama",
       {{"quantization_config", {{"quant_method", "fp8"}, {"expert_dtype", "fp4"}}}},
       "expert_dtype",
       ""},
      {"llama",
       {{"quantization_config", {{"quant_method", "fp8"}, {"weight_blok_size", {128, 128}}}}},
       "\"quantization_config.weight_blok_size\"",
       "weight_block_size"},
      {"llama", {{"quantization_config", {{"quant_method", "mxfp4"}}}}, "\"mxfp4\"", ""},
      {"llama", {{"pruned_heads", {{"0", Json::array({1})}}}}, "pruned heads", ""},
      {"llama", {{"is_encoder_decoder", true}}, "an encoder-decoder", ""},
      {"llama",
       {{"rope_scaling", {{"type", "yarm"}, {"factor", 4.0}}}},
       "\"rope_scaling.type\"",
       "yarn"},
      {"llama", {{"rope_scaling", {{"rope_type", "dynamic"}, {"factor", 2.0}}}}, "\"dynamic\"", ""},
      {"llama", {{"rope_scaling", {{"type", "linear"}}}}, "\"rope_scaling.factor\" is missing", ""},
      {"llama",
       {{"rope_scaling", {{"type", "linear"}, {"factor", 2.0}, {"fcator", 1}}}},
       "\"rope_scaling.fcator\"",
       "factor"},
      {"llama", {{"rope_scaling", 7}}, "not a JSON object", ""},
      {"llama",
       {{"rope_scaling", {{"rope_type", "default"}}},
        {"rope_parameters", {{"rope_type", "default"}}}},
       "beside",
       "keep one"},
      {"llama",
       {{"rope_parameters", {{"rope_type", "default"}, {"partial_rotary_factor", 0.5}}}},
       "rope_parameters.partial_rotary_factor",
       ""},
      {"llama", {{"rope_theta", -1.0}}, "\"rope_theta\"", ""},
      {"llama", {{"bos_token_id", "one"}}, "not a token id", ""},
      {"llama", {{"eos_token_id", Json::array()}}, "not a token id", ""},
      {"llama", {{"eos_token_id", Json::array({2, "3"})}}, "not a token id", ""},
      {"llama", {{"sliding_window", 5}, {"use_sliding_window", true}}, "sliding-window", ""},
      {"qwen2",
       {{"layer_types", Json::array({"full_attention", "sliding_attention"})}},
       "sliding_attention",
       "sliding_window"},
      {"qwen2", {{"layer_types", Json::array({"full_attention", "chunked"})}}, "\"chunked\"", ""},
      {"olmo2", {{"head_dim", 4}}, "\"head_dim\"", ""},
      {"phi3", {{"partial_rotary_factor", 0.3}}, "rotates 1 of 4 dimensions", "even"},
      {"phi3",
       {{"rope_scaling",
         {{"type", "longrope"}, {"short_factor", {1.0}}, {"long_factor", {2.0, 3.0}}}}},
       "short_factor\" has 1 entries for 2 pairs",
       ""},
      {"phi3",
       {{"rope_scaling", {{"type", "linear"}, {"factor", 2}, {"long_factor", 1}}}},
       "long_factor",
       ""},
      {"gemma2", {{"use_bidirectional_attention", true}}, "later tokens", ""},
      {"gemma3_text", {{"query_pre_attn_scalar", 0}}, "query_pre_attn_scalar", ""},
      {"gemma3_text", {{"attn_logit_softcapping", 50.0}}, "cap of the scores", ""},
      {"mistral", {{"sliding_window", -3}}, "sliding_window", ""},
      {"qwen2", {{"layer_types", Json::array({"full_attention"})}}, "1 entries for 2 layers", ""},
      {"qwen2", {{"attention_bias", true}}, "\"attention_bias\"", ""},
      {"qwen3", {{"mlp_bias", true}}, "\"mlp_bias\"", ""},
      {"gpt2", {{"add_cross_attention", true}}, "cross-attention", ""},
      {"gpt2", {{"n_head", 3}}, "not a multiple of n_head = 3", ""},
      {"gpt2", {{"activation_function", "gelu_fast"}}, "\"gelu_fast\"", "gelu"},
      {"gpt2", {{"rope_theta", 10000.0}}, "\"rope_theta\"", ""},
      {"gpt2", {{"num_key_value_heads", 2}}, "\"num_key_value_heads\"", ""},
  };
  for (const Refusal& refusal : refusals) {
    SCOPED_TRACE(refusal.family + " " + refusal.changes.dump());
    try {
      read_with(refusal.family, refusal.changes);
      ADD_FAILURE() << "accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kConfig);
      EXPECT_THAT(error.what(), AllOf(HasSubstr("config.json"), HasSubstr(refusal.message)));
      EXPECT_THAT(error.hint(), HasSubstr(refusal.hint));
    }
  }
}

TEST(Config, RefusesSizesThatCannotBeMeant) {
  EXPECT_THROW(read_with("llama", {{"vocab_size", 2147483647}, {"hidden_size", 2147483640}}),
               Error);
}

TEST(Config, RefusesTextThatIsNotAConfig) {
  for (const char* text : {"", "{", "[]", "3", "null", "{\"model_type\": \"llama\"} x"}) {
    EXPECT_THROW(spec_from_config(text, "config.json"), Error) << text;
  }
}

TEST(Config, IgnoresKeysWithoutMeaningForTraining) {
  const ModelSpec plain = read(tiny("llama"));
  const ModelSpec noisy = read_with("llama", {{"transformers_version", "5.23.0"},
                                              {"torch_dtype", "bfloat16"},
                                              {"use_cache", true},
                                              {"_name_or_path", "x"},
                                              {"pretraining_tp", 2},
                                              {"attention_dropout", 0.1},
                                              {"id2label", {{"0", "LABEL_0"}}},
                                              {"dtype", "float32"},
                                              {"sliding_window", nullptr},
                                              {"pruned_heads", Json::object()},
                                              {"auto_map", {{"AutoModel", "x.Y"}}},
                                              {"is_encoder_decoder", false}});
  EXPECT_EQ(noisy.num_parameters(), plain.num_parameters());
}

TEST(Config, IsKeptCanonically) {
  // transformers writes sorted keys, two spaces, ASCII: such a file comes back byte for byte.
  const std::string text = R"({
  "architectures": [
    "LlamaForCausalLM"
  ],
  "hidden_size": 16,
  "initializer_range": 0.02,
  "intermediate_size": 24,
  "model_type": "llama",
  "name_or_path": "caf\u00e9",
  "num_attention_heads": 4,
  "num_hidden_layers": 2,
  "rms_norm_eps": 1e-05,
  "rope_theta": 500000.0,
  "vocab_size": 64
}
)";
  EXPECT_EQ(spec_from_config(text, "config.json").config_json, text);
  const std::string squeezed = parse_json(text, "test").dump();
  EXPECT_EQ(spec_from_config(squeezed, "config.json").config_json, text);
}

TEST(Config, NamesTheExportedArchitecture) {
  for (const Json& given : {Json(nullptr), Json::array(), Json::array({"LlamaModel"})}) {
    const ModelSpec spec = read_with("llama", {{"architectures", given}});
    EXPECT_EQ(parse_json(spec.config_json, "test").at("architectures"),
              Json::array({"LlamaForCausalLM"}));
  }
}

TEST(Config, ReadsSpecialTokens) {
  const ModelSpec spec =
      read_with("llama", {{"bos_token_id", 1}, {"eos_token_id", Json::array({7, 8})}});
  EXPECT_EQ(spec.bos_token_id, 1);
  EXPECT_EQ(spec.eos_token_id, 7);
  EXPECT_EQ(spec.eos_token_ids, (std::vector<int>{7, 8}));
  const ModelSpec none = read_with("llama", {{"bos_token_id", nullptr}});
  EXPECT_EQ(none.bos_token_id, -1);
  const ModelSpec outside = read_with("gpt2", {{"bos_token_id", 50256}, {"eos_token_id", 63}});
  EXPECT_EQ(outside.bos_token_id, -1);
  EXPECT_EQ(outside.eos_token_id, 63);
  EXPECT_EQ(outside.eos_token_ids, std::vector<int>{63});
}

TEST(Rotary, DefaultsToTenThousand) {
  for (const char* family : {"llama", "qwen2"}) {
    const auto rotary = read(tiny(family)).layers[0].attention.rotary;
    ASSERT_TRUE(rotary.has_value());
    EXPECT_EQ(rotary->theta, 10000.0);
    EXPECT_EQ(rotary->dim, 4);
    EXPECT_EQ(rotary->scaling, RotaryScaling::kNone);
  }
  EXPECT_FALSE(read(tiny("gpt2")).layers[0].attention.rotary.has_value());
}

TEST(Rotary, ReadsBothSpellingsAlike) {
  const Json scaling = {{"factor", 8.0},
                        {"low_freq_factor", 1.0},
                        {"high_freq_factor", 4.0},
                        {"original_max_position_embeddings", 8192}};
  Json old_style = scaling;
  old_style["rope_type"] = "llama3";
  Json older_style = scaling;
  older_style["type"] = "llama3";
  Json new_style = old_style;
  new_style["rope_theta"] = 500000.0;
  for (const Json& changes : {Json{{"rope_theta", 500000.0}, {"rope_scaling", old_style}},
                              Json{{"rope_theta", 500000.0}, {"rope_scaling", older_style}},
                              Json{{"rope_parameters", new_style}}}) {
    const RotarySpec rotary = *read_with("llama", changes).layers[1].attention.rotary;
    EXPECT_EQ(rotary.theta, 500000.0);
    EXPECT_EQ(rotary.scaling, RotaryScaling::kLlama3);
    EXPECT_EQ(rotary.factor, 8.0);
    EXPECT_EQ(rotary.low_freq_factor, 1.0);
    EXPECT_EQ(rotary.high_freq_factor, 4.0);
    EXPECT_EQ(rotary.original_max_positions, 8192);
  }
  const RotarySpec linear =
      *read_with("qwen2", {{"rope_scaling", {{"type", "linear"}, {"factor", 2.5}}}})
           .layers[0]
           .attention.rotary;
  EXPECT_EQ(linear.scaling, RotaryScaling::kLinear);
  EXPECT_EQ(linear.factor, 2.5);
}

TEST(Rotary, Llama3FallsBackToTheModelsPositions) {
  const RotarySpec rotary = *read_with("llama", {{"max_position_embeddings", 4096},
                                                 {"rope_scaling",
                                                  {{"rope_type", "llama3"},
                                                   {"factor", 8.0},
                                                   {"low_freq_factor", 1.0},
                                                   {"high_freq_factor", 4.0}}}})
                                 .layers[0]
                                 .attention.rotary;
  EXPECT_EQ(rotary.original_max_positions, 4096);
}

TEST(Gpt2, ReadsItsOptions) {
  const ModelSpec spec = read_with("gpt2", {{"n_inner", 40},
                                            {"activation_function", "relu"},
                                            {"layer_norm_epsilon", 1e-3},
                                            {"scale_attn_weights", false},
                                            {"scale_attn_by_inverse_layer_idx", true},
                                            {"reorder_and_upcast_attn", true},
                                            {"tie_word_embeddings", false},
                                            {"resid_pdrop", 0.1},
                                            {"embd_pdrop", 0.1},
                                            {"attn_pdrop", 0.1},
                                            {"summary_type", "cls_index"},
                                            {"n_ctx", 1024}});
  EXPECT_EQ(spec.layers[0].mlp.hidden, 40);
  EXPECT_EQ(spec.layers[0].mlp.activation, Activation::kRelu);
  EXPECT_EQ(spec.layers[0].attention_norm->eps, 1e-3);
  EXPECT_EQ(spec.layers[0].attention.scale, 1.0);
  EXPECT_EQ(spec.layers[1].attention.scale, 0.5);
  EXPECT_FALSE(spec.tied_embeddings);
  EXPECT_EQ(spec.parameters.back().name, "lm_head.weight");
  EXPECT_EQ(spec.max_positions, 1024);
  EXPECT_TRUE(spec.learned_positions);

  const ModelSpec defaults = read(tiny("gpt2"));
  EXPECT_EQ(defaults.layers[1].attention.scale, 0.5);  // 1 / sqrt(16 / 4)
  EXPECT_EQ(defaults.layers[0].mlp.hidden, 64);
  EXPECT_EQ(defaults.layers[0].mlp.activation, Activation::kGeluTanh);
  EXPECT_TRUE(defaults.tied_embeddings);
}

TEST(Config, SurvivesRandomDamage) {
  // Whatever a damaged file holds, the answer is a spec or an Error with code kConfig.
  std::mt19937 random(7);
  const std::string original = tiny("qwen3").dump();
  int refused = 0;
  for (int i = 0; i < 3000; ++i) {
    std::string text = original;
    for (int change = 0; change < 3; ++change) {
      text[random() % text.size()] = static_cast<char>(random() % 256);
    }
    try {
      spec_from_config(text, "config.json");
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kConfig) << error.what();
      ++refused;
    }
  }
  EXPECT_GT(refused, 0);
}

std::vector<int64_t> windows_of(const ModelSpec& spec) {
  std::vector<int64_t> windows;
  for (const LayerSpec& layer : spec.layers) windows.push_back(layer.attention.window);
  return windows;
}

TEST(Config, WindowsFollowEachFamilysRule) {
  using Windows = std::vector<int64_t>;
  EXPECT_EQ(windows_of(read(tiny("mistral"))), (Windows{4096, 4096}));
  EXPECT_EQ(windows_of(read_with("mistral", {{"sliding_window", nullptr}})), (Windows{0, 0}));
  EXPECT_EQ(windows_of(read_with("mistral", {{"sliding_window", 8}})), (Windows{8, 8}));
  EXPECT_EQ(windows_of(read_with("phi3", {{"sliding_window", 2047}})), (Windows{2047, 2047}));
  EXPECT_EQ(windows_of(read(tiny("phi3"))), (Windows{0, 0}));
  EXPECT_EQ(windows_of(read_with("qwen2", {{"sliding_window", 8}})), (Windows{0, 0}));
  EXPECT_EQ(windows_of(read_with(
                "qwen2",
                {{"use_sliding_window", true}, {"sliding_window", 8}, {"max_window_layers", 1}})),
            (Windows{0, 8}));
  EXPECT_EQ(
      windows_of(read_with("qwen3", {{"use_sliding_window", true}, {"max_window_layers", 0}})),
      (Windows{4096, 4096}));
  EXPECT_EQ(windows_of(read(tiny("gemma2"))), (Windows{4096, 0}));
  EXPECT_EQ(
      windows_of(read_with("gemma3_text", {{"num_hidden_layers", 7}, {"sliding_window", 512}})),
      (Windows{512, 512, 512, 512, 512, 0, 512}));
  EXPECT_EQ(
      windows_of(read_with(
          "gemma3_text", {{"layer_types", Json::array({"full_attention", "sliding_attention"})}})),
      (Windows{0, 4096}));
}

TEST(Config, GemmaCapsScalesAndNorms) {
  const ModelSpec gemma2 = read(tiny("gemma2"));
  EXPECT_EQ(gemma2.logit_softcap, 30.0);
  EXPECT_EQ(gemma2.layers[0].attention.softcap, 50.0);
  EXPECT_EQ(gemma2.layers[0].attention.scale, 0.5);  // 4^-1/2
  EXPECT_EQ(gemma2.embedding_scale, 4.0);            // 16^1/2
  EXPECT_TRUE(gemma2.tied_embeddings);
  EXPECT_TRUE(gemma2.layers[0].attention_norm->unit_offset && gemma2.final_norm.unit_offset);
  EXPECT_TRUE(gemma2.layers[0].attention_post_norm && gemma2.layers[0].mlp_post_norm);
  EXPECT_EQ(gemma2.layers[0].mlp.activation, Activation::kGeluTanh);
  const ModelSpec plain = read_with(
      "gemma2", {{"attn_logit_softcapping", nullptr}, {"final_logit_softcapping", nullptr}});
  EXPECT_EQ(plain.logit_softcap, 0.0);
  EXPECT_EQ(plain.layers[1].attention.softcap, 0.0);

  const ModelSpec gemma3 = read_with(
      "gemma3_text", {{"layer_types", Json::array({"full_attention", "sliding_attention"})},
                      {"rope_scaling", {{"rope_type", "linear"}, {"factor", 8.0}}}});
  EXPECT_EQ(gemma3.logit_softcap, 0.0);
  EXPECT_EQ(gemma3.layers[0].attention.rotary->theta, 1e6);
  EXPECT_EQ(gemma3.layers[0].attention.rotary->factor, 8.0);
  EXPECT_EQ(gemma3.layers[1].attention.rotary->theta, 1e4);
  EXPECT_EQ(gemma3.layers[1].attention.rotary->scaling, RotaryScaling::kNone);
  EXPECT_EQ(gemma3.layers[0].attention.qk_norm, QkNorm::kHead);
  // The same in transformers 5's words.
  const ModelSpec newer = read_with(
      "gemma3_text",
      {{"layer_types", Json::array({"full_attention", "sliding_attention"})},
       {"rope_parameters",
        {{"full_attention", {{"rope_type", "linear"}, {"factor", 8.0}, {"rope_theta", 1e6}}},
         {"sliding_attention", {{"rope_type", "default"}, {"rope_theta", 1e4}}}}}});
  for (size_t i = 0; i < 2; ++i)
    EXPECT_EQ(*newer.layers[i].attention.rotary, *gemma3.layers[i].attention.rotary);
}

TEST(Config, YarnAndLongRopeHaveTheirPapersFactors) {
  const ModelSpec yarn = read_with(
      "qwen2", {{"rope_scaling",
                 {{"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 512}}}});
  const RotarySpec& rotary = *yarn.layers[0].attention.rotary;
  EXPECT_EQ(rotary.scaling, RotaryScaling::kYarn);
  EXPECT_NEAR(rotary.attention_factor, 0.1 * std::log(4.0) + 1.0, 1e-15);
  EXPECT_EQ(rotary.original_max_positions, 512);
  EXPECT_EQ(rotary.beta_fast, 32.0);
  const ModelSpec phi3 = read_with(
      "phi3", {{"max_position_embeddings", 4096},
               {"original_max_position_embeddings", 512},
               {"rope_scaling",
                {{"type", "su"}, {"short_factor", {1.0, 1.5}}, {"long_factor", {2.0, 3.0}}}}});
  const RotarySpec& long_rope = *phi3.layers[0].attention.rotary;
  EXPECT_EQ(long_rope.scaling, RotaryScaling::kLongRope);
  EXPECT_EQ(long_rope.factor, 8.0);
  EXPECT_NEAR(long_rope.attention_factor, std::sqrt(1.0 + std::log(8.0) / std::log(512.0)), 1e-15);
  EXPECT_EQ(long_rope.long_factor, (std::vector<double>{2.0, 3.0}));
}

TEST(Config, NamesNormsWhereTheFamilyPutsThem) {
  const auto names = [](const ModelSpec& spec, int part) {
    std::vector<std::string> found;
    for (const ParameterSpec& parameter : spec.parameters) {
      const bool norm = parameter.role == Role::kNormWeight;
      if (parameter.part == part && norm) found.push_back(parameter.name);
    }
    return found;
  };
  const std::string layer = "model.layers.0.";
  using Names = std::vector<std::string>;
  const ModelSpec olmo2 = read(tiny("olmo2"));
  EXPECT_EQ(names(olmo2, 1), (Names{layer + "post_attention_layernorm.weight"}));
  EXPECT_EQ(names(olmo2, 2), (Names{layer + "post_feedforward_layernorm.weight"}));
  const int q_norm = olmo2.parameter_index(layer + "self_attn.q_norm.weight");
  EXPECT_EQ(olmo2.parameters.at(static_cast<size_t>(q_norm)).shape, (std::vector<int64_t>{16}));
  const ModelSpec gemma2 = read(tiny("gemma2"));
  EXPECT_EQ(names(gemma2, 1),
            (Names{layer + "input_layernorm.weight", layer + "post_attention_layernorm.weight"}));
  EXPECT_EQ(names(gemma2, 2), (Names{layer + "pre_feedforward_layernorm.weight",
                                     layer + "post_feedforward_layernorm.weight"}));
}

/// Totals that the publishers state, of configs as they are published.
TEST(Config, PublishedModelsHaveTheirPublishedSizes) {
  const auto billions = [](const Json& config) {
    return static_cast<double>(read(config).num_parameters()) / 1e9;
  };
  EXPECT_NEAR(billions({{"model_type", "mistral"},
                        {"vocab_size", 32000},
                        {"hidden_size", 4096},
                        {"intermediate_size", 14336},
                        {"num_hidden_layers", 32},
                        {"num_attention_heads", 32},
                        {"num_key_value_heads", 8}}),
              7.24, 0.005);
  EXPECT_NEAR(billions({{"model_type", "gemma2"},
                        {"vocab_size", 256000},
                        {"hidden_size", 3584},
                        {"intermediate_size", 14336},
                        {"num_hidden_layers", 42},
                        {"num_attention_heads", 16},
                        {"num_key_value_heads", 8},
                        {"head_dim", 256}}),
              9.24, 0.005);
  EXPECT_NEAR(billions({{"model_type", "gemma2"},
                        {"vocab_size", 256000},
                        {"hidden_size", 4608},
                        {"intermediate_size", 36864},
                        {"num_hidden_layers", 46},
                        {"num_attention_heads", 32},
                        {"num_key_value_heads", 16},
                        {"head_dim", 128},
                        {"query_pre_attn_scalar", 144}}),
              27.2, 0.05);
  EXPECT_NEAR(billions({{"model_type", "gemma3_text"},
                        {"vocab_size", 262144},
                        {"hidden_size", 1152},
                        {"intermediate_size", 6912},
                        {"num_hidden_layers", 26},
                        {"num_attention_heads", 4},
                        {"num_key_value_heads", 1},
                        {"head_dim", 256}}),
              1.0, 0.005);
  EXPECT_NEAR(billions({{"model_type", "phi3"},
                        {"vocab_size", 32064},
                        {"hidden_size", 3072},
                        {"intermediate_size", 8192},
                        {"num_hidden_layers", 32},
                        {"num_attention_heads", 32}}),
              3.82, 0.005);
  EXPECT_NEAR(billions({{"model_type", "olmo2"},
                        {"vocab_size", 100352},
                        {"hidden_size", 4096},
                        {"intermediate_size", 11008},
                        {"num_hidden_layers", 32},
                        {"num_attention_heads", 32}}),
              7.30, 0.005);
}

}  // namespace
}  // namespace trireme::model
