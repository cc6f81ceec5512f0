#include "trireme/train/model_inspection.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "trireme/base/error.h"
#include "trireme/base/file.h"
#include "trireme/base/log.h"
#include "trireme/checkpoint/model_source.h"

namespace trireme::train {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

const fs::path kGoldens = TRIREME_SOURCE_DIR "/tests/goldens";

class ModelInspectionTest : public ::testing::Test {
 protected:
  ModelInspectionTest() {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::path(::testing::TempDir()) / (std::string("inspection_") + info->name());
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~ModelInspectionTest() override { fs::remove_all(folder_); }

  fs::path copy(const std::string& name) {
    for (const char* file : {"config.json", "model.safetensors"})
      fs::copy_file(kGoldens / "models" / name / file, folder_ / file);
    return folder_;
  }
  void write(const std::string& name, const std::string& text) {
    std::ofstream(folder_ / name, std::ios::binary) << text;
  }
  void change_config(const std::function<void(OrderedJson&)>& change) {
    OrderedJson config = parse_ordered_json(read_file(folder_ / "config.json"), "config.json");
    change(config);
    write("config.json", config.dump());
  }
  /// "level: what" of every finding.
  static std::string findings(const ModelInspection& m) {
    std::string text;
    for (const auto& f : m.findings)
      text += std::string(f.level == device::Finding::Level::kProblem   ? "problem"
                          : f.level == device::Finding::Level::kWarning ? "warning"
                                                                        : "note") +
              ": " + f.what + "\n";
    return text;
  }

  fs::path folder_;
};

TEST_F(ModelInspectionTest, SaysWhatAModelIs) {
  copy("llama");
  const OrderedJson config = parse_ordered_json(read_file(folder_ / "config.json"), "config.json");
  write("tokenizer.json",
        R"({"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer":
      {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
      "post_processor": null, "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
      "use_regex": true}, "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}})");
  write("chat_template.jinja", "{{ messages }}");
  const ModelInspection m = inspect_model(folder_);
  EXPECT_TRUE(m.ok()) << findings(m);
  EXPECT_TRUE(m.huggingface);
  EXPECT_EQ(m.spec.family, "llama");
  EXPECT_EQ(m.chat_template, "covered");
  EXPECT_EQ(m.tokenizer_kind, "BPE on bytes");
  // fp32 files hold 4 bytes a parameter and nothing else.
  ASSERT_EQ(m.stored_bytes.size(), 1u);
  EXPECT_EQ(m.stored_bytes[0].first, "F32");
  EXPECT_EQ(m.stored_bytes[0].second, 4 * static_cast<uint64_t>(m.parameters));
  EXPECT_EQ(m.active_parameters, m.parameters);
  // Weights, the keys and values of a full context, and a little for rotary tables.
  const int64_t heads = config["num_key_value_heads"];
  const int64_t head_dim =
      config.contains("head_dim") && config["head_dim"].is_number()
          ? config["head_dim"].get<int64_t>()
          : config["hidden_size"].get<int64_t>() / config["num_attention_heads"].get<int64_t>();
  const int64_t cached = config["num_hidden_layers"].get<int64_t>() * 2 * heads * head_dim *
                         config["max_position_embeddings"].get<int64_t>();
  ASSERT_EQ(m.memory.size(), 2u);
  const int64_t tables = m.memory[0].run_bytes - 4 * m.parameters - 4 * cached;
  EXPECT_GE(tables, 0);
  EXPECT_LT(tables, 200'000);
  EXPECT_NEAR(static_cast<double>(m.memory[1].run_bytes),
              static_cast<double>(6 * m.parameters + 2 * cached + tables), 1.0)
      << "fp32 masters and bf16 copies";
  for (const ModelMemory& memory : m.memory) {
    // Weights, gradients and two moments in fp32; bf16 copies beside.
    EXPECT_GE(memory.train_resident_bytes, 12 * m.parameters);
    EXPECT_GE(memory.train_least_bytes, 16 * m.parameters);
    EXPECT_GT(memory.train_bytes, memory.train_least_bytes);
  }
  const OrderedJson json = to_json(m);
  for (const char* key : {"family", "parameters", "active_parameters", "memory", "tokenizer",
                          "chat_template", "stored"})
    EXPECT_TRUE(json.contains(key)) << key;
  EXPECT_THAT(describe(m), HasSubstr("to train on one of"));
}

// Of latent attention a compressed vector and the rotary key are kept, not heads of keys and values.
TEST_F(ModelInspectionTest, CountsTheCacheThatGenerationKeeps) {
  copy("deepseek_v3");
  const OrderedJson config = parse_ordered_json(read_file(folder_ / "config.json"), "config.json");
  const auto number = [&](const char* key) { return config[key].get<int64_t>(); };
  const int64_t elements = number("num_hidden_layers") * number("max_position_embeddings") *
                           (number("kv_lora_rank") + number("qk_rope_head_dim"));
  const ModelInspection m = inspect_model(folder_);
  ASSERT_EQ(m.memory.size(), 2u);
  EXPECT_EQ(m.memory[0].cache_bytes, 4 * elements);
  EXPECT_EQ(m.memory[1].cache_bytes, 2 * elements);
  EXPECT_THAT(describe(m), HasSubstr("the cache of a sequence of " +
                                     std::to_string(number("max_position_embeddings"))));
}

TEST_F(ModelInspectionTest, SaysWhatTrainingHereDoesNotDo) {
  copy("llama");
  change_config([](OrderedJson& config) {
    config["attention_dropout"] = 0.1;
    config["model_type"] = "something_like_it";
  });
  const ModelInspection m = inspect_model(folder_);
  EXPECT_THAT(findings(m), HasSubstr("note: config.json says attention_dropout = 0.1: training "
                                     "here has no dropout"));
  EXPECT_THAT(findings(m), HasSubstr("note: config.json says model_type = \"something_like_it\": "
                                     "it is read as llama"));
}

TEST_F(ModelInspectionTest, SaysWhatIsMissing) {
  copy("llama");
  const ModelInspection bare = inspect_model(folder_);
  EXPECT_TRUE(bare.ok());
  EXPECT_THAT(findings(bare), HasSubstr("warning: there is no tokenizer.json"));
  EXPECT_EQ(bare.chat_template, "none");
  fs::remove(folder_ / "model.safetensors");
  const ModelInspection weightless = inspect_model(folder_);
  EXPECT_FALSE(weightless.ok());
  EXPECT_THAT(findings(weightless), HasSubstr("has neither model.safetensors nor"));
  EXPECT_EQ(weightless.parameters, bare.parameters) << "config.json still says what it is";
  EXPECT_EQ(weightless.memory.size(), 2u);
  fs::remove(folder_ / "config.json");
  EXPECT_THAT(findings(inspect_model(folder_)), HasSubstr("neither a Hugging Face directory nor"));
  EXPECT_THROW(inspect_model(folder_ / "absent"), Error);
}

TEST_F(ModelInspectionTest, SaysHowWeightsAreQuantised) {
  copy("llama");
  const checkpoint::ModelSource source = checkpoint::open_model(folder_);
  EXPECT_TRUE(to_json(inspect_model(folder_)).at("quantization").is_null());
  const fs::path out = folder_ / "fp8";
  checkpoint::export_huggingface(out, source.spec, source.parameters, source.texts,
                                 {.dtype = checkpoint::Dtype::kBf16, .fp8 = true});
  const ModelInspection m = inspect_model(out);
  EXPECT_TRUE(m.ok()) << findings(m);
  EXPECT_THAT(findings(m),
              HasSubstr("note: the weights are quantised (fp8 in blocks of 128 x 128)"));
  EXPECT_THAT(findings(m), Not(HasSubstr("of different types")));
  EXPECT_THAT(findings(m), Not(HasSubstr("config.json says")));
  EXPECT_EQ(to_json(m).at("quantization"), "fp8 in blocks of 128 x 128");
  EXPECT_EQ(m.parameters, source.spec.num_parameters());
}

// The publisher's figures: 61 layers, 671 billion parameters, 37 billion of them active.
TEST_F(ModelInspectionTest, CountsDeepSeekV3AsItsPublisherDoes) {
  write(
      "config.json",
      R"({"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "first_k_dense_replace": 3,
      "hidden_size": 7168, "intermediate_size": 18432, "kv_lora_rank": 512, "max_position_embeddings": 163840,
      "moe_intermediate_size": 2048, "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1,
      "num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128,
      "num_nextn_predict_layers": 1, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
      "topk_group": 4, "v_head_dim": 128, "vocab_size": 129280})");
  const ModelInspection m = inspect_model(folder_);
  const OrderedJson json = to_json(m);
  EXPECT_EQ(json.at("layers"), 61);
  // Of transformers on meta tensors, as in the model's own test.
  EXPECT_EQ(json.at("parameters"), 671026419200);
  EXPECT_EQ(json.at("active_parameters"), 37552297472);
  EXPECT_EQ(json.at("multi_token_prediction").at("modules"), 1);
  EXPECT_EQ(json.at("multi_token_prediction").at("stored"), false);
  // A layer and its two vectors of norm, the projection and its three: 14 billion with copies of embedding and head.
  EXPECT_NEAR(
      (json.at("multi_token_prediction").at("parameters").get<double>() + 2.0 * 129280 * 7168) /
          1e9,
      14, 0.6);
  EXPECT_THAT(describe(m), HasSubstr("61 layers of 7168"));
  EXPECT_THAT(describe(m), HasSubstr("671B parameters, 37.6B active for a token"));
  EXPECT_THAT(describe(m),
              HasSubstr("multi-token prediction: 1 module, 11.6B parameters, not stored"));
}

TEST_F(ModelInspectionTest, SaysWhetherModulesArePartOfTheFiles) {
  const fs::path golden = kGoldens / "mtp/deepseek_v3";
  const ModelInspection with = inspect_model(golden);
  EXPECT_TRUE(with.ok()) << findings(with);
  EXPECT_EQ(to_json(with).at("multi_token_prediction").at("stored"), true);
  EXPECT_THAT(describe(with), HasSubstr("multi-token prediction: 2 modules, "));
  const checkpoint::ModelSource source = checkpoint::open_model(golden);
  checkpoint::ExportOptions form;
  form.form.mtp = form.form.mtp_copies = false;
  checkpoint::export_huggingface(folder_ / "lost", source.spec, source.parameters, source.texts,
                                 form);
  const log::Level level = log::level();
  log::set_level(log::Level::kInfo);
  ::testing::internal::CaptureStderr();
  const ModelInspection without = inspect_model(folder_ / "lost");
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "") << "nothing is initialised to look at it";
  log::set_level(level);
  EXPECT_EQ(to_json(without).at("multi_token_prediction").at("stored"), false);
  EXPECT_EQ(without.parameters, with.parameters);
  EXPECT_EQ(without.mtp_parameters, with.mtp_parameters);
  EXPECT_LT(without.flops_per_token, with.flops_per_token);
  // fp32 files without modules hold 4 bytes a parameter, selection biases included, and nothing else.
  ASSERT_EQ(without.stored_bytes.size(), 1u);
  EXPECT_EQ(without.stored_bytes[0].second, 4 * static_cast<uint64_t>(without.parameters));
  EXPECT_TRUE(
      to_json(inspect_model(kGoldens / "models/llama")).at("multi_token_prediction").is_null());
}

TEST_F(ModelInspectionTest, SaysWhatIsOdd) {
  copy("llama");
  change_config([](OrderedJson& config) { config["dtype"] = "bfloat16"; });
  EXPECT_THAT(
      findings(inspect_model(folder_)),
      HasSubstr("note: config.json says dtype = \"bfloat16\", but most of the weights are F32"));
  change_config([](OrderedJson& config) { config["tie_word_embeddings"] = true; });
  EXPECT_THAT(findings(inspect_model(folder_)),
              HasSubstr("note: lm_head.weight is stored although"));
  change_config([](OrderedJson& config) {
    config["tie_word_embeddings"] = false;
    config["num_hidden_layers"] = 1;
  });
  EXPECT_THAT(findings(inspect_model(folder_)),
              HasSubstr("tensors that config.json does not account for"));
  // A type that nobody knows loads where its architecture is a known one; here neither is.
  change_config([](OrderedJson& config) {
    config["model_type"] = "lama";
    config["architectures"] = {"LamaForCausalLM"};
  });
  const ModelInspection unknown = inspect_model(folder_);
  EXPECT_FALSE(unknown.ok());
  EXPECT_THAT(findings(unknown), HasSubstr("lama"));
  EXPECT_EQ(unknown.parameters, 0);
  EXPECT_GT(unknown.stored_tensors, 0);
}

TEST_F(ModelInspectionTest, ComparesTheTokenizer) {
  copy("llama");
  fs::copy_file(kGoldens / "tokenizers/gpt2.tokenizer.json", folder_ / "tokenizer.json");
  write("chat_template.jinja", "{% include 'x' %}");
  const ModelInspection m = inspect_model(folder_);
  EXPECT_FALSE(m.ok());
  EXPECT_THAT(findings(m), HasSubstr("problem: the tokenizer has ids up to"));
  EXPECT_THAT(findings(m), HasSubstr("warning: " + (folder_ / "chat_template.jinja").string() +
                                     ", line 1: the statement {% include %} is not covered"));
  EXPECT_EQ(m.chat_template, "not covered");
  write("tokenizer.json", "{}");
  EXPECT_FALSE(inspect_model(folder_).ok());
}

TEST_F(ModelInspectionTest, ReadsCheckpointsOfOurs) {
  copy("llama");
  checkpoint::import_huggingface(folder_, folder_ / "run/checkpoints/step-7");
  const ModelInspection m = inspect_model(folder_ / "run");
  EXPECT_TRUE(m.ok()) << findings(m);
  EXPECT_FALSE(m.huggingface);
  EXPECT_EQ(m.path, folder_ / "run/checkpoints/step-7");
  EXPECT_EQ(m.parameters, inspect_model(folder_).parameters);
}

}  // namespace
}  // namespace trireme::train
